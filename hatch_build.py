"""Builds the extension module `pocketlens.core._preprocess` into the wheel, if a C compiler is at hand.

POCKETLENS_COMPILED=no leaves it out (a pure wheel for any platform), POCKETLENS_COMPILED=yes fails without it.
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/pocketlens/core")  # as it is called both in the repository and in the source distribution
MODULE = "pocketlens.core._preprocess"


class CompiledPreprocessing(BuildHookInterface[Any]):
    """Compiles one C file against the stable ABI; a wheel with it is for one platform and CPython 3.11 and later."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the module to what is built; an editable installation gets it beside the sources."""
        asked = os.environ.get("POCKETLENS_COMPILED", "auto")
        if asked == "no" or self.target_name != "wheel":
            return
        source = Path(self.root) / SOURCE
        with tempfile.TemporaryDirectory() as folder:
            built = _compiled(source / "c" / "preprocess_module.c", Path(folder), strict=asked == "yes")
            if built is None:
                self.app.display_warning("no C compiler: pocketlens will resize with Pillow, which is slower")
                return
            module = source / built.name
            partial = module.with_suffix(f".{os.getpid()}")
            partial.write_bytes(built.read_bytes())
            partial.replace(module)
        if version != "editable":
            build_data["force_include"][str(module)] = f"pocketlens/core/{module.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _compiled(source: Path, folder: Path, *, strict: bool) -> Path | None:
    """Return the extension module, built in `folder`; `None` where it cannot be built."""
    from setuptools import Distribution, Extension
    from setuptools.errors import BaseError, CCompilerError

    flags = [] if sys.platform == "win32" else ["-O3", "-std=c99", "-fvisibility=hidden"]
    extension = Extension(
        MODULE,
        [str(source)],
        define_macros=[("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=flags,
        py_limited_api=True,
    )
    command: Any = Distribution({"name": "pocketlens", "ext_modules": [extension]}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    try:
        command.ensure_finalized()
        command.run()
    except (BaseError, CCompilerError, OSError):
        if strict:
            raise
        return None
    return Path(command.get_outputs()[0])
