"""What the host and the decoding process say to each other over a socket: frames of our own, nothing pickled.

A request is `REQUEST` (length of the spec, length of the file), the spec as JSON, the file. The process
answers `BEGAN` when it has all of that, then one more frame: `PIXELS` with uint8 (height_px, width_px, 3) in
C order, or `REFUSED` with a `Refused` as JSON. Before its first request it says `READY`. A frame is `FRAME`
(kind, length) and that many bytes.
"""

import socket
import struct
import time
from typing import Final

import msgspec

from pocketlens.core.errors import PICTURE_KINDS, PictureError

__all__ = [
    "BEGAN",
    "FRAME",
    "MAX_REFUSED_BYTES",
    "PIXELS",
    "READY",
    "REFUSED",
    "REQUEST",
    "Refused",
    "WorkerLimits",
    "read_exactly",
]

REQUEST: Final = struct.Struct("<IQ")
FRAME: Final = struct.Struct("<cQ")
READY: Final = b"R"
BEGAN: Final = b"B"
PIXELS: Final = b"P"
REFUSED: Final = b"E"
MAX_REFUSED_BYTES: Final = 2**16

_MAX_WORDS: Final = 2_000
# The end of a process with 400 MB takes 12 to 31 ms here, and over 100 ms on a machine with much other work.
_ENDING_S: Final = 0.1
_ENDING_SHARE: Final = 0.05


class WorkerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoding process may use.

    Attributes:
        memory_bytes: memory of the whole process, Python and libraries included (they take about 40 MB).
            Enforced on Linux; macOS does not enforce RLIMIT_AS.
        wall_s: seconds by the clock for one picture, from its sending to the answer or the error. See `answer_s`.
        cpu_s: seconds of processor time for one picture, for the case that the host is gone.
        start_s: seconds by the clock until a new process must be ready.
    """

    memory_bytes: int = 512 * 2**20
    wall_s: float = 2.0
    cpu_s: int = 4
    start_s: float = 60.0

    @property
    def answer_s(self) -> float:
        """Seconds after which a process without an answer is killed: what follows has to fit into `wall_s`, too."""
        return self.wall_s - min(_ENDING_S, _ENDING_SHARE * self.wall_s)

    @property
    def ended_s(self) -> float:
        """Seconds until which the end of a killed process is waited for: then its successor is started."""
        return (self.answer_s + self.wall_s) / 2

    def __post_init__(self) -> None:
        if self.memory_bytes < 2**26 or self.wall_s <= 0 or self.cpu_s < 1 or self.start_s <= 0:
            raise ValueError(f"limits: expected 64 MiB of memory or more and positive times, found {self}")


class Refused(msgspec.Struct, frozen=True):
    """A `PictureError` on its way to the host."""

    kind: str
    expected: str
    found: str
    remedy: str

    def error(self, name: str) -> PictureError | None:
        """Return the error about the picture `name`; `None` if these words are not from us."""
        words = (self.expected, self.found, self.remedy)
        if self.kind not in PICTURE_KINDS or any(len(text) > _MAX_WORDS for text in words):
            return None
        expected, found, remedy = (text if text.isprintable() else ascii(text) for text in words)
        return PictureError(name, kind=self.kind, expected=expected, found=found, remedy=remedy)


def read_exactly(channel: socket.socket, view: memoryview, deadline: float | None = None) -> None:
    """Fill `view` from `channel`.

    What has arrived counts even after the deadline: the host itself may have been stopped meanwhile.

    Raises:
        TimeoutError: the deadline (`time.monotonic`) passed.
        EOFError: the other side is gone.
    """
    while view:
        if deadline is not None:
            channel.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            count = channel.recv_into(view)
        except BlockingIOError as error:
            raise TimeoutError("the deadline has passed") from error
        except ConnectionError as error:
            raise EOFError("the other side is gone") from error
        if not count:
            raise EOFError("the other side is gone")
        view = view[count:]
