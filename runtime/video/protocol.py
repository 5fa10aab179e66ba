"""What the decoding process of videos is told and what it answers; frames are those of the picture worker's protocol.

`K` a keyframe: `HEAD`, then uint8 RGB in C order. `T` a sign of life. `D` done: `DONE`. `E` a `Refused` as JSON.
"""

import struct
from typing import Final

import msgspec

from pocketlens.runtime.video.limits import Sampling, VideoLimits

__all__ = ["DONE", "HEAD", "VideoOrder"]

HEAD: Final = struct.Struct("<dd?II")
"""Start and own time in seconds, whether a cut is at the start, height and width."""
DONE: Final = struct.Struct("<dQQ")
"""End in seconds, frames decoded, packets that could not be."""


class VideoOrder(msgspec.Struct, frozen=True):
    """What the process is to do with the file that it was handed."""

    container: str
    limits: VideoLimits
    sampling: Sampling
