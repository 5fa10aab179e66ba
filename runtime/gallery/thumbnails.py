"""Small copies of indexed pictures, made when they are asked for and kept in memory up to a bound."""

import io
import os
import threading
from collections import OrderedDict
from typing import Final

import msgspec

from pocketlens.core.decode import upright_image
from pocketlens.core.errors import PictureError
from pocketlens.core.preprocess import PreprocessSpec, read_bytes

__all__ = ["PREVIEW_PX", "THUMBNAIL_PX", "Thumbnails"]

THUMBNAIL_PX: Final = 320
PREVIEW_PX: Final = 1280
"""The longer side of what a card and what the large view shows."""
_CACHE_BYTES: Final = 64 * 2**20
_QUALITY: Final = 82
# Each may hold a decoded picture of the spec's largest size.
_AT_ONCE: Final = 2

_Key = tuple[str, int, int, int]


class Thumbnails:
    """JPEG copies of pictures.

    Args:
        spec: whose formats and limits hold; the gate before the decoder is the usual one.
        cache_bytes: how much is kept; what was not asked for longest goes first.
    """

    def __init__(self, spec: PreprocessSpec, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._spec = spec
        self._limit = cache_bytes
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._bytes = 0
        self._generation = 0
        self._lock = threading.Lock()
        self._working = threading.BoundedSemaphore(_AT_ONCE)

    @property
    def bytes_kept(self) -> int:
        """How much memory the copies take."""
        return self._bytes

    def jpeg(self, path: str, side_px: int) -> bytes:
        """Return the picture at `path` as a JPEG file of at most `side_px` x `side_px` pixels, without metadata.

        Raises:
            PictureError: it is gone, a link, or refused.
        """
        key = _key(path, side_px)
        with self._lock:
            generation = self._generation
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._working:
            data = self._made(path, side_px)
        with self._lock:
            # What was forgotten while it was being made must not come back.
            if generation == self._generation and key not in self._kept:
                self._keep(key, data)
        return data

    def forget(self) -> None:
        """Drop every copy, as after an erasure."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
            self._generation += 1

    def _made(self, path: str, side_px: int) -> bytes:
        # Nothing is learned from these pixels, so libjpeg may leave out what would not be seen.
        spec = msgspec.structs.replace(self._spec, height_px=side_px, width_px=side_px, jpeg_scaling="dct")
        image = upright_image(read_bytes(path, max_bytes=spec.max_bytes), spec)
        image.thumbnail((side_px, side_px))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()

    def _keep(self, key: _Key, data: bytes) -> None:
        self._kept[key] = data
        self._bytes += len(data)
        while self._bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)


def _key(path: str, side_px: int) -> _Key:
    """Return what tells a copy apart: another file under the same name is another picture."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError) as error:
        raise _refused(path, "missing", "no such file") from error
    if os.path.islink(path):
        # An index holds no links: one that stands there now may lead anywhere.
        raise _refused(path, "not_a_file", "a link")
    return path, status.st_size, status.st_mtime_ns, side_px


def _refused(path: str, kind: str, found: str) -> PictureError:
    return PictureError(
        path,
        kind=kind,
        expected="the file that was indexed",
        found=found,
        remedy="Run `pocketlens index` again to bring the store up to date.",
    )
