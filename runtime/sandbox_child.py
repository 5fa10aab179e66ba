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
from typing import Final

from pocketlens.core.errors import PocketlensError
from pocketlens.runtime.limits import address_space, limit
from pocketlens.runtime.sandbox import FRAME

__all__ = ["main"]

_OPEN_FILES: Final = 256


def main() -> None:
    """Carry out the order on stdin."""
    pipe = int(sys.argv[1])
    order = json.load(sys.stdin.buffer)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, order["cpu_s"], grace=1)  # SIGXCPU says why; SIGKILL a second later cannot be caught
    limit(resource.RLIMIT_FSIZE, order["file_bytes"])
    limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    for module in order["preload"]:
        importlib.import_module(module)
    module, _, name = order["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    if size := address_space():
        limit(resource.RLIMIT_AS, size + order["memory_bytes"])
    try:
        result = function(bytes.fromhex(order["argument"]), lambda text: _send(pipe, b"N", text.encode()))
        _send(pipe, b"R", result)
    except PocketlensError as error:
        _send(pipe, b"E", json.dumps(error.fields()).encode())
    except MemoryError:
        _send(pipe, b"M", b"")
    # Not a return: an inference library may crash when it is torn down, and the answer is given.
    os._exit(0)


def _send(pipe: int, kind: bytes, body: bytes) -> None:
    data = FRAME.pack(kind, len(body)) + body
    while data:
        data = data[os.write(pipe, data) :]


if __name__ == "__main__":
    main()
