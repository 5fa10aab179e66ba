"""What a video may cost, how it is sampled, and which containers are opened at all."""

from typing import Final

import msgspec

__all__ = ["HEAD_BYTES", "Sampling", "VideoLimits", "container_of"]

HEAD_BYTES: Final = 512
_PICTURES: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"})


class VideoLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a video of unknown origin may use.

    Attributes:
        max_bytes: of the file.
        max_duration_s: of the video, whatever its header says.
        max_pixels: of one frame.
        max_frames: of the video.
        memory_bytes: address space of the decoding process beyond what it has when it begins. Enforced on Linux.
        stall_s: seconds by the clock without any sign of the decoding process, after which it is killed.
        cpu_factor: seconds of processor time for each second of `max_duration_s`, and 60 on top.
    """

    max_bytes: int = 64 * 2**30
    max_duration_s: float = 12 * 3600.0
    max_pixels: int = 7680 * 4320
    max_frames: int = 3_000_000
    memory_bytes: int = 2**30
    stall_s: float = 30.0
    cpu_factor: float = 1.0

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_pixels, self.max_frames) < 1:
            raise ValueError(f"limits: expected at least 1 byte, pixel and frame, found {self}")
        if self.memory_bytes < 2**26 or min(self.max_duration_s, self.stall_s, self.cpu_factor) <= 0:
            raise ValueError(f"limits: expected 64 MiB of memory or more and positive times, found {self}")


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Which frames become keyframes.

    Attributes:
        interval_s: within a scene, a frame is looked at again after this time; kept if it changed.
        settle_s: a scene's first keyframe is taken this long after its cut, or at its end if that is earlier:
            the first frames after a cut are often blurred or half faded.
        cut: least change between two frames that is a cut: mean absolute difference of levels 0..255 of the
            frame at 32 x 32.
        cut_ratio: and at least this many times the median change of the last frames, so that motion is no cut.
        still: a frame that differs by less than this from the last keyframe is not a new one.
        max_key_pixels: keyframes are made smaller to this.
    """

    interval_s: float = 4.0
    settle_s: float = 0.25
    cut: float = 12.0
    cut_ratio: float = 4.0
    still: float = 3.0
    max_key_pixels: int = 1920 * 1088

    def __post_init__(self) -> None:
        if self.interval_s <= 0 or self.settle_s < 0 or min(self.cut, self.cut_ratio, self.still) < 0:
            raise ValueError(f"sampling: expected a positive interval and nothing negative, found {self}")
        if self.max_key_pixels < 1024:
            raise ValueError(f"max_key_pixels: expected at least 1024, found {self.max_key_pixels}")


def container_of(head: bytes) -> str | None:
    """Return FFmpeg's name of the container that a file's first `HEAD_BYTES` belong to, `None` for another.

    HEIC and AVIF pictures are in the same container as MP4; their brands say that they are pictures.

    Only these containers are opened, each with its own demuxer. FFmpeg would also follow play lists, which name
    further files and addresses.
    """
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURES:
        return None
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}:
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:3] == b"FLV":
        return "flv"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] == b"\x00\x00\x01\xba":
        return "mpeg"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "mpegts"
    return None
