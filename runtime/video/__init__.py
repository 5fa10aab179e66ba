"""Videos as a few vectors with times: cuts found, keyframes embedded, what looks the same kept once. Extra `[video]`.

Names are loaded at first use, so that the decoding process starts with little.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.runtime.video.limits import Sampling, VideoLimits
    from pocketlens.runtime.video.reader import Piece, read_pieces
    from pocketlens.runtime.video.rows import VideoReader
    from pocketlens.runtime.video.segments import Segment, video_segments

__all__ = [
    "Piece",
    "Sampling",
    "Segment",
    "VideoLimits",
    "VideoReader",
    "read_pieces",
    "video_segments",
]

_HOMES = {
    "Piece": "reader",
    "Sampling": "limits",
    "Segment": "segments",
    "VideoLimits": "limits",
    "VideoReader": "rows",
    "read_pieces": "reader",
    "video_segments": "segments",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
