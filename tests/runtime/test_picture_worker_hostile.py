"""Damaged, oversized and sound pictures in bulk: each ends as pixels or as one typed error, and the host goes on."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.bombs import SPEC as BOMB_SPEC
from benchmarks.bombs import bombs
from benchmarks.mutations import SPEC, mutation, originals
from benchmarks.valid_pictures import SPEC as VALID_SPEC
from benchmarks.valid_pictures import picture
from pocketlens.core.errors import PICTURE_KINDS, PictureError
from pocketlens.core.preprocess import preprocess
from pocketlens.runtime.picture_worker import PicturePool, PictureWorker, WorkerLimits

PATIENT = WorkerLimits(wall_s=60.0, cpu_s=60)


@pytest.fixture(scope="module")
def worker() -> Iterator[PictureWorker]:
    with PictureWorker(PATIENT) as one:
        yield one


def test_seven_hundred_mutations_over_seven_formats_end_as_pixels_or_as_one_error(worker: PictureWorker) -> None:
    files = originals()
    outcomes: Counter[str] = Counter()
    for number in range(700):
        _, data = mutation(files, 1, number)
        try:
            assert worker.prepare(data, SPEC).shape == (64, 64, 3)
            outcomes["read"] += 1
        except PictureError as error:
            outcomes[error.kind] += 1
    assert set(outcomes) <= {*PICTURE_KINDS, "read"}
    assert outcomes["read"] > 70
    assert outcomes["corrupt"] > 70
    assert worker.starts == 1 + outcomes["too_slow"] + outcomes["crashed_decoder"]


def test_mutations_are_the_same_each_time() -> None:
    files = originals()
    assert [mutation(files, 4, number) for number in range(20)] == [mutation(files, 4, number) for number in range(20)]


def _small_bombs() -> list[tuple[str, bytes]]:
    chosen, kinds = [], Counter[str]()
    for name, data in bombs():
        kind = name.split(maxsplit=1)[0] + (" of" if " of " in name else " with" if " with " in name else "")
        kinds[kind] += 1
        if kinds[kind] <= 3 and len(data) < 2_000_000:
            chosen.append((name, data))
    return chosen


def test_bombs_are_refused_before_they_are_decoded(worker: PictureWorker) -> None:
    chosen = _small_bombs()
    assert len(chosen) > 35
    for name, data in chosen:
        for prepare in (preprocess, worker.prepare):
            with pytest.raises(PictureError) as refusal:
                prepare(data, BOMB_SPEC)
            assert refusal.value.kind in {"too_many_pixels", "bad_shape", "corrupt"}, name
    assert worker.starts == 1


def test_sound_pictures_are_not_refused() -> None:
    files = [picture(7, number) for number in range(80)]
    with PicturePool(2, limits=PATIENT) as pool:
        for (name, data), pixels in zip(files, pool.prepare_all((f for _, f in files), VALID_SPEC), strict=True):
            assert isinstance(pixels, np.ndarray), f"{name}: {pixels}"
            np.testing.assert_array_equal(pixels, preprocess(data, VALID_SPEC))
