"""The child's side of `pocketlens.runtime.sandbox`: python -m pocketlens.runtime.sandbox_child PIPE.

Reads its order from stdin, limits itself, calls one function and writes frames to the pipe. The limits
are set here, before the function sees a byte of what is tried: setting them between fork and exec is
not safe in a parent with threads.
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final

from pocketlens.core.errors import PocketlensError
from pocketlens.runtime.sandbox import FRAME

__all__ = ["main"]

_OPEN_FILES: Final = 256


def main() -> None:
    """Carry out the order on stdin."""
    pipe = int(sys.argv[1])
    order = json.load(sys.stdin.buffer)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, order["cpu_s"], grace=1)  # SIGXCPU says why; SIGKILL a second later cannot be caught
    _limit(resource.RLIMIT_FSIZE, order["file_bytes"])
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    for module in order["preload"]:
        importlib.import_module(module)
    module, _, name = order["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    if size := _address_space():
        _limit(resource.RLIMIT_AS, size + order["memory_bytes"])
    try:
        result = function(bytes.fromhex(order["argument"]), lambda text: _send(pipe, b"N", text.encode()))
        _send(pipe, b"R", result)
    except PocketlensError as error:
        _send(pipe, b"E", json.dumps(_described(error)).encode())
    except MemoryError:
        _send(pipe, b"M", b"")
    # Not a return: an inference library may crash when it is torn down, and the answer is given.
    os._exit(0)


def _described(error: PocketlensError) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "what": error.what,
        "expected": error.expected,
        "found": error.found,
        "remedy": error.remedy,
    }


def _send(pipe: int, kind: bytes, body: bytes) -> None:
    data = FRAME.pack(kind, len(body)) + body
    while data:
        data = data[os.write(pipe, data) :]


def _limit(what: int, value: int, *, grace: int = 0) -> None:
    _, most = resource.getrlimit(what)
    soft, hard = (v if most == resource.RLIM_INFINITY else min(v, most) for v in (value, value + grace))
    resource.setrlimit(what, (soft, hard))


def _address_space() -> int:
    """Return the size of this process's address space in bytes, 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
