"""The built-in scenes: grammar, pictures, captions and their ground truth."""

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pocketlens.core.errors import DataError
from pocketlens.distill.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    KINDS,
    RELATIONS,
    SYNONYMS,
    Scene,
    Split,
    captions,
    class_prompts,
    distinct_scenes,
    hallucinated,
    mentioned_kinds,
    objects,
    sample_scene,
)
from pocketlens.distill.scenes.backdrop import HORIZONS
from pocketlens.distill.scenes.layout import EXTENTS, visible_share
from pocketlens.distill.scenes.render import PALETTE, render
from pocketlens.distill.scenes.sprites import sprite

MANY = 800


def _many(split: Split) -> list[Scene]:
    return [sample_scene(seed, split=split) for seed in range(MANY)]


def _pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(group.kind, group.colour) for group in scene.groups}


def test_a_seed_gives_the_same_scene_and_another_seed_another() -> None:
    assert sample_scene(7, split="train") == sample_scene(7, split="train")
    assert sample_scene(7, split="train") != sample_scene(8, split="train")
    assert sample_scene(7, split="train").objects != sample_scene(7, split="val").objects


def test_there_are_more_than_a_million_scenes() -> None:
    assert distinct_scenes() > 10**6


def test_one_seventh_of_the_combinations_is_held_out_evenly() -> None:
    assert len(HELD_OUT_PAIRS) / (len(KINDS) * len(COLOURS)) == pytest.approx(1 / 7, abs=0.01)
    for kind in KINDS:
        assert 1 <= sum(pair[0] == kind for pair in HELD_OUT_PAIRS) <= 2
    for colour in COLOURS:
        assert 1 <= sum(pair[1] == colour for pair in HELD_OUT_PAIRS) <= 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_held_out_combinations_stay_out_of_training_while_all_words_occur(split: Split) -> None:
    seen = set().union(*(_pairs(scene) for scene in _many(split)))
    assert not seen & HELD_OUT_PAIRS
    assert seen == {(k, c) for k in KINDS for c in COLOURS} - HELD_OUT_PAIRS


def test_every_test_scene_shows_a_held_out_combination() -> None:
    scenes = _many("test")
    assert all(_pairs(scene) & HELD_OUT_PAIRS for scene in scenes)
    assert set().union(*(_pairs(scene) for scene in scenes)) >= HELD_OUT_PAIRS


def test_one_group_can_be_asked_for_and_nonsense_is_refused() -> None:
    scenes = [sample_scene(seed, split="test", groups=1) for seed in range(50)]
    assert {len(scene.groups) for scene in scenes} == {1}
    assert {scene.relation for scene in scenes} == {None}
    with pytest.raises(DataError, match="split"):
        sample_scene(0, split="tset")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="groups"):
        sample_scene(0, split="test", groups=3)


def test_counts_and_relations_can_be_read_off_the_objects() -> None:
    relations = set()
    for scene in _many("train"):
        for index, group in enumerate(scene.groups):
            assert sum(o.group == index for o in scene.objects) == group.count
        if scene.relation is None:
            continue
        relations.add(scene.relation)
        first, second = ([o for o in scene.objects if o.group == i] for i in range(2))
        order = {
            "left of": max(o.x for o in first) < min(o.x for o in second),
            "right of": min(o.x for o in first) > max(o.x for o in second),
            "behind": max(o.y for o in first) < min(o.y for o in second),
            "in front of": min(o.y for o in first) > max(o.y for o in second),
        }
        assert order[scene.relation], scene
    assert relations == set(RELATIONS)


