"""Writes captions as several people would: in full, in brief, and from the other side."""

import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from pocketlens.distill.scenes.grammar import COLOURS, KINDS, Group, Scene

__all__ = ["CAPTIONS_PER_SCENE", "NOUNS", "captions", "class_prompts"]

CAPTIONS_PER_SCENE: Final = 5

NOUNS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "ball": (("ball", "balls"), ("sphere", "spheres")),
    "cube": (("cube", "cubes"), ("block", "blocks"), ("box", "boxes")),
    "cone": (("cone", "cones"), ("traffic cone", "traffic cones")),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"),),
    "tree": (("tree", "trees"),),
    "house": (("house", "houses"), ("cottage", "cottages")),
    "car": (("car", "cars"), ("automobile", "automobiles")),
    "boat": (("boat", "boats"), ("sailboat", "sailboats"), ("ship", "ships")),
    "fish": (("fish", "fish"),),
    "mushroom": (("mushroom", "mushrooms"), ("toadstool", "toadstools")),
    "balloon": (("balloon", "balloons"),),
    "cup": (("cup", "cups"), ("mug", "mugs")),
    "duck": (("duck", "ducks"), ("rubber duck", "rubber ducks")),
}
"""Singular and plural of every name of a kind; the first is the usual one."""

_COUNTS: Final = {2: ("two", "a pair of"), 3: ("three",), 4: ("four",)}
_SIZES: Final = {"small": ("small", "little", "tiny"), "medium": ("",), "large": ("large", "big", "huge")}
_PLACES: Final = {
    "grass": ("on the grass", "on a lawn", "in a meadow", "in the grass"),
    "beach": ("on the beach", "on the sand", "at the beach", "by the sea"),
    "snow": ("in the snow", "on the snow", "in a snowy field"),
    "floor": ("on a wooden floor", "on the floor", "in a room", "indoors"),
    "road": ("on the road", "on a road", "on the street"),
    "lake": ("on the lake", "on the water", "on a lake", "on calm water"),
}
_LIGHTS: Final = {
    "day": ("", "", "in daylight", "during the day"),
    "sunset": ("at sunset", "at dusk", "in the evening", "in evening light"),
    "night": ("at night", "after dark", "in the dark", "by night"),
}
_SCENES: Final = {"day": "a scene with", "sunset": "a sunset scene with", "night": "a night scene with"}
_RELATIONS: Final = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "behind": ("behind", "in back of"),
    "in front of": ("in front of", "before"),
}
_INVERSE: Final = {
    "left of": "right of",
    "right of": "left of",
    "behind": "in front of",
    "in front of": "behind",
}
_VAGUE: Final = {
    "left of": ("next to", "beside", "near"),
    "right of": ("next to", "beside", "near"),
    "behind": ("near", "with", "close to"),
    "in front of": ("near", "with", "close to"),
}
_OPENINGS: Final = ("a photo of", "a picture of", "an image of", "a view of")
_MIN_WORDS: Final = 8


class _Voice(NamedTuple):
    """One person's choice of words for one caption."""

    pick: Callable[[Sequence[str]], str]
    sizes: bool = True

    def name(self, group: Group) -> str:
        """Return the noun phrase of `group`, article or number included."""
        names = NOUNS[group.kind]
        many = group.count > 1
        # The usual name is the most frequent one.
        noun = self.pick([pair[many] for pair in (names[0], names[0], *names)])
        size = self.pick(_SIZES[group.size]) if self.sizes else ""
        if many:
            return _join(self.pick(_COUNTS[group.count]), size, group.colour, noun)
        return _articled(_join(size, group.colour, noun))


def captions(scene: Scene) -> tuple[str, ...]:
    """Return five different captions, lower case, without a final period.

    The first is complete (count, size unless medium, colour, kind, relation, place, light unless
    day), uses the usual words and has 8 to 24 words. The others differ in wording and in what they
    leave out, but always name every kind, its colour and its count.
    """
    rng = random.Random(f"pocketlens captions 1 {scene.split} {len(scene.groups)} {scene.seed}")

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.random() * len(options))]

    written = [_complete(scene, pick)]
    ways = list(_ALONE if len(scene.groups) == 1 else _TOGETHER)
    while len(written) < CAPTIONS_PER_SCENE:
        way = ways.pop(int(rng.random() * len(ways)))
        text = way(scene, _Voice(pick, sizes=rng.random() < 0.7))
        if text not in written:
            written.append(text)
    return tuple(written)


