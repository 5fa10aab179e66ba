"""Prepares untrusted pictures in a decoding process: whatever a picture does, the host goes on."""

import os
import signal
import threading
import time
import weakref
from typing import Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketlens.core.errors import EngineError, PictureError
from pocketlens.core.picture_source import name_of, read_bytes
from pocketlens.core.preprocess import Picture, preprocess
from pocketlens.core.preprocess_spec import PreprocessSpec
from pocketlens.runtime.picture_worker.process import DecodingProcess
from pocketlens.runtime.picture_worker.protocol import (
    BEGAN,
    FRAME,
    MAX_REFUSED_BYTES,
    PIXELS,
    REFUSED,
    REQUEST,
    Refused,
    WorkerLimits,
    read_exactly,
)

__all__ = ["PictureWorker"]

_STARTS: Final = 3
_SHORTEST_S: Final = 1e-6


class PictureWorker:
    """One decoding process that is started at the first picture, used again, and replaced when it fails.

    Safe from several threads (one picture at a time) and after a fork (the forked process starts its own).
    Use as a context manager or call `close`; an end of the program ends the process too.

    Attributes:
        limits: what the process may use.
        starts: how many processes were started so far.
    """

    def __init__(self, limits: WorkerLimits = WorkerLimits()) -> None:  # noqa: B008 - frozen
        self.limits = limits
        self.starts = 0
        self._lock = threading.Lock()
        self._process: DecodingProcess | None = None
        self._ending: DecodingProcess | None = None  # killed, and not yet waited for
        self._closed = False
        _ALIVE.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Number of the decoding process; `None` while there is none."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Start the process now and wait until it is ready, so that the first picture need not.

        Raises:
            EngineError: no decoding process can be started, or this worker is closed.
        """
        with self._lock:
            self._ready_process()

    def close(self) -> None:
        """End the process. A picture asked for afterwards is an `EngineError`."""
        with self._lock:
            self._closed = True
            self._drop()
            self._reap()

    def prepare(self, picture: Picture, spec: PreprocessSpec) -> NDArray[np.uint8]:
        """Return what `pocketlens.core.preprocess.preprocess` returns: uint8 (height_px, width_px, 3).

        Paths and encoded files are decoded in the process; this one only reads their bytes. An array, and a
        PIL image, which this program opened itself, are prepared here.

        Raises:
            PictureError: the picture was refused; of kind `too_slow` when the process was killed by the
                clock, `crashed_decoder` when it ended without an answer.
            EngineError: no decoding process can be started, or this worker is closed.
        """
        if isinstance(picture, (np.ndarray, Image.Image)):
            return preprocess(picture, spec)
        name = name_of(picture)
        data = read_bytes(picture, max_bytes=spec.max_bytes)
        with self._lock:
            return self._prepare(data, name, spec)

    def _prepare(self, data: bytes, name: str, spec: PreprocessSpec) -> NDArray[np.uint8]:
        for _ in range(_STARTS):
            process = self._ready_process()
            usable = False
            began = time.monotonic()
            try:
                pixels_or_error = _ask(process, data, name, spec, began + self.limits.answer_s)
                usable = pixels_or_error is not None
            except TimeoutError:
                raise _too_slow(name, self.limits) from None
            except EOFError:
                raise _crashed(name, process.end(), self.limits) from None
            finally:
                # Also after Ctrl+C: a process in the middle of an answer is of no use to the next picture.
                if not usable:
                    self._drop(began + self.limits.ended_s)
                    self._start()
            if isinstance(pixels_or_error, PictureError):
                raise pixels_or_error
            if pixels_or_error is not None:
                return pixels_or_error
        raise EngineError(
            "the decoding process",
            expected="a process that takes a picture",
            found=f"{_STARTS} that ended before they had read it",
            remedy="Check whether something kills them: a memory limit of the system, or another program.",
        )

    def _ready_process(self) -> DecodingProcess:
        if self._closed:
            raise EngineError(
                "the picture worker",
                expected="one that is open",
                found="one that was closed",
                remedy="Make a new one.",
            )
        self._reap()
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        try:
            process.wait_until_ready()
        except BaseException:
            self._drop()
            raise
        return process

    def _start(self) -> None:
        self._process = DecodingProcess(self.limits)
        self.starts += 1

    def _drop(self, deadline: float | None = None) -> None:
        """End the process; one that has not ended by `deadline` is waited for before the next picture."""
        process, self._process = self._process, None
        if process is None:
            return
        if deadline is not None and not process.kill(deadline):
            self._ending = process
        else:
            process.end()

    def _reap(self) -> None:
        if self._ending is not None:
            self._ending.end()
            self._ending = None

    def _forget(self) -> None:
        """Begin anew in a forked process: lock and process belong to the one it was forked from."""
        self._lock = threading.Lock()
        for process in (self._process, self._ending):
            if process is not None:
                process.forget()
        self._process = self._ending = None


_ALIVE: "weakref.WeakSet[PictureWorker]" = weakref.WeakSet()


def _after_fork() -> None:
    for worker in list(_ALIVE):
        worker._forget()


os.register_at_fork(after_in_child=_after_fork)


def _ask(
    process: DecodingProcess, data: bytes, name: str, spec: PreprocessSpec, deadline: float
) -> NDArray[np.uint8] | PictureError | None:
    """Return the answer; `None` when the process was gone before it had the whole picture.

    Raises:
        TimeoutError: no answer by `deadline` (`time.monotonic`).
        EOFError: the process ended with the picture in its hands, or said what it must not say.
    """
    channel = process.channel
    described = msgspec.json.encode(spec)
    head = bytearray(FRAME.size)
    try:
        for part in (REQUEST.pack(len(described), len(data)) + described, data):
            channel.settimeout(max(_SHORTEST_S, deadline - time.monotonic()))  # 0 would mean: do not wait at all
            channel.sendall(part)
        read_exactly(channel, memoryview(head), deadline)
    except (ConnectionError, EOFError):
        return None
    if head != FRAME.pack(BEGAN, 0):
        raise EOFError("no answer of ours")
    read_exactly(channel, memoryview(head), deadline)
    kind, length = FRAME.unpack(head)
    if kind == PIXELS and length == spec.height_px * spec.width_px * 3:
        pixels = np.empty((spec.height_px, spec.width_px, 3), np.uint8)
        read_exactly(channel, pixels.data.cast("B"), deadline)
        return pixels
    if kind == REFUSED and length <= MAX_REFUSED_BYTES:
        body = bytearray(length)
        read_exactly(channel, memoryview(body), deadline)
        try:
            error = msgspec.json.decode(body, type=Refused).error(name)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            error = None
        if error is not None:
            return error
    raise EOFError("no answer of ours")


def _too_slow(name: str, limits: WorkerLimits) -> PictureError:
    return PictureError(
        name,
        kind="too_slow",
        expected=f"a picture that is decoded within {limits.wall_s:g} s",
        found="no answer of the decoding process in time; it was killed",
        remedy="Save the picture smaller or as a baseline JPEG, or allow more time.",
    )


def _crashed(name: str, code: int, limits: WorkerLimits) -> PictureError:
    if code in {-signal.SIGXCPU, -signal.SIGALRM}:
        return _too_slow(name, limits)
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"that ended with exit code {code}"
    return PictureError(
        name,
        kind="crashed_decoder",
        expected="a picture that the decoder survives",
        found=f"a decoding process {ended}",
        remedy="Do not use this file: broken on purpose or by accident, no decoder should be trusted with it.",
    )
