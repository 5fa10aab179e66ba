"""Which frames of a stream are cuts and which become keyframes, frame by frame, holding two of them."""

from collections import deque
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Final, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketlens.runtime.video.limits import Sampling

__all__ = ["Keyframe", "Seen", "keyframes"]

_T = TypeVar("_T")
_RECENT: Final = 15
_LEAST_SCENE_S: Final = 0.12  # a flash of a frame or two ends no scene


class Seen(NamedTuple, Generic[_T]):
    """A frame that went by: when it is shown, a thumbnail int16 `(32, 32, 3)`, and the frame itself."""

    time_s: float
    thumbnail: NDArray[np.int16]
    frame: _T


class Keyframe(NamedTuple, Generic[_T]):
    """A frame that stands for what begins at `start_s`; `time_s` is its own time, `cut` whether a cut is there."""

    start_s: float
    time_s: float
    cut: bool
    frame: _T


def keyframes(frames: Iterable[Seen[_T]], sampling: Sampling) -> Iterator[Keyframe[_T]]:
    """Yield the keyframes of `frames`, in order; see `Sampling` for the rules."""
    recent: deque[float] = deque(maxlen=_RECENT)
    last: Seen[_T] | None = None
    start_s, cut, taken = 0.0, False, True
    due_s, key = 0.0, None
    for seen in frames:
        change = _difference(seen.thumbnail, last.thumbnail) if last is not None else float("inf")
        usual = median(recent) if recent else 0.0
        is_cut = change >= max(sampling.cut, sampling.cut_ratio * usual)
        if last is None or (is_cut and seen.time_s - start_s >= _LEAST_SCENE_S):
            if last is not None and not taken:
                yield Keyframe(start_s, last.time_s, cut, last.frame)
            start_s, cut, taken = seen.time_s, last is not None, False
            due_s = seen.time_s + sampling.settle_s
            recent.clear()
        elif last is not None:
            recent.append(change)
        if seen.time_s >= due_s:
            if not taken:
                yield Keyframe(start_s, seen.time_s, cut, seen.frame)
                taken, key = True, seen.thumbnail
            elif key is None or _difference(seen.thumbnail, key) >= sampling.still:
                yield Keyframe(seen.time_s, seen.time_s, False, seen.frame)
                key = seen.thumbnail
            due_s = seen.time_s + sampling.interval_s
        last = seen
    if last is not None and not taken:
        yield Keyframe(start_s, last.time_s, cut, last.frame)


def _difference(a: NDArray[np.int16], b: NDArray[np.int16]) -> float:
    return float(np.abs(a - b).mean())
