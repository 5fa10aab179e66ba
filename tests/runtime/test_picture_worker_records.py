"""Each refused picture leaves exactly one record: one refusal in its place and one event."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketlens.core.errors import PictureError
from pocketlens.core.events import Event, PictureRefused
from pocketlens.runtime import Refusal, load


class Recorder:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


BAD = {1: "unknown_type", 2: "corrupt", 3: "missing", 5: "empty", 6: "unknown_type", 7: "unknown_type", 9: "bad_shape"}


def _pictures() -> Iterator[object]:
    good = _png()
    text = b"no picture"
    yield from (good, text, good[:80], "absent.png", good, b"", text, text, good)
    yield np.zeros((4, 4), np.uint8)
    yield good


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_bad_pictures_among_good_ones_leave_one_record_each(bundle_path: Path, batch_size: int) -> None:
    sink = Recorder()
    lens = load(bundle_path, threads=1, sink=sink)
    results = list(lens.embed_images(_pictures(), batch_size=batch_size))  # type: ignore[arg-type]
    refusals = {result.index: result.error.kind for result in results if isinstance(result, Refusal)}
    assert refusals == BAD
    assert [at for at, result in enumerate(results) if isinstance(result, Refusal)] == list(BAD)
    assert [event.kind for event in sink.events if isinstance(event, PictureRefused)] == list(BAD.values())


def test_a_single_refused_picture_leaves_one_record_too(bundle_path: Path) -> None:
    sink = Recorder()
    lens = load(bundle_path, threads=1, sink=sink)
    with pytest.raises(PictureError):
        lens.embed_image(b"no picture")
    assert len([event for event in sink.events if isinstance(event, PictureRefused)]) == 1
