"""The host's side: hands a file to a decoding process and takes its keyframes, one at a time."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final, NamedTuple, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError, PictureError
from pocketlens.runtime.picture_worker.protocol import FRAME, MAX_REFUSED_BYTES, Refused, read_exactly
from pocketlens.runtime.video.limits import HEAD_BYTES, Sampling, VideoLimits, container_of
from pocketlens.runtime.video.protocol import DONE, HEAD, VideoOrder

__all__ = ["Piece", "read_pieces"]

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
_STARTS_S: Final = 60.0


class Piece(NamedTuple):
    """A stretch of a video and the frame that stands for it.

    Attributes:
        start_s: seconds from the video's first frame.
        end_s: where the next piece begins, or the video ends.
        time_s: of the keyframe.
        cut: whether a cut is at `start_s`.
        pixels: the keyframe upright, `(H, W, 3)` uint8 RGB.
    """

    start_s: float
    end_s: float
    time_s: float
    cut: bool
    pixels: NDArray[np.uint8]


def read_pieces(
    path: str | os.PathLike[str],
    *,
    limits: VideoLimits = VideoLimits(),  # noqa: B008 - frozen
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> Iterator[Piece]:
    """Yield the pieces of the video at `path`, in order, holding two keyframes at most.

    The file is decoded in a process of its own, which ends with this generator.

    Raises:
        PictureError: the file is refused; `kind` says why. Pieces that came before it hold.
        DataError: PyAV is not installed, or no process could be started.
    """
    name = os.fsdecode(path)
    if find_spec("av") is None:
        raise DataError(name, expected="the package av", found="none", remedy="pip install 'pocketlens[video]'")
    with _opened(name, limits) as file, tempfile.TemporaryFile() as complaints:
        container = container_of(file.read(HEAD_BYTES))
        if container is None:
            raise PictureError(
                name,
                kind="unknown_type",
                expected="a video: MP4, MOV, Matroska, WebM, AVI, MPEG, FLV or Ogg",
                found="another beginning of the file",
                remedy="Convert the file to MP4.",
            )
        file.seek(0)
        order = VideoOrder(container, limits, sampling)
        channel, theirs = socket.socketpair()
        with channel, theirs:
            child = _started(theirs, file, msgspec.json.encode(order).decode(), complaints, name)
            theirs.close()
            try:
                held: Piece | None = None
                wait_s = _STARTS_S + limits.stall_s
                while True:
                    kind, body = _received(channel, child, name, wait_s, sampling.max_key_pixels * 4 + HEAD.size)
                    wait_s = limits.stall_s
                    if kind == b"K":
                        start_s, time_s, cut, height, width = HEAD.unpack_from(body)
                        pixels = np.frombuffer(body, np.uint8, offset=HEAD.size).reshape(height, width, 3)
                        if held is not None:
                            yield held._replace(end_s=start_s)
                        held = Piece(start_s, start_s, time_s, cut, pixels)
                    elif kind == b"D":
                        if held is not None:
                            yield held._replace(end_s=max(held.start_s, DONE.unpack(body)[0]))
                        return
                    elif kind == b"E":
                        _refuse(body, name)
            finally:
                if child.poll() is None:
                    child.kill()
                child.wait()


def _opened(name: str, limits: VideoLimits) -> IO[bytes]:
    try:
        if not Path(name).is_file():
            raise PictureError(
                name,
                kind="not_a_file" if Path(name).exists() else "missing",
                expected="a video file",
                found="something else" if Path(name).exists() else "nothing at that path",
                remedy="Check the path.",
            )
        # Unbuffered: the child reads from where this descriptor stands.
        file = open(name, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    except (OSError, ValueError) as error:
        raise PictureError(
            name,
            kind="unreadable",
            expected="a file that can be read",
            found=str(error),
            remedy="Check its permissions.",
        ) from error
    size = os.fstat(file.fileno()).st_size
    if not 0 < size <= limits.max_bytes:
        file.close()
        raise PictureError(
            name,
            kind="too_large" if size else "empty",
            expected=f"1 to {limits.max_bytes:,} bytes",
            found=f"{size:,}",
            remedy="Raise the limits for videos that you trust." if size else "Copy the file again.",
        )
    return file


def _started(
    theirs: socket.socket, file: IO[bytes], order: str, complaints: IO[bytes], name: str
) -> "subprocess.Popen[bytes]":
    numbers = (theirs.fileno(), file.fileno())
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pocketlens.runtime.video.child", *map(str, numbers), order],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            pass_fds=numbers,
            process_group=0,  # Ctrl+C reaches the host only
            env={key: os.environ[key] for key in _KEPT if key in os.environ} | _SET,
        )
    except OSError as error:
        raise DataError(
            name,
            expected="a process that decodes it",
            found=error.strerror or str(error),
            remedy="Check the limits of memory and processes.",
        ) from error


def _received(
    channel: socket.socket, child: "subprocess.Popen[bytes]", name: str, wait_s: float, most: int
) -> tuple[bytes, bytearray]:
    """Return the next message that is more than a sign of life.

    Raises:
        PictureError: none came in time, the process died, or it sent what is no message.
    """
    prefix = bytearray(FRAME.size)
    try:
        while True:
            deadline = time.monotonic() + wait_s
            read_exactly(channel, memoryview(prefix), deadline)
            kind, length = FRAME.unpack(prefix)
            if length > max(most, MAX_REFUSED_BYTES):
                raise EOFError("a message of impossible size")
            body = bytearray(length)
            read_exactly(channel, memoryview(body), deadline)
            if kind != b"T":
                return kind, body
    except TimeoutError as error:
        raise _corrupt(name, f"no frame within {wait_s:g} s") from error
    except EOFError as error:
        channel.close()
        raise _corrupt(name, f"the decoding process ended with {child.wait()}") from error


def _refuse(body: bytearray, name: str) -> NoReturn:
    try:
        found = msgspec.json.decode(body, type=Refused).error(name)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = None
    raise found or _corrupt(name, "an answer that is none")


def _corrupt(name: str, found: str) -> PictureError:
    return PictureError(
        name,
        kind="corrupt",
        expected="a video that decodes within its limits",
        found=found,
        remedy="Make the file anew, or raise the limits for videos that you trust.",
    )
