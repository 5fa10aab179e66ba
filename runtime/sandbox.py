"""Runs one function in a child process with limits, and turns every way in which it can end into an answer.

For what parses bytes of unknown origin in native code: inference libraries crash on some malformed
graphs, loop forever on valid ones, and allocate what a shape asks for. The child has its own address
space, a limit of memory, of processor time, of file sizes and of open files, no core dump, and an
end by the clock.

What this is not: a jail. The child runs as the same user and can read files and open sockets. It
contains accidents and denial of service, not an attacker who gains control of the process.

The child answers over a pipe in frames of our own: nothing that it sends is unpickled, and no more
than `MAX_ANSWER_BYTES` of it are read.
"""

import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Final

import msgspec

from pocketlens.core import errors
from pocketlens.core.errors import BundleCrashed, PocketlensError

__all__ = ["MAX_ANSWER_BYTES", "Limits", "run_limited"]

MAX_ANSWER_BYTES: Final = 16 * 2**20
FRAME: Final = struct.Struct("<cI")
"""Kind and length before each frame: `N` a note on what is tried next, `R` the result, `E` one of our errors."""

_STDERR_TAIL: Final = 300
_CHUNK_BYTES: Final = 2**16


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a child may use.

    Attributes:
        memory_bytes: address space beyond what Python and the preloaded libraries hold before it starts.
            Enforced on Linux; macOS does not enforce RLIMIT_AS.
        cpu_s: seconds of processor time, all threads together, imports included.
        wall_s: seconds by the clock, imports included.
        file_bytes: the largest file that it may write.
    """

    memory_bytes: int = 4 * 2**30
    cpu_s: int = 120
    wall_s: float = 600.0
    file_bytes: int = 2**20


class _Refusal(msgspec.Struct, frozen=True):
    """One of our errors, as the child reports it."""

    error: str
    what: str
    expected: str
    found: str
    remedy: str


def run_limited(
    function: str,
    argument: bytes = b"",
    *,
    what: str,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    preload: Sequence[str] = (),
) -> bytes:
    """Return what `function` returns for `argument`, called in a child process.

    Args:
        function: `package.module:name`. It is called with `argument` and a callable `note(text)`, which says
            what is tried next, and returns bytes.
        argument: handed over as it is.
        what: names the bundle in messages.
        limits: what the child may use.
        preload: modules that the child imports before its memory is limited.

    Raises:
        BundleCrashed: the child was killed by a signal or by a limit, or ended without an answer. The
            message says what it was trying.
        PocketlensError: the function raised it in the child.
    """
    order = {"function": function, "preload": list(preload), "argument": argument.hex(), **msgspec.to_builtins(limits)}
    receiver, sender = os.pipe()
    with (
        os.fdopen(receiver, "rb", buffering=0) as pipe,
        tempfile.TemporaryFile() as instructions,
        tempfile.TemporaryFile() as complaints,
    ):
        instructions.write(json.dumps(order).encode())
        instructions.seek(0)
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "pocketlens.runtime.sandbox_child", str(sender)],
                stdin=instructions,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=(sender,),
                start_new_session=True,  # so that it can be ended with whatever it started
                # Each thread of a pool reserves address space, and one call at a time is made.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        finally:
            os.close(sender)
        try:
            answer, in_time = _read(pipe, time.monotonic() + limits.wall_s)
        finally:
            _end(child)
        complaints.seek(0, os.SEEK_END)
        complaints.seek(max(0, complaints.tell() - _STDERR_TAIL))
        said = complaints.read()
    return _interpret(answer, in_time, child.returncode, said, what, limits)


def _read(pipe: IO[bytes], deadline: float) -> tuple[bytes, bool]:
    """Return what the child sent, and whether it closed the pipe in time."""
    answer = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(answer) <= MAX_ANSWER_BYTES and selector.select(max(0.0, deadline - time.monotonic())):
            chunk = os.read(pipe.fileno(), _CHUNK_BYTES)
            if not chunk:
                return bytes(answer), True
            answer += chunk
    return bytes(answer), False


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it started. One that closed the pipe by ending keeps the exit code that it has."""
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS says so of a group of zombies
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _interpret(answer: bytes, in_time: bool, code: int, said: bytes, what: str, limits: Limits) -> bytes:
    notes, kind, body = _frames(answer)
    trying = f"{what}, {notes[-1]}" if notes else what
    if len(answer) > MAX_ANSWER_BYTES:
        raise _crashed(trying, f"more than {MAX_ANSWER_BYTES:,} bytes of answer")
    if not in_time:
        raise _crashed(trying, f"no end after {limits.wall_s:g} s")
    if code == -signal.SIGXCPU:
        raise _crashed(trying, f"more than {limits.cpu_s} s of processor time")
    if code < 0:
        raise _crashed(trying, f"the child process killed by {_signal_name(-code)}")
    if kind == b"R" and code == 0:
        return body
    if kind == b"E" and code == 0:
        raise _error(body, trying)
    if kind == b"M":
        raise _crashed(trying, f"no memory left beyond {limits.memory_bytes:,} bytes")
    tail = " ".join(said.decode("utf-8", "replace").split())[-_STDERR_TAIL:]
    shown = "".join(letter if letter.isprintable() else "?" for letter in tail)
    raise _crashed(trying, f"exit code {code} without an answer: {shown or 'nothing was said'}")


def _frames(answer: bytes) -> tuple[list[str], bytes, bytes]:
    """Return all notes, and kind and body of the last whole frame that is none."""
    notes: list[str] = []
    last, position = (b"", b""), 0
    while position + FRAME.size <= len(answer):
        kind, length = FRAME.unpack_from(answer, position)
        position += FRAME.size
        body = answer[position : position + length]
        if len(body) < length:
            break
        position += length
        if kind == b"N":
            text = body.decode("utf-8", "replace")[:200]
            notes.append(text if text.isprintable() else ascii(text))
        else:
            last = (kind, body)
    return notes, *last


def _error(body: bytes, trying: str) -> PocketlensError:
    """Return the error that the child reported, rebuilt from its words and the name of its class."""
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _crashed(trying, f"an answer that is none: {error}")
    kind = getattr(errors, refusal.error, None) if refusal.error in errors.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, PocketlensError)) or kind is errors.PictureError:
        return _crashed(trying, f"an unknown error {refusal.error[:100]!r}")
    return kind(refusal.what, expected=refusal.expected, found=refusal.found, remedy=refusal.remedy)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _crashed(what: str, found: str) -> BundleCrashed:
    return BundleCrashed(
        what,
        expected="a graph that an inference engine can load and run within its limits",
        found=found,
        remedy="Do not use this bundle. If you made it yourself, export it again, or raise the limits.",
    )
