"""What decides how fast a graph runs here, so that a measurement is not used where it does not hold."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Device", "cores", "this_device"]

# The builds of ONNX Runtime are packages of their own, one instead of the other.
_PACKAGES: Final = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-qnn",
    "onnxruntime-silicon",
    "onnxruntime-training",
    "executorch",
    "torch",
    "coremltools",
    "numpy",
    "pocketlens",
)
_NVIDIA: Final = Path("/proc/driver/nvidia")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """This device as far as speed goes. Nothing in it names the device or its owner.

    Attributes:
        cpu: the model as the system calls it.
        cores: logical processors that this process may use.
        system: operating system and its release.
        machine: architecture.
        gpus: models of NVIDIA GPUs and the version of their driver; empty where there is none.
        packages: versions of the installed packages that compute.
    """

    cpu: str
    cores: int
    system: str
    machine: str
    gpus: tuple[str, ...]
    packages: dict[str, str]

    @property
    def key(self) -> str:
        """SHA-256 over all of it, hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


@cache
def this_device() -> Device:
    """Return the device that this process runs on; asked for once a process."""
    return Device(
        cpu=_cpu(),
        cores=cores(),
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        gpus=tuple(_gpus()),
        packages={name: found for name in _PACKAGES if (found := _version(name))},
    )


def cores() -> int:
    """Return how many logical processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu() -> str:
    """Return the CPU's model; where the system does not say, its architecture."""
    if sys.platform == "darwin":
        try:
            asked = subprocess.run(
                ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return platform.processor() or platform.machine()
        return asked.stdout.decode("utf-8", "replace").strip() or platform.machine()
    try:
        # The first processor is enough; on ARM the model is a pair of numbers.
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    found = re.findall(r"^(?:model name|CPU implementer|CPU part|Hardware)\s*:\s*(.*)$", text, re.MULTILINE)
    return " ".join(found) or platform.machine()


def _gpus() -> list[str]:
    try:
        files = sorted(_NVIDIA.glob("gpus/*/information"))
        models = [re.search(r"^Model:\s*(.*)$", f.read_text(errors="replace"), re.MULTILINE) for f in files]
        driver = (_NVIDIA / "version").read_text(errors="replace").splitlines()[:1] if files else []
    except OSError:
        return []
    return [*(found[1].strip() for found in models if found), *driver]
