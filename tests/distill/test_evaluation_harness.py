from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlens.core.errors import DataError
from pocketlens.distill.evaluation import Evaluation, JudgedCaption, evaluate, token_identity
from pocketlens.distill.scenes import KINDS, Scene, SceneSample, captions, mentioned_kinds, sample_scene

COUNT = 12


class Oracle:
    """Knows the truth: a picture is its own number and its kind, a text what it was written for."""

    name = "oracle"
    captions_pictures = True

    def __init__(self, folder: Path, samples: Sequence[SceneSample]) -> None:
        self._index = {folder / sample.image: row for row, sample in enumerate(samples)}
        self._owner = {text: row for row, sample in enumerate(samples) for text in sample.captions}
        self._samples = samples

    def embed_images(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        rows = np.zeros((len(paths), COUNT + len(KINDS)), dtype=np.float32)
        for row, path in zip(rows, paths, strict=True):
            row[self._index[path]] = 0.8
            row[COUNT + KINDS.index(self._samples[self._index[path]].kinds[0])] = 0.6
        return rows

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), COUNT + len(KINDS)), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            if text in self._owner:
                row[self._owner[text]] = 1.0
            else:
                row[[COUNT + KINDS.index(kind) for kind in mentioned_kinds(text)]] = 1.0
        return rows

    def captions(self, paths: Sequence[Path]) -> list[JudgedCaption]:
        rows = [self._index[path] for path in paths]
        return [JudgedCaption(self._samples[row].captions[0], (row, 2)) for row in rows]


class Liar(Oracle):
    """Tells of each picture what is true of the next one."""

    name = "liar"

    def embed_images(self, paths: Sequence[Path]) -> NDArray[np.float32]:
        return np.roll(super().embed_images(paths), 1, axis=1)

    def captions(self, paths: Sequence[Path]) -> list[JudgedCaption]:
        return [JudgedCaption("a zebra", (*caption.token_ids, 9)) for caption in super().captions(paths)]


@pytest.fixture(scope="module")
def folder() -> Path:
    # The oracle knows its pictures by name and never opens one.
    return Path("scenes")


@pytest.fixture(scope="module")
def samples() -> list[SceneSample]:
    return [_sample(sample_scene(seed, split="val"), f"val/{seed:06d}") for seed in range(COUNT)]


def _sample(scene: Scene, name: str) -> SceneSample:
    return SceneSample(
        id=name,
        image=f"{name}.jpg",
        captions=captions(scene),
        kinds=tuple(sorted({group.kind for group in scene.groups})),
        objects=scene.groups,
        background=scene.background,
        light=scene.light,
        seed=scene.seed,
    )


@pytest.fixture(scope="module")
def best(folder: Path, samples: list[SceneSample]) -> Evaluation:
    return evaluate(Oracle(folder, samples), samples, folder, seed=0)


def test_a_perfect_system_scores_perfectly(best: Evaluation, samples: list[SceneSample]) -> None:
    alone = sum(len(sample.kinds) == 1 for sample in samples)
    assert 0 < alone < COUNT
    for name in ("r1_i2t", "r1_t2i", "r5_i2t", "r10_t2i", "zero_shot"):
        assert (best.figures[name].value, best.figures[name].low) == (1.0, 1.0)
    assert best.figures["zero_shot"].samples == alone
    assert best.figures["r1_t2i"].samples == COUNT
    assert best.figures["hallucination"].value == 0.0
    assert best.figures["missed"].value == 0.0
    assert best.figures["bleu4"].value == pytest.approx(100.0)
    assert best.figures["cider"].value > 200.0


def test_a_system_that_is_always_wrong_scores_nothing(folder: Path, samples: list[SceneSample]) -> None:
    worst = evaluate(Liar(folder, samples), samples, folder, seed=0)
    for name in ("r1_i2t", "r1_t2i", "zero_shot", "hallucination"):
        assert worst.figures[name].value == 0.0
    assert worst.figures["missed"].value == 1.0
    assert worst.figures["bleu4"].value < 0.1
    assert worst.figures["caption_length"].value == 2.0


def test_zero_shot_is_left_out_without_a_picture_of_one_kind(folder: Path, samples: list[SceneSample]) -> None:
    pairs = [sample for sample in samples if len(sample.kinds) == 2]
    assert pairs
    result = evaluate(Oracle(folder, samples), pairs, folder, seed=0)
    assert "zero_shot" not in result.figures
    assert result.sample_ids == tuple(sample.id for sample in pairs)


def test_json_gives_the_same_evaluation_back(best: Evaluation) -> None:
    assert Evaluation.from_json(best.to_json()) == best


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"subject": "x", "extra": 1}', b"\xff\xfe"])
def test_json_of_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"eval\.json"):
        Evaluation.from_json(data, source="eval.json")


def test_the_manifest_gets_every_figure(best: Evaluation) -> None:
    quality = best.quality()
    assert {record.metric for record in quality} == set(best.figures)
    for record in quality:
        figure = best.figures[record.metric]
        assert record.subject == "oracle"
        assert (record.value, record.low, record.high, record.samples) == msgspec.structs.astuple(figure)


def test_another_seed_moves_intervals_and_not_values(
    best: Evaluation, folder: Path, samples: list[SceneSample]
) -> None:
    other = evaluate(Oracle(folder, samples), samples, folder, seed=1)
    assert other.figures["cider"].value == best.figures["cider"].value
    assert other.figures["cider"].low != best.figures["cider"].low
    assert evaluate(Oracle(folder, samples), samples, folder, seed=0) == best


def test_token_identity_is_the_share_of_equal_captions(best: Evaluation) -> None:
    changed = list(best.token_ids)
    changed[3] = (*changed[3], 7)
    changed[8] = changed[8][:-1]
    changed[9] = ()
    other = msgspec.structs.replace(best, token_ids=tuple(changed))
    assert token_identity(best, best) == 1.0
    assert token_identity(best, other) == pytest.approx((COUNT - 3) / COUNT)


def test_token_identity_of_different_pictures_or_without_ids_is_refused(best: Evaluation) -> None:
    with pytest.raises(DataError, match="0 and 12 captions"):
        token_identity(msgspec.structs.replace(best, token_ids=()), best)
    with pytest.raises(DataError, match="different"):
        token_identity(best, msgspec.structs.replace(best, sample_ids=best.sample_ids[::-1]))


def test_progress_counts_pictures_to_the_end(folder: Path, samples: list[SceneSample]) -> None:
    calls: list[tuple[int, int]] = []
    system = Oracle(folder, samples)
    evaluate(system, samples * 8, folder, seed=0, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(64, 96), (96, 96)]


def test_no_samples_and_samples_without_captions_are_refused(folder: Path, samples: list[SceneSample]) -> None:
    system = Oracle(folder, samples)
    with pytest.raises(DataError, match="found none"):
        evaluate(system, [], folder, seed=0)
    bare = msgspec.structs.replace(samples[1], captions=())
    with pytest.raises(DataError, match=r"no caption for val/000001"):
        evaluate(system, [samples[0], bare], folder, seed=0)
