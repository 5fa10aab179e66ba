"""Videos in the store: one row for each segment, told apart by `at_ms`."""

from collections.abc import Iterator
from typing import Final

from pocketlens.runtime.folder import SourceFile
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.store.rows import Row
from pocketlens.runtime.video.limits import Sampling, VideoLimits
from pocketlens.runtime.video.segments import SAME_COSINE, video_segments

__all__ = ["SUFFIXES", "VideoReader"]

SUFFIXES: Final = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm"}
)
"""Files with another suffix are not looked at. What a file is, its first bytes say."""


class VideoReader:
    """Makes rows of videos; a `RowReader` for `index_folder(..., readers=[VideoReader(lens)])`.

    Args:
        lens: embeds and captions the keyframes.
        limits: what a video may cost.
        sampling: which frames become keyframes.
        same_cosine: least cosine of two keyframes of one segment.
    """

    suffixes: frozenset[str] = SUFFIXES

    def __init__(
        self,
        lens: Lens,
        *,
        limits: VideoLimits = VideoLimits(),  # noqa: B008 - frozen
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        same_cosine: float = SAME_COSINE,
    ) -> None:
        self._lens = lens
        self._limits = limits
        self._sampling = sampling
        self._same_cosine = same_cosine

    def rows(self, file: SourceFile, sha256: bytes) -> Iterator[Row]:
        """Yield a row for each segment of `file`; `at_ms` and `until_ms` are its first span.

        Raises:
            PictureError: the file is refused; `kind` says why.
            EngineError: a graph failed.
            DataError: PyAV is not installed.
        """
        segments = video_segments(
            self._lens, file.path, same_cosine=self._same_cosine, limits=self._limits, sampling=self._sampling
        )
        for segment in segments:
            at_ms = round(segment.start_s * 1000)
            yield Row(
                path=file.path,
                sha256=sha256,
                size_bytes=file.size_bytes,
                mtime_ns=file.mtime_ns,
                vector=segment.embedding,
                caption=segment.caption.text if segment.caption else None,
                confidence=segment.caption.confidence if segment.caption else None,
                modality="video",
                at_ms=at_ms,
                until_ms=max(at_ms, round(segment.end_s * 1000)),
            )
