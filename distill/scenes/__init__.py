"""The built-in data set: drawn scenes with captions and exact ground truth.

Names load on first use, so that importing the package costs nothing. `render` stays in its module,
`pocketlens.distill.scenes.render`, because a package cannot hold a module and a function of one name.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlens.distill.scenes.caption import captions, class_prompts
    from pocketlens.distill.scenes.dataset import SceneSample, read_split, write_dataset
    from pocketlens.distill.scenes.grammar import (
        BACKGROUNDS,
        COLOURS,
        HELD_OUT_PAIRS,
        KINDS,
        LIGHTS,
        RELATIONS,
        SIZES,
        Group,
        Scene,
        SceneObject,
        Split,
        distinct_scenes,
        sample_scene,
    )
    from pocketlens.distill.scenes.truth import SYNONYMS, hallucinated, mentioned_kinds, objects

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT_PAIRS",
    "KINDS",
    "LIGHTS",
    "RELATIONS",
    "SIZES",
    "SYNONYMS",
    "Group",
    "Scene",
    "SceneObject",
    "SceneSample",
    "Split",
    "captions",
    "class_prompts",
    "distinct_scenes",
    "hallucinated",
    "mentioned_kinds",
    "objects",
    "read_split",
    "sample_scene",
    "write_dataset",
]

_HOMES = {
    "captions": "caption",
    "class_prompts": "caption",
    "SceneSample": "dataset",
    "read_split": "dataset",
    "write_dataset": "dataset",
    "SYNONYMS": "truth",
    "hallucinated": "truth",
    "mentioned_kinds": "truth",
    "objects": "truth",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'grammar')}"), name)
