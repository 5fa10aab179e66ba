"""Videos rendered here, whose cuts are known: found within a frame, few vectors, typed refusals."""

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.core.errors import PictureError
from pocketlens.runtime import Lens, Store, index_folder, load
from pocketlens.runtime.video import Sampling, VideoLimits, VideoReader, read_pieces, video_segments
from pocketlens.runtime.video.limits import container_of
from pocketlens.runtime.video.sampling import Seen, keyframes

av = pytest.importorskip("av", reason="the extra [video] is not installed")

HEIGHT, WIDTH, RATE = 72, 96, 25
Pixels = NDArray[np.uint8]


def scene(seed: int) -> Pixels:
    """A scene of four flat rectangles, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    for row in range(2):
        for column in range(2):
            colour = rng.integers(0, 256, 3)
            picture[row * 36 : row * 36 + 36, column * 48 : column * 48 + 48] = colour
    return picture


def moving(seed: int, count: int) -> Iterable[Pixels]:
    """The scene with a white square that walks through it."""
    for index in range(count):
        picture = scene(seed).copy()
        left = (4 + 2 * index) % (WIDTH - 16)
        picture[20:36, left : left + 16] = 255
        yield picture


def write(
    path: Path, frames: Iterable[Pixels], *, times: Sequence[int] | None = None, codec: str = "mpeg4", gop: int = 12
) -> Path:
    """Write a video at 25 frames a second, or with `times` in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.gop_size = gop
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def five_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scenes of 40, 26, 61, 13 and 50 frames with something moving in each."""
    counts = (40, 26, 61, 13, 50)
    frames = (pixels for seed, count in enumerate(counts) for pixels in moving(seed, count))
    return write(tmp_path_factory.mktemp("video") / "five.mp4", frames)


@pytest.fixture(scope="module")
def lens(bundle_path: Path) -> Lens:
    return load(bundle_path, threads=1, tuned=False)


def _cuts(path: Path, **options: object) -> list[float]:
    return [piece.start_s for piece in read_pieces(path, **options) if piece.cut]  # type: ignore[arg-type]


def test_every_cut_is_found_within_a_frame_and_motion_is_none(five_scenes: Path) -> None:
    expected = np.cumsum([40, 26, 61, 13]) / RATE
    np.testing.assert_allclose(_cuts(five_scenes), expected, atol=1 / RATE)


def test_pieces_cover_the_video_without_gaps(five_scenes: Path) -> None:
    pieces = list(read_pieces(five_scenes, sampling=Sampling(interval_s=0.5)))
    assert pieces[0].start_s == 0
    assert [piece.end_s for piece in pieces[:-1]] == [piece.start_s for piece in pieces[1:]]
    assert pieces[-1].end_s == pytest.approx(190 / RATE, abs=1 / RATE)
    assert all(piece.start_s <= piece.time_s <= piece.end_s for piece in pieces)


def test_the_keyframe_shows_its_scene(five_scenes: Path) -> None:
    pieces = [piece for piece in read_pieces(five_scenes) if piece.cut or piece.start_s == 0]
    for seed, piece in enumerate(pieces):
        assert piece.pixels.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(piece.pixels[60:70].astype(int) - scene(seed)[60:70]).mean() < 12


@pytest.mark.parametrize("extension", ["mkv", "avi", "ts", "webm"])
def test_other_containers_are_read(tmp_path: Path, extension: str) -> None:
    frames = [*moving(1, 20), *moving(2, 20)]
    codec = "libvpx" if extension == "webm" else "mpeg4"
    path = write(tmp_path / f"two.{extension}", frames, codec=codec)
    np.testing.assert_allclose(_cuts(path), [20 / RATE], atol=1.5 / RATE)


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [*range(0, 1000, 40), *range(1000, 3000, 200), *range(3000, 4000, 33)]
    seeds = [0 if ms < 1800 else 1 if ms < 3330 else 2 for ms in times]
    path = write(tmp_path / "vfr.mkv", (scene(seed) for seed in seeds), times=times)
    expected = [min(t for t, s in zip(times, seeds, strict=True) if s == seed) / 1000 for seed in (1, 2)]
    np.testing.assert_allclose(_cuts(path), expected, atol=0.002)


def test_a_still_minute_gives_one_vector(tmp_path: Path, lens: Lens) -> None:
    path = write(tmp_path / "still.mkv", (scene(3) for _ in range(600)), times=range(0, 60_000, 100), gop=250)
    (segment,) = video_segments(lens, path, captions=False)
    assert segment.start_s == 0
    assert segment.end_s == pytest.approx(60, abs=0.2)
    assert segment.caption is None
    assert np.linalg.norm(segment.embedding) == pytest.approx(1, abs=1e-5)


def test_a_scene_that_comes_back_is_one_segment_with_two_spans(tmp_path: Path, lens: Lens) -> None:
    frames = [pixels for seed in (5, 6, 5) for pixels in [scene(seed)] * RATE]
    path = write(tmp_path / "back.mp4", frames)
    segments = sorted(video_segments(lens, path, same_cosine=0.9999), key=lambda s: s.start_s)
    spans = [[round(t, 1) for span in segment.spans for t in span] for segment in segments]
    assert spans == [[0, 1, 2, 3], [1, 2]]
    for segment, seed in zip(segments, (5, 6), strict=True):
        assert segment.caption is not None
        assert float(segment.embedding @ lens.embed_image(scene(seed))) > 0.99


def test_an_indexed_video_is_found_with_its_times(five_scenes: Path, lens: Lens, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "five.MP4").write_bytes(five_scenes.read_bytes())
    (folder / "broken.mov").write_bytes(b"\x00\x00\x00\x18ftypqt  " + bytes(600))
    reader = VideoReader(lens, same_cosine=0.9999)
    with Store.open(tmp_path / "store.sqlite", model_version=lens.model_version, dim=lens.dim) as store:
        first = index_folder(lens, store, folder, readers=[reader])
        assert (first.added, [item.kind for item in first.refused]) == (1, ["corrupt"])
        again = index_folder(lens, store, folder, readers=[reader])
        assert (again.added, again.unchanged) == (0, 1)
        query = next(s for s in video_segments(lens, five_scenes, same_cosine=0.9999) if 2.6 < s.start_s < 2.7)
        hit = store.search(query.embedding, k=1)[0]
        assert (hit.path, hit.modality) == (str(folder / "five.MP4"), "video")
        assert (hit.at_ms, hit.until_ms) == (2640, 5080)  # frames 66 to 127 of 25 a second


def test_videos_stay_when_the_extra_is_missing_later(five_scenes: Path, lens: Lens, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "five.MP4").write_bytes(five_scenes.read_bytes())
    (folder / "other.mp4").write_bytes(five_scenes.read_bytes())
    (folder / "broken.mov").write_bytes(b"\x00\x00\x00\x18ftypqt  " + bytes(600))
    with Store.open(tmp_path / "store.sqlite", model_version=lens.model_version, dim=lens.dim) as store:
        index_folder(lens, store, folder, readers=[VideoReader(lens, same_cosine=0.9999)])
        rows, query = len(store), lens.embed_image(scene(1))
        before = [(hit.path, hit.at_ms, hit.score) for hit in store.search(query, k=100)]
        assert len(before) == rows >= 2

        # As the command line does without PyAV: no reader.
        for time_ns in (None, 1):
            if time_ns is not None:
                os.utime(folder / "five.MP4", ns=(time_ns, time_ns))
            without = index_folder(lens, store, folder)
            assert (without.added, without.removed) == (0, 0)
            assert [(hit.path, hit.at_ms, hit.score) for hit in store.search(query, k=100)] == before
            assert [item.path for item in store.refused()] == [str(folder / "broken.mov")]

        (folder / "other.mp4").unlink()
        (folder / "broken.mov").unlink()
        assert index_folder(lens, store, folder).removed == 1
        assert {hit.path for hit in store.search(query, k=100)} == {str(folder / "five.MP4")}
        assert store.refused() == []


def _turn(path: Path, matrix: tuple[int, ...]) -> None:
    """Write another display matrix (ISO/IEC 14496-12, 8.3.2) into the track header of an MP4 file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    assert data[at] == 0  # version 0: the matrix begins 40 bytes behind the version
    struct.pack_into(
        ">9i", data, at + 40, *(value << (30 if index % 3 == 2 else 16) for index, value in enumerate(matrix))
    )
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [((0, 1, 0, -1, 0, 0, 0, 0, 1), 3), ((-1, 0, 0, 0, -1, 0, 0, 0, 1), 2), ((0, -1, 0, 1, 0, 0, 0, 0, 1), 1)],
    ids=["clockwise", "upside down", "anticlockwise"],
)
def test_the_rotation_in_the_metadata_is_applied(tmp_path: Path, matrix: tuple[int, ...], turn: int) -> None:
    path = write(tmp_path / "turned.mp4", [scene(4)] * 10)
    _turn(path, matrix)
    (piece,) = read_pieces(path)
    upright = np.rot90(scene(4), turn)
    assert piece.pixels.shape == upright.shape
    assert np.abs(piece.pixels.astype(int) - upright).mean() < 8


