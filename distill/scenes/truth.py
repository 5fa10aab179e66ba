"""Ground truth of a scene, and exact counting of hallucinated objects in a caption.

The count is that of CHAIR (Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018),
with the scene's object list in place of annotators and `SYNONYMS` in place of their word lists.
"""

import re
from collections.abc import Iterable
from typing import Final

from pocketlens.distill.scenes.caption import NOUNS
from pocketlens.distill.scenes.grammar import Scene, SceneObject

__all__ = ["SYNONYMS", "hallucinated", "mentioned_kinds", "objects"]

SYNONYMS: Final[dict[str, frozenset[str]]] = {
    kind: frozenset(form.split()[-1] for pair in names for form in pair) for kind, names in NOUNS.items()
}
"""All word forms that name a kind; the sets of two kinds share no word."""

_KIND_OF: Final = {word: kind for kind, words in SYNONYMS.items() for word in words}
_WORD: Final = re.compile(r"[a-z]+")


def objects(scene: Scene) -> tuple[SceneObject, ...]:
    """Return every object that the scene's picture shows, farthest first."""
    return scene.objects


def mentioned_kinds(text: str) -> frozenset[str]:
    """Return the kinds that `text` names in any word form, upper or lower case."""
    return frozenset(_KIND_OF[word] for word in _WORD.findall(text.lower()) if word in _KIND_OF)


def hallucinated(text: str, truth: Scene | Iterable[str]) -> frozenset[str]:
    """Return the kinds that `text` names although `truth`, a scene or its kinds, has none of them."""
    kinds = [group.kind for group in truth.groups] if isinstance(truth, Scene) else truth
    return mentioned_kinds(text) - frozenset(kinds)