def test_hardly_any_object_is_more_than_half_hidden_and_none_leaves_the_picture() -> None:
    scenes = _many("train")
    shares = [visible_share(s.objects, i) for s in scenes for i in range(len(s.objects))]
    assert min(shares) > 0.2
    assert np.mean(np.asarray(shares) < 0.5) < 0.005
    for scene in scenes:
        for thing in scene.objects:
            assert max(HORIZONS) < thing.y <= 0.97
            half, height = (extent * thing.scale for extent in EXTENTS[thing.kind])
            assert half - 1e-3 < thing.x < 1 - half + 1e-3
            assert thing.y > height


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_knows_how_large_the_models_are(kind: str) -> None:
    half, height = EXTENTS[kind]
    views = [sprite(kind, pose) for pose in range(2)]
    assert np.mean([max(-v.left, v.left + v.width) for v in views]) == pytest.approx(half, abs=0.06)
    assert np.mean([v.top for v in views]) == pytest.approx(height, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_models_have_no_holes(kind: str) -> None:
    alpha = sprite(kind, 0).levels[0][0]
    inside = alpha[1:-1, 1:-1]
    around = alpha[:-2, 1:-1] * alpha[2:, 1:-1] * alpha[1:-1, :-2] * alpha[1:-1, 2:]
    assert np.mean((inside == 0) & (around == 1)) < 2e-4


def test_pictures_are_the_same_in_another_process_and_in_another_order() -> None:
    program = (
        "import hashlib\n"
        "from pocketlens.distill.scenes import sample_scene\n"
        "from pocketlens.distill.scenes.render import render\n"
        "d = hashlib.sha256()\n"
        "for seed in (3, 2, 1, 0): d.update(render(sample_scene(seed, split='train'), size_px=96))\n"
        "print(d.hexdigest())\n"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pictures = [render(sample_scene(seed, split="train"), size_px=96) for seed in range(4)]
    assert there.stdout.strip() == hashlib.sha256(b"".join(p.tobytes() for p in pictures[::-1])).hexdigest()


def test_a_larger_picture_shows_the_same_scene() -> None:
    for seed in range(8):
        scene = sample_scene(seed, split="train")
        small = render(scene, size_px=128)
        large = Image.fromarray(render(scene, size_px=256)).resize((128, 128), Image.Resampling.BOX)
        assert small.shape == (128, 128, 3)
        assert small.dtype == np.uint8
        difference = np.abs(np.asarray(large, dtype=float) - small)
        assert difference.mean() < 3.0
        assert np.quantile(difference, 0.99) < 32


@pytest.mark.parametrize("size_px", [0, 16, 100, -32])
def test_a_size_that_does_not_fit_is_refused(size_px: int) -> None:
    with pytest.raises(DataError, match="multiple of 32"):
        render(sample_scene(0, split="train"), size_px=size_px)


def test_the_paint_can_be_told_at_any_hour() -> None:
    """The object's mean hue is nearest to its own paint, not to another, in each light."""
    names = list(COLOURS)
    hues = np.asarray([np.asarray(PALETTE[c]) / np.linalg.norm(PALETTE[c]) for c in names])
    right = total = 0
    for seed in range(120):
        scene = sample_scene(seed, split="train", groups=1)
        thing = scene.objects[-1]
        if thing.kind not in ("ball", "star", "heart", "cube", "duck", "balloon"):
            continue
        picture = render(scene, size_px=128).astype(float)
        x, y = thing.x * 128, (thing.y - 0.62 * EXTENTS[thing.kind][1] * thing.scale) * 128
        patch = picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].reshape(-1, 3).mean(axis=0)
        right += names[int((hues @ (patch / np.linalg.norm(patch))).argmax())] == thing.colour
        total += 1
    assert total > 30
    assert right / total > 0.9


def test_captions_are_five_short_lower_case_and_correct() -> None:
    words: set[str] = set()
    for split in ("train", "test"):
        for scene in _many(split):
            five = captions(scene)
            assert len(set(five)) == len(five) == 5
            assert 8 <= len(five[0].split()) <= 24
            for text in five:
                words.update(text.split())
                assert re.fullmatch(r"[a-z]+( [a-z]+)*", text)
                assert len(text.split()) <= 24
                assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)
                assert not re.search(r"\b(\w+) \1\b", text)
                for group in scene.groups:
                    forms = SYNONYMS[group.kind]
                    plural = {w for w in forms if w.endswith("s") or w == "fish"}
                    right = plural if group.count > 1 else (forms - plural) | ({"fish"} & forms)
                    assert set(text.split()) & right, (text, group)
    assert len(words) <= 220


def test_the_first_caption_is_complete() -> None:
    numbers = {2: "two", 3: "three", 4: "four"}
    for scene in _many("val"):
        first = captions(scene)[0]
        for group in scene.groups:
            words = [numbers[group.count]] if group.count > 1 else []
            words += [] if group.size == "medium" else [group.size]
            assert " ".join([*words, group.colour]) in first
        assert scene.relation is None or scene.relation in first
        assert scene.light == "day" or scene.light in first
        place = {"floor": "wooden floor"}.get(scene.background, scene.background)
        assert place in first


def test_captions_never_hallucinate_on_their_own_scene() -> None:
    for scene in _many("test"):
        kinds = {group.kind for group in scene.groups}
        assert {thing.kind for thing in objects(scene)} == kinds
        for text in captions(scene):
            assert mentioned_kinds(text) == kinds
            assert not hallucinated(text, scene)


def test_a_planted_kind_is_counted() -> None:
    scene = sample_scene(0, split="train", groups=1)
    other = next(kind for kind in KINDS if kind != scene.groups[0].kind)
    text = f"{captions(scene)[0]} beside two {max(SYNONYMS[other], key=len)}"
    assert hallucinated(text, scene) == {other}
    assert hallucinated("Two Red BALLS, near a mug.", {"ball"}) == {"cup"}
    assert mentioned_kinds("nothing here, not even starlight") == frozenset()


def test_no_word_names_two_kinds_nor_a_colour() -> None:
    words = [word for forms in SYNONYMS.values() for word in forms]
    assert len(words) == len(set(words))
    assert not set(words) & set(COLOURS)


def test_class_prompts_name_their_own_kind_only() -> None:
    prompts = class_prompts()
    assert tuple(prompts) == KINDS
    assert all(mentioned_kinds(text) == {kind} for kind, texts in prompts.items() for text in texts)
