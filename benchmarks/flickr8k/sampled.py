"""New captions from those at hand: more text for the student's text tower, which the frozen teacher then embeds.

Two captions of different pictures that share two words in a row are crossed there; now and then one word is replaced
by another that was seen between the same two neighbours. Grammar mostly survives, meaning need not: the teacher says
what the sentence means, and that is all that is learnt from it. (Sampled data to distil on: Bucila, Caruana &
Niculescu-Mizil 2006, "Model Compression".)
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.flickr8k.features import minilm
from benchmarks.flickr8k.heads import Features, Pair, embed_tokens

__all__ = ["embedded_captions", "sampled_captions"]

_WORDS: Final = (5, 22)
"""Shortest and longest caption in words, the full stop counted."""

_REPLACED: Final = 0.4
"""Share of captions in which a word is replaced."""

_TRIES: Final = 50
"""At most so many attempts for each caption asked for."""

_CHUNK: Final = 4000
"""So many captions have token vectors in memory at a time, 98 MB."""


def sampled_captions(captions: Sequence[Sequence[str]], count: int, *, seed: int) -> list[str]:
    """Return up to `count` captions, each once, none of them among `captions` (those of one picture in a row).

    Fewer come back where captions share too little. Words are what blanks separate, marks included.
    """
    rng = np.random.default_rng(seed)
    rows = [(picture, text.split()) for picture, texts in enumerate(captions) for text in texts]
    known = {" ".join(words).lower() for _, words in rows}
    places: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    between: dict[tuple[str, str], list[str]] = defaultdict(list)
    for number, (_, words) in enumerate(rows):
        lowered = [word.lower() for word in words]
        for at, pair in enumerate(pairwise(lowered)):
            places[pair].append((number, at))
        for before, word, after in zip(lowered, lowered[1:], lowered[2:], strict=False):
            between[before, after].append(word)
    found: dict[str, str] = {}
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        picture, words = rows[rng.integers(len(rows))]
        if len(words) < _WORDS[0]:
            continue
        at = int(rng.integers(len(words) - 1))
        others = places[words[at].lower(), words[at + 1].lower()]
        other, where = others[rng.integers(len(others))]
        if rows[other][0] == picture:
            continue
        made = words[: at + 2] + rows[other][1][where + 2 :]
        if not _WORDS[0] <= len(made) <= _WORDS[1]:
            continue
        if rng.random() < _REPLACED:
            inner = int(rng.integers(1, len(made) - 1))
            choices = between.get((made[inner - 1].lower(), made[inner + 1].lower()), [made[inner]])
            made[inner] = choices[rng.integers(len(choices))]
        text = " ".join(made)
        if text.lower() not in known:
            found.setdefault(text.lower(), text)
    return list(found.values())


def embedded_captions(pairs: list[Pair], texts: Sequence[str], like: Features) -> NDArray[np.float16]:
    """Return the teacher's vectors `(M, K D)` of `texts`; `like` gives the fields that texts do not need.

    About 140 captions a second on one core; nothing but the result is kept.
    """
    parts = []
    for start in range(0, len(texts), _CHUNK):
        tokens, lengths = minilm(texts[start : start + _CHUNK])
        parts.append(embed_tokens(pairs, like._replace(tokens=tokens, lengths=lengths)).astype(np.float16))
    return np.concatenate(parts)