def class_prompts() -> dict[str, tuple[str, ...]]:
    """Return the prompts of each kind for zero-shot classification.

    Judge it on pictures of one kind only: `sample_scene(..., groups=1)`, or the samples of a split
    whose `kinds` has one entry.
    """
    prompts = {}
    for kind in KINDS:
        one, many = NOUNS[kind][0]
        prompts[kind] = (
            f"a photo of {_articled(one)}",
            f"a picture of {_articled(one)}",
            f"there is {_articled(one)}",
            f"two {many}",
            *(f"{_articled(one)} {places[0]}" for places in _PLACES.values()),
            *(_articled(f"{colour} {one}") for colour in COLOURS),
        )
    return prompts


def _complete(scene: Scene, pick: Callable[[Sequence[str]], str]) -> str:
    plain = _Voice(lambda options: options[0])
    names = [plain.name(group) for group in scene.groups]
    relation = "" if scene.relation is None else _RELATIONS[scene.relation][0]
    text = _join(names[0], relation, *names[1:], _PLACES[scene.background][0], _LIGHTS[scene.light][0])
    if len(text.split()) < _MIN_WORDS:
        text = _join(pick([_there(scene.groups[0]), "a photo of", "a picture of"]), text)
    return text


def _there(group: Group) -> str:
    return "there is" if group.count == 1 else "there are"


def _verb(scene: Scene, group: Group, voice: _Voice) -> str:
    one = group.count == 1
    if scene.background == "lake" or group.kind == "balloon":
        return "floats" if one else "float"
    return voice.pick(("sits", "stands", "rests", "is") if one else ("sit", "stand", "rest", "are"))


def _where(scene: Scene, voice: _Voice) -> str:
    return voice.pick(_PLACES[scene.background])


def _when(scene: Scene, voice: _Voice) -> str:
    # Daylight indoors is not worth a word.
    if scene.background == "floor" and scene.light == "day":
        return ""
    return voice.pick(_LIGHTS[scene.light])


def _relation(scene: Scene, voice: _Voice, *, inverse: bool = False) -> str:
    relation = scene.relation or ""
    return voice.pick(_RELATIONS[_INVERSE[relation] if inverse else relation])


_Way = Callable[[Scene, _Voice], str]

_ALONE: Final[tuple[_Way, ...]] = (
    lambda s, v: _join(_there(s.groups[0]), v.name(s.groups[0]), _where(s, v), _when(s, v)),
    lambda s, v: _join(v.pick(_OPENINGS), v.name(s.groups[0]), _where(s, v), _when(s, v)),
    lambda s, v: _join(v.name(s.groups[0]), _verb(s, s.groups[0], v), _where(s, v), _when(s, v)),
    lambda s, v: _join(_where(s, v), _there(s.groups[0]), v.name(s.groups[0]), _when(s, v)),
    lambda s, v: _join(_SCENES[s.light], v.name(s.groups[0]), _where(s, v)),
    lambda s, v: _join(v.name(s.groups[0]), _where(s, v), _when(s, v)),
    lambda s, v: _join(v.name(s.groups[0]), _when(s, v), _where(s, v)),
    lambda s, v: _join("we see", v.name(s.groups[0]), _where(s, v), _when(s, v)),
)

_TOGETHER: Final[tuple[_Way, ...]] = (
    lambda s, v: _join(
        v.name(s.groups[1]), _relation(s, v, inverse=True), v.name(s.groups[0]), _where(s, v), _when(s, v)
    ),
    lambda s, v: _join(v.name(s.groups[0]), "and", v.name(s.groups[1]), _where(s, v), _when(s, v)),
    lambda s, v: _join(_there(s.groups[0]), v.name(s.groups[0]), _relation(s, v), v.name(s.groups[1]), _where(s, v)),
    lambda s, v: _join(v.pick(_OPENINGS), v.name(s.groups[0]), _relation(s, v), v.name(s.groups[1]), _when(s, v)),
    lambda s, v: _join(
        _where(s, v),
        _there(s.groups[1]),
        v.name(s.groups[1]),
        v.pick(_VAGUE[s.relation or ""]),
        v.name(s.groups[0]),
    ),
    lambda s, v: _join(
        v.name(s.groups[0]),
        _verb(s, s.groups[0], v),
        _relation(s, v),
        v.name(s.groups[1]),
        _where(s, v),
        _when(s, v),
    ),
    lambda s, v: _join(v.name(s.groups[0]), v.pick(_VAGUE[s.relation or ""]), v.name(s.groups[1]), _when(s, v)),
    lambda s, v: _join(_SCENES[s.light], v.name(s.groups[1]), "and", v.name(s.groups[0]), _where(s, v)),
)


def _articled(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
