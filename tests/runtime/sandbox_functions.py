"""What the children in `test_sandbox` run: every way to end badly."""

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pocketlens.core.errors import BundleTampered
from pocketlens.runtime.sandbox import FRAME, MAX_ANSWER_BYTES

Note = Callable[[str], None]
_PIPE = int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else -1


def echo(argument: bytes, note: Note) -> bytes:
    note("the graph")
    return argument


def refuse(_: bytes, __: Note) -> bytes:
    raise BundleTampered("what", expected="e", found="f", remedy="r.")


def segfault(_: bytes, note: Note) -> bytes:
    note("the graph")
    return ctypes.string_at(0)


def abort(_: bytes, note: Note) -> bytes:
    note("the graph")
    os.abort()


def leave(_: bytes, __: Note) -> bytes:
    os._exit(0)


def fail(_: bytes, __: Note) -> bytes:
    return bytes(1 // 0)


def spin(_: bytes, note: Note) -> bytes:
    note("the graph")
    while True:
        pass


def sleep(_: bytes, __: Note) -> bytes:
    time.sleep(1000)
    return b""


def linger(_: bytes, __: Note) -> bytes:
    """Say goodbye and stay: the pipe is closed, the process is not."""
    os.close(_PIPE)
    time.sleep(1000)
    return b""


def hog(_: bytes, note: Note) -> bytes:
    note("the graph")
    gc.disable()
    return bytes(len(bytearray(2**32)))


def flood(_: bytes, __: Note) -> bytes:
    return bytes(2 * MAX_ANSWER_BYTES)


def babble(_: bytes, __: Note) -> bytes:
    os.write(_PIPE, b"R\xff\xff\xff\xff and nothing")
    os._exit(0)


def invent(_: bytes, __: Note) -> bytes:
    _say(b'{"error": "storage_errors", "what": "", "expected": "", "found": "", "remedy": ""}')


def garble(_: bytes, __: Note) -> bytes:
    _say(b"\xff{")


def _say(body: bytes) -> bytes:
    os.write(_PIPE, FRAME.pack(b"E", len(body)) + body)
    os._exit(0)


def write(argument: bytes, _: Note) -> bytes:
    try:
        Path(os.fsdecode(argument)).write_bytes(bytes(100_000))
    except OSError:
        return b"refused"
    return b"written"


def start_another(argument: bytes, _: Note) -> bytes:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=False)
    Path(os.fsdecode(argument)).write_text(str(other.pid))
    os.abort()
