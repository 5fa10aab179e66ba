"""What a scene is made of, which combinations are held out, and how a scene is drawn by seed.

Lengths are fractions of the picture's side, the origin is the upper left corner, y points down.
All randomness comes from `random.Random.random`, whose stream Python guarantees across versions.
"""

import random
from collections.abc import Sequence
from itertools import product
from typing import Final, Literal, TypeVar, get_args

import msgspec

from pocketlens.core.errors import DataError

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT_PAIRS",
    "KINDS",
    "LIGHTS",
    "RELATIONS",
    "SEEN_PAIRS",
    "SIZES",
    "Group",
    "Scene",
    "SceneObject",
    "Split",
    "distinct_scenes",
    "sample_scene",
]

Split = Literal["train", "val", "test"]
_T = TypeVar("_T")

KINDS: Final = (
    "ball",
    "cube",
    "cone",
    "star",
    "heart",
    "tree",
    "house",
    "car",
    "boat",
    "fish",
    "mushroom",
    "balloon",
    "cup",
    "duck",
)
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES: Final = ("small", "medium", "large")
"""`medium` is left unsaid in captions."""
BACKGROUNDS: Final = ("grass", "beach", "snow", "floor", "road", "lake")
LIGHTS: Final = ("day", "sunset", "night")
RELATIONS: Final = ("left of", "right of", "behind", "in front of")
"""Where the first group is, as seen by the viewer, relative to the second."""

# Spreads the held-out pairs evenly: each kind loses one or two colours, each colour two kinds.
HELD_OUT_PAIRS: Final = frozenset(
    (kind, colour)
    for (k, kind), (c, colour) in product(enumerate(KINDS), enumerate(COLOURS))
    if (3 * k + 5 * c) % 7 == 0
)
"""The 16 of 112 (kind, colour) pairs that only test scenes show; each test scene shows one."""

SEEN_PAIRS: Final = tuple(pair for pair in product(KINDS, COLOURS) if pair not in HELD_OUT_PAIRS)

_ALL_PAIRS: Final = tuple(product(KINDS, COLOURS))
_HELD_OUT: Final = tuple(pair for pair in _ALL_PAIRS if pair in HELD_OUT_PAIRS)

# Twelfths of the picture's width that one object of a size takes in a row.
SLOTS: Final = {"small": 2, "medium": 3, "large": 4}
_ROW_SLOTS: Final = 12
_DEEP_SLOTS: Final = 14
_MAX_OBJECTS: Final = 5
_MAX_ALONE: Final = 4
_MAX_PER_GROUP: Final = 3


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """`count` objects of the same kind, colour and size."""

    kind: str
    colour: str
    size: str
    count: int


