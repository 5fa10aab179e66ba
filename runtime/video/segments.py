"""Pieces of a video with embeddings, those that look the same kept once."""

import os
from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.captions import Caption
from pocketlens.runtime.lens import Lens
from pocketlens.runtime.video.limits import Sampling, VideoLimits
from pocketlens.runtime.video.reader import Piece, read_pieces

__all__ = ["SAME_COSINE", "Segment", "video_segments"]

SAME_COSINE: Final = 0.94
"""Keyframes at least as similar are one segment. A working value: what fits depends on the model."""

_WINDOW: Final = 8
_MAX_SPANS: Final = 256


class Segment(msgspec.Struct, frozen=True, eq=False):
    """What looks the same in a video, with one vector.

    Attributes:
        spans: where it is seen, seconds from the first frame, in order: `((start_s, end_s), ...)`. More than
            one where the video comes back to it.
        time_s: of the keyframe that was embedded.
        embedding: `(D,)` float32, unit norm.
        caption: of the keyframe; `None` where none was asked for.
    """

    spans: tuple[tuple[float, float], ...]
    time_s: float
    embedding: NDArray[np.float32]
    caption: Caption | None

    @property
    def start_s(self) -> float:
        """Where it is seen first."""
        return self.spans[0][0]

    @property
    def end_s(self) -> float:
        """Where the first span ends."""
        return self.spans[0][1]


def video_segments(
    lens: Lens,
    path: str | os.PathLike[str],
    *,
    captions: bool | None = None,
    same_cosine: float = SAME_COSINE,
    limits: VideoLimits = VideoLimits(),  # noqa: B008 - frozen
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> Iterator[Segment]:
    """Yield the segments of the video at `path`, with memory that does not grow with its length.

    A keyframe joins the one of the last eight segments that it is most similar to, if that is similar enough.
    So a segment is yielded once eight newer ones have begun, or at the end; in the order in which the segments
    were left.

    Args:
        lens: embeds and captions the keyframes.
        path: the video.
        captions: whether each segment gets a caption; by default if the bundle can caption.
        same_cosine: least cosine of two keyframes of one segment, in (0, 1].
        limits: what the video may cost.
        sampling: which frames become keyframes.

    Raises:
        PictureError: the file is refused; `kind` says why. It may come after some segments.
        EngineError: a graph failed.
        DataError: PyAV is not installed.
        ValueError: `same_cosine` is out of range.
    """
    if not 0 < same_cosine <= 1:
        raise ValueError(f"same_cosine: expected a number in (0, 1], found {same_cosine}")
    asked = lens.captions_pictures if captions is None else captions
    open_: list[Segment] = []  # the one that was seen last is the last
    for piece in read_pieces(path, limits=limits, sampling=sampling):
        vector = lens.embed_image(piece.pixels)
        scores = [float(segment.embedding @ vector) for segment in open_]
        best = int(np.argmax(scores)) if scores else -1
        if scores and scores[best] >= same_cosine:
            open_.append(_with(open_.pop(best), piece))
            continue
        caption = lens.caption(piece.pixels) if asked else None
        open_.append(Segment(((piece.start_s, piece.end_s),), piece.time_s, vector, caption))
        if len(open_) > _WINDOW:
            yield open_.pop(0)
    yield from open_


def _with(segment: Segment, piece: Piece) -> Segment:
    """Return `segment` seen in `piece` as well; a span that goes on is made longer."""
    spans = segment.spans
    if spans[-1][1] >= piece.start_s or len(spans) == _MAX_SPANS:
        spans = (*spans[:-1], (spans[-1][0], piece.end_s))
    else:
        spans = (*spans, (piece.start_s, piece.end_s))
    return msgspec.structs.replace(segment, spans=spans)
