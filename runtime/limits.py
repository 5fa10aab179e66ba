"""Limits that a process sets on itself. Linux enforces all of them, macOS all but that of address space."""

import resource
from pathlib import Path

__all__ = ["address_space", "limit", "resident_bytes"]


def limit(what: int, value: int, *, grace: int = 0) -> None:
    """Set the soft limit of `what` to `value` and the hard one to `value + grace`, never above the present one."""
    _, most = resource.getrlimit(what)
    soft, hard = (v if most == resource.RLIM_INFINITY else min(v, most) for v in (value, value + grace))
    resource.setrlimit(what, (soft, hard))


def address_space() -> int:
    """Return the size of this process's address space in bytes, 0 where the system does not say."""
    return _pages(0)


def resident_bytes() -> int:
    """Return how many bytes of this process are in memory now, 0 where the system does not say."""
    return _pages(1)


def _pages(column: int) -> int:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text(encoding="ascii").split()[column]) * resource.getpagesize()