class SceneObject(msgspec.Struct, frozen=True, kw_only=True):
    """One object where it stands.

    Attributes:
        kind: one of `KINDS`.
        colour: one of `COLOURS`.
        size: one of `SIZES`.
        group: index into `Scene.groups`.
        x: centre of the foot, fraction of the side.
        y: foot, fraction of the side; larger is nearer.
        scale: what one model unit (about the object's height) measures, fraction of the side.
        pose: index of the view of the model.
        mirrored: whether left and right are swapped.
    """

    kind: str
    colour: str
    size: str
    group: int
    x: float
    y: float
    scale: float
    pose: int
    mirrored: bool


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a picture shows.

    Attributes:
        seed: what it was drawn with.
        split: whose combinations it may use.
        groups: one or two groups.
        relation: one of `RELATIONS`, the first group's place relative to the second; `None` when
            there is one group.
        background: one of `BACKGROUNDS`.
        light: one of `LIGHTS`.
        objects: the objects, farthest first.
        horizon: index of the camera's height, 0 (high horizon, low camera) to 2.
        shift: how far the backdrop is shifted, in 1/32 of the side, 0 to 15.
        variant: index of the backdrop's shapes.
        light_x: from where the light comes, -1 (left) to 1 (right).
        exposure: factor on all light, about 1.
        blur: radius of the lens blur, fraction of the side; often 0.
        noise: standard deviation of the grain, fraction of full scale.
        vignette: darkening of the corners, 0 to 1.
    """

    seed: int
    split: Split
    groups: tuple[Group, ...]
    relation: str | None
    background: str
    light: str
    objects: tuple[SceneObject, ...]
    horizon: int
    shift: int
    variant: int
    light_x: float
    exposure: float
    blur: float
    noise: float
    vignette: float


def sample_scene(seed: int, *, split: Split, groups: int | None = None) -> Scene:
    """Return the scene that belongs to `seed` in `split`.

    Args:
        seed: any integer; the same seed gives the same scene for ever.
        split: `train` and `val` use `SEEN_PAIRS` only; each `test` scene shows at least one pair
            of `HELD_OUT_PAIRS`.
        groups: 1 or 2 to force that many groups (zero-shot classification wants 1, so that one
            kind is the answer); `None` mixes both, 40 % to 60 %.

    Raises:
        DataError: `split` or `groups` is none of these.
    """
    if split not in get_args(Split) or groups not in (None, 1, 2):
        raise DataError(
            "scene request",
            expected="split train, val or test and groups 1, 2 or None",
            found=f"split={split!r}, groups={groups!r}",
            remedy="Correct the call.",
        )
    from pocketlens.distill.scenes.layout import place

    rng = random.Random(f"pocketlens scenes 1 {split} {groups} {seed}")
    n = groups or (1 if rng.random() < 0.4 else 2)
    pairs = _sample_pairs(rng, n, split)
    relation = None if n == 1 else _pick(rng, RELATIONS)
    shape = _sample_counts(rng, n, relation)
    chosen = tuple(
        Group(kind=kind, colour=colour, size=size, count=count)
        for (kind, colour), (size, count) in zip(pairs, shape, strict=True)
    )
    return Scene(
        seed=seed,
        split=split,
        groups=chosen,
        relation=relation,
        background=_pick(rng, BACKGROUNDS),
        light=_pick(rng, LIGHTS, (0.5, 0.25, 0.25)),
        objects=place(chosen, relation, rng.random),
        horizon=int(rng.random() * 3),
        shift=int(rng.random() * 16),
        variant=int(rng.random() * 2),
        light_x=(0.35 + 0.5 * rng.random()) * (1 if rng.random() < 0.5 else -1),
        exposure=0.93 + 0.15 * rng.random(),
        blur=max(0.0, 0.009 * rng.random() - 0.004),
        noise=0.004 + 0.011 * rng.random() ** 2,
        vignette=0.1 + 0.22 * rng.random(),
    )


def distinct_scenes() -> int:
    """Return how many different scenes the grammar can say, geometry and camera not counted.

    "A left of B" and "B right of A" are one scene and counted once.
    """
    shapes = [(size, count) for size in SIZES for count in range(1, _MAX_ALONE + 1)]
    alone = len(_ALL_PAIRS) * sum(_fits((shape,), None) for shape in shapes)
    ordered = sum(_fits((a, b), relation) for a in shapes for b in shapes for relation in RELATIONS) * (
        len(_ALL_PAIRS) * (len(_ALL_PAIRS) - 1)
    )
    return (alone + ordered // 2) * len(BACKGROUNDS) * len(LIGHTS)


def _fits(shape: tuple[tuple[str, int], ...], relation: str | None) -> bool:
    slots = sum(SLOTS[size] * count for size, count in shape)
    if relation is None:
        return slots <= _ROW_SLOTS and shape[0][1] <= _MAX_ALONE
    if any(count > _MAX_PER_GROUP for _, count in shape) or sum(c for _, c in shape) > _MAX_OBJECTS:
        return False
    return slots <= (_ROW_SLOTS if relation in ("left of", "right of") else _DEEP_SLOTS)


def _sample_pairs(rng: random.Random, n: int, split: Split) -> list[tuple[str, str]]:
    pool = _ALL_PAIRS if split == "test" else SEEN_PAIRS
    pairs = [_pick(rng, _HELD_OUT if split == "test" else pool)]
    if n == 1:
        return pairs
    # One in eight pairs of groups differs in the colour alone: only the relation tells them apart.
    same_kind = rng.random() < 0.125
    kind, colour = pairs[0]
    rest = [p for p in pool if (p[0] == kind) == same_kind and p != (kind, colour)]
    pairs.append(_pick(rng, rest))
    return pairs if rng.random() < 0.5 else pairs[::-1]


def _sample_counts(rng: random.Random, n: int, relation: str | None) -> tuple[tuple[str, int], ...]:
    weights = (0.4, 0.25, 0.2, 0.15) if n == 1 else (0.58, 0.26, 0.16)
    while True:
        shape = tuple(
            (_pick(rng, SIZES, (0.3, 0.4, 0.3)), _pick(rng, range(1, len(weights) + 1), weights)) for _ in range(n)
        )
        if _fits(shape, relation):
            return shape


def _pick(rng: random.Random, items: Sequence[_T], weights: Sequence[float] = ()) -> _T:
    if not weights:
        return items[int(rng.random() * len(items))]
    left = rng.random() * sum(weights)
    for item, weight in zip(items, weights, strict=True):
        left -= weight
        if left < 0:
            return item
    return items[-1]
