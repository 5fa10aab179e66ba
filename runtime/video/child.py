"""The decoding process: python -m pocketlens.runtime.video.child SOCKET FILE ORDER.

It is handed an open file and never sees a path. It imports what it needs, limits itself, decodes frame by
frame and sends the keyframes. From then on it can open no file and reserve no memory beyond its limit. What
it cannot answer for (a crash, a loop) ends it, and the host says so.
What it says is in `pocketlens.runtime.video.protocol`. This is not a jail: it runs as the same user.
"""

import importlib
import math
import os
import pkgutil
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import av
import av.error
import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import PictureError
from pocketlens.runtime.limits import address_space, limit
from pocketlens.runtime.picture_worker.protocol import FRAME, Refused
from pocketlens.runtime.video.limits import VideoLimits
from pocketlens.runtime.video.protocol import DONE, HEAD, VideoOrder
from pocketlens.runtime.video.sampling import Keyframe, Seen, keyframes

__all__ = ["main"]

_THUMBNAIL: Final = 32
_SIGN_S: Final = 1.0
_BAD_PACKETS: Final = 2000  # one after the other, and the rest is given up


def main() -> None:
    """Decode the file whose number is the second argument onto the socket whose number is the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the host, which ends this process
    channel = socket.socket(fileno=int(sys.argv[1]))
    order = msgspec.json.decode(sys.argv[3], type=VideoOrder)
    av.logging.set_level(av.logging.PANIC)
    with os.fdopen(int(sys.argv[2]), "rb") as file:
        _load_modules()
        _confine(order.limits)
        try:
            _Decoding(file, order, channel).run()
        except PictureError as error:
            words = Refused(error.kind, error.expected, error.found, error.remedy)
            _send(channel, b"E", msgspec.json.encode(words))
        except MemoryError:
            words = Refused("too_many_pixels", "a video that decodes within its memory", "no memory left", _REMEDY)
            _send(channel, b"E", msgspec.json.encode(words))
        except (BrokenPipeError, ConnectionError):
            pass
    os._exit(0)


_REMEDY: Final = "Raise the limits for videos that you trust, or cut the video."


def _load_modules() -> None:
    """Import all of PyAV now, which imports parts of itself at first use: later no file can be opened."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _confine(limits: VideoLimits) -> None:
    cpu_s = int(60 + limits.cpu_factor * limits.max_duration_s)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, cpu_s, grace=1)
    limit(resource.RLIMIT_FSIZE, 0)
    if size := address_space():
        limit(resource.RLIMIT_AS, size + limits.memory_bytes)
    limit(resource.RLIMIT_NOFILE, 0)


def _send(channel: socket.socket, kind: bytes, *parts: bytes) -> None:
    channel.sendall(FRAME.pack(kind, sum(len(part) for part in parts)))
    for part in parts:
        channel.sendall(part)


def _refused(kind: str, expected: str, found: str, remedy: str = _REMEDY) -> PictureError:
    return PictureError("the video", kind=kind, expected=expected, found=found, remedy=remedy)


class _Decoding:
    def __init__(self, file: Any, order: VideoOrder, channel: socket.socket) -> None:
        self._order = order
        self._channel = channel
        self._frames = 0
        self._bad = 0
        self._end_s = 0.0
        self._signed = time.monotonic()
        try:
            self._container = av.open(file, format=order.container, metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise _refused("corrupt", "a video that FFmpeg can open", _said(error), "Make it anew.") from error

    def run(self) -> None:
        if not self._container.streams.video:
            raise _refused(
                "unknown_type",
                "a video stream",
                f"{len(self._container.streams)} streams, none of them video",
                "Hand in a file with moving pictures.",
            )
        stream = self._container.streams.video[0]
        limits = self._order.limits
        if self._container.duration and self._container.duration / av.time_base > limits.max_duration_s:
            raise self._too_long(self._container.duration / av.time_base)
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        stream.thread_type = "NONE"
        for key in keyframes(self._seen(stream), self._order.sampling):
            self._send_key(key)
        if not self._frames:
            raise _refused("corrupt", "frames that can be decoded", f"none, {self._bad} bad packets", "Make it anew.")
        _send(self._channel, b"D", DONE.pack(self._end_s, self._frames, self._bad))

    def _seen(self, stream: Any) -> Iterator[Seen[Any]]:
        """Yield the decoded frames with their times from 0, never going back."""
        limits, origin = self._order.limits, None
        usual_s = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        time_s = -usual_s
        for frame in self._decoded(stream):
            self._frames += 1
            if self._frames > limits.max_frames:
                raise _refused("too_large", f"at most {limits.max_frames:,} frames", "more")
            self._check_size(frame.width, frame.height)
            # Some containers have no time for some frames, and damaged ones have wrong times.
            shown_s = frame.time if frame.time is not None and math.isfinite(frame.time) else None
            if origin is None:
                origin = shown_s or 0.0
            time_s = max(time_s, shown_s - origin) if shown_s is not None else time_s + usual_s
            if time_s > limits.max_duration_s:
                raise self._too_long(time_s)
            lasts_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else usual_s
            self._end_s = max(self._end_s, time_s + min(lasts_s, 60.0))
            small = frame.reformat(width=_THUMBNAIL, height=_THUMBNAIL, format="rgb24", interpolation="AREA")
            yield Seen(time_s, small.to_ndarray().astype(np.int16), frame)
            if time.monotonic() - self._signed > _SIGN_S:
                self._signed = time.monotonic()
                _send(self._channel, b"T")

    def _decoded(self, stream: Any) -> Iterator[Any]:
        """Yield frames; packets that cannot be decoded are counted and left out, like a gap in the file."""
        packets = self._container.demux(stream)
        row = 0
        while row < _BAD_PACKETS:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
                row = 0
            except EOFError:
                return
            except (av.error.FFmpegError, ValueError) as error:
                row += 1
                self._bad += 1
                if isinstance(error, MemoryError):
                    raise

    def _check_size(self, width: int, height: int) -> None:
        most = self._order.limits.max_pixels
        if width * height > most:
            raise _refused("too_many_pixels", f"frames of at most {most:,} pixels", f"{width} x {height}")

    def _too_long(self, seconds: float) -> PictureError:
        most = self._order.limits.max_duration_s
        return _refused("too_large", f"at most {most:g} s of video", f"{seconds:.0f} s or more")

    def _send_key(self, key: Keyframe[Any]) -> None:
        pixels = _upright(key.frame, self._order.sampling.max_key_pixels)
        head = HEAD.pack(key.start_s, key.time_s, key.cut, *pixels.shape[:2])
        _send(self._channel, b"K", head, pixels.tobytes())


def _upright(frame: Any, most: int) -> NDArray[np.uint8]:
    """Return a frame as people see it: `(H, W, 3)` uint8, square pixels, turned as its metadata says, not too large."""
    width, height = frame.width, frame.height
    shape = getattr(frame, "sample_aspect_ratio", None)
    if shape and 0.1 < float(shape) < 10:
        width = max(1, round(width * float(shape)))
    scale = min(1.0, math.sqrt(most / (width * height)))
    size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    pixels = frame.reformat(format="rgb24", interpolation="AREA" if scale < 1 else "BICUBIC", **size).to_ndarray()
    # The display matrix turns anticlockwise, as rot90 does.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


if __name__ == "__main__":
    main()