def test_a_large_frame_is_made_smaller(five_scenes: Path) -> None:
    piece = next(iter(read_pieces(five_scenes, sampling=Sampling(max_key_pixels=2048))))
    height, width = piece.pixels.shape[:2]
    assert 1800 < height * width <= 2200
    assert width / height == pytest.approx(WIDTH / HEIGHT, rel=0.05)


def _kind(path: Path, **options: object) -> str:
    with pytest.raises(PictureError) as caught:
        list(read_pieces(path, **options))  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return caught.value.kind


def _text(path: Path) -> None:
    path.write_bytes(b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n" * 20)


def _empty(path: Path) -> None:
    path.touch()


def _sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _head_only(path: Path) -> None:
    path.write_bytes(b"\x00\x00\x00\x18ftypisom" + bytes(600))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(_text, "unknown_type"), (_empty, "empty"), (_sound, "unknown_type"), (_head_only, "corrupt")],
)
def test_what_is_no_video_is_refused(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    path = tmp_path / "file.mp4"
    make(path)
    assert _kind(path) == kind


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    assert _kind(tmp_path / "gone.mp4") == "missing"
    assert _kind(tmp_path) == "not_a_file"


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        (VideoLimits(max_bytes=1000), "too_large"),
        (VideoLimits(max_duration_s=3.0), "too_large"),
        (VideoLimits(max_frames=50), "too_large"),
        (VideoLimits(max_pixels=WIDTH * HEIGHT - 1), "too_many_pixels"),
    ],
)
def test_a_limit_ends_in_a_typed_refusal(five_scenes: Path, limits: VideoLimits, kind: str) -> None:
    assert _kind(five_scenes, limits=limits) == kind


