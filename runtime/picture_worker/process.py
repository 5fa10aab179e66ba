"""The host's side of one decoding process: starts it, talks to it, ends it. Says nothing about pictures."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from typing import IO, Final

import msgspec

from pocketlens.core.errors import EngineError
from pocketlens.runtime.picture_worker.protocol import FRAME, READY, WorkerLimits, read_exactly

__all__ = ["DecodingProcess"]

_STDERR_TAIL: Final = 300
# What an interpreter needs to find its modules and its libraries. Nothing else of the host's environment
# goes where unknown bytes are parsed.
_KEPT: Final = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONNOUSERSITE",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "LC_ALL",
    "LANG",
)
_SET: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class DecodingProcess:
    """One child process and the socket to it. It is started at once and used when it is ready.

    Attributes:
        pid: number of the process.

    Raises:
        EngineError: no process could be started.
    """

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._ready = False
        self.channel, theirs = socket.socketpair()
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            with theirs:
                popen = subprocess.Popen(
                    [
                        *(sys.executable, "-P", "-m", "pocketlens.runtime.picture_worker.child"),
                        *(str(theirs.fileno()), msgspec.json.encode(limits).decode()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._complaints,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,  # Ctrl+C reaches the host only
                    env={name: os.environ[name] for name in _KEPT if name in os.environ} | _SET,
                )
        except OSError as error:
            self.channel.close()
            self._complaints.close()
            raise _not_started(error.strerror or str(error)) from error
        self.pid = popen.pid
        self._popen = popen
        # Also at the end of the program, and when nobody holds this object any more.
        self._finalizer = weakref.finalize(self, _end, popen, self.channel, self._complaints, os.getpid())

    def wait_until_ready(self) -> None:
        """Return when the process can take a request.

        Raises:
            EngineError: it ended, or was not ready in time.
        """
        if self._ready:
            return
        head = bytearray(FRAME.size)
        try:
            read_exactly(self.channel, memoryview(head), time.monotonic() + self._limits.start_s)
        except (EOFError, TimeoutError) as error:
            raise _not_started(self._said(error)) from error
        if head != FRAME.pack(READY, 0):
            raise _not_started("another answer than that it is ready")
        self._ready = True

    def _said(self, error: Exception) -> str:
        size = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, size - _STDERR_TAIL))
        words = " ".join(self._complaints.read().decode("utf-8", "replace").split())
        return "".join(letter if letter.isprintable() else "?" for letter in words) or str(error)

    def end(self) -> int:
        """Kill the process, wait for it, and return its exit code; one that had ended keeps the code that it had."""
        self._finalizer()
        return self._popen.returncode or 0

    def kill(self, deadline: float) -> bool:
        """Kill the process and wait for its end until `deadline` (`time.monotonic`); return whether it has ended.

        The memory of a large picture takes a while to be given back. `end` waits for what is left of that.
        """
        self.channel.close()
        self._popen.kill()
        try:
            self._popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def forget(self) -> None:
        """Let go of a process that belongs to the process from which this one was forked."""
        self._finalizer.detach()
        self._popen.returncode = 0  # it is no child of ours: nothing to wait for, nothing to warn about
        self.channel.close()
        self._complaints.close()


def _end(popen: "subprocess.Popen[bytes]", channel: socket.socket, complaints: IO[bytes], owner: int) -> None:
    if os.getpid() == owner:
        # It may be on its way out by itself; its own exit code says more than our SIGKILL.
        channel.close()
        if popen.poll() is None:
            popen.kill()
            popen.wait()
    complaints.close()


def _not_started(found: str) -> EngineError:
    return EngineError(
        "the decoding process",
        expected="a Python process that imports pocketlens and can be talked to",
        found=found,
        remedy='Check memory and process limits, or decode trusted pictures with decode="in_process".',
    )