def test_a_duration_that_the_header_hides_is_noticed_while_decoding(tmp_path: Path) -> None:
    path = write(tmp_path / "long.ts", [*moving(1, 75), *moving(2, 75)])
    assert _kind(path, limits=VideoLimits(max_duration_s=2.0)) == "too_large"


def test_a_process_that_says_nothing_is_killed(five_scenes: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.mp4"
    slow.write_bytes(five_scenes.read_bytes())
    assert _kind(slow, limits=VideoLimits(stall_s=1e-9)) in {"corrupt"}


def test_a_reader_that_stops_early_ends_the_process(five_scenes: Path) -> None:
    pieces = read_pieces(five_scenes)
    next(pieces)
    pieces.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_gives_pieces_or_a_typed_refusal(five_scenes: Path, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = np.frombuffer(five_scenes.read_bytes(), np.uint8).copy()
    places = rng.integers(0, len(data), 200)
    data[places] = rng.integers(0, 256, 200)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data.tobytes()[: len(data) if seed % 2 else len(data) // 2])
    pieces = []
    with suppress(PictureError):
        pieces = list(read_pieces(path, limits=VideoLimits(stall_s=20)))
        assert pieces
    assert all(0 <= p.start_s <= p.time_s <= p.end_s for p in pieces)


def test_a_truncated_stream_gives_what_is_there(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.ts", [*moving(1, 50), *moving(2, 50), *moving(3, 50)])
    data = whole.read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(data[: len(data) // 2])
    pieces = list(read_pieces(cut))
    assert 1 <= sum(piece.cut for piece in pieces) + 1 < 3
    assert 1.5 < pieces[-1].end_s < 4.5


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x00\x00\x00\x20ftypisom", "mov"),
        (b"\x00\x00\x00\x20ftypheic", None),
        (b"\x00\x00\x00\x20ftypavif", None),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"RIFF\x00\x00\x00\x00AVI ", "avi"),
        (b"RIFF\x00\x00\x00\x00WEBP", None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"ffconcat version 1.0\nfile x", None),
        (b"", None),
    ],
)
def test_the_container_is_told_by_its_first_bytes(head: bytes, name: str | None) -> None:
    assert container_of(head) == name


def _seen(levels: Sequence[int], rate: float = 10.0) -> list[Seen[int]]:
    return [Seen(i / rate, np.full((32, 32, 3), level, np.int16), level) for i, level in enumerate(levels)]


def test_a_slow_fade_is_no_cut_and_is_sampled_by_time() -> None:
    keys = list(keyframes(_seen(range(0, 100)), Sampling(interval_s=2.0, settle_s=0.0)))
    assert not any(key.cut for key in keys)
    assert [key.start_s for key in keys] == pytest.approx([0, 2, 4, 6, 8])


def test_a_scene_shorter_than_its_settling_time_keeps_its_last_frame() -> None:
    keys = list(keyframes(_seen([0] * 10 + [90] * 2 + [200] * 10), Sampling(settle_s=0.5)))
    assert [(key.start_s, key.frame, key.cut) for key in keys] == [(0, 0, False), (1.0, 90, True), (1.2, 200, True)]


def test_a_flash_of_one_frame_does_not_end_a_scene_twice() -> None:
    keys = list(keyframes(_seen([50] * 10 + [255] + [50] * 10), Sampling(settle_s=0.5)))
    assert len(keys) <= 2
