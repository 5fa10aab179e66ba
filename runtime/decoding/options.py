"""How captions are decoded: everything that a caller may choose, checked where it is made."""

from typing import Final

import msgspec

from pocketlens.runtime.decoding.sequence import LENGTH_PENALTY

__all__ = ["GREEDY", "RERANK_WEIGHT", "Beam", "Decoding", "Greedy", "Nucleus", "Search"]

RERANK_WEIGHT: Final = 10.0
"""What a cosine of 1 is worth in reranking, in nats."""

_SEEDS: Final = 2**64


class Greedy(msgspec.Struct, frozen=True, tag="greedy"):
    """The most probable token at every step: one caption."""


class Beam(msgspec.Struct, frozen=True, kw_only=True, tag="beam"):
    """Beam search.

    Attributes:
        width: hypotheses per picture, at least 1; 1 is greedy.
    """

    width: int = 4

    def __post_init__(self) -> None:
        _at_least("beam", self.width, 1)


class Nucleus(msgspec.Struct, frozen=True, kw_only=True, tag="nucleus"):
    """Draws from the most probable tokens that together reach a probability of `top_p`.

    Attributes:
        top_p: in (0, 1]; 1 draws from the whole vocabulary.
        temperature: logits are divided by it; above 0. Below 1 is bolder, above 1 more varied.
        seed: in [0, 2**64). With the same seed, a picture gets the same captions, alone and in any batch.
    """

    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected above 0 and at most 1, found {self.top_p}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number above 0, found {self.temperature}")
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f"seed: expected 0 to 2**64 - 1, found {self.seed}")


Search = Greedy | Beam | Nucleus
"""How the next token is chosen."""


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """How captions are decoded.

    Attributes:
        search: how the next token is chosen.
        num_captions: captions per picture, best first; more than one from a beam of at least that width, or drawn
            from a nucleus (then two of them may be equal).
        max_tokens: the most ids of a caption, prompt and end token included; by default, and at most, what the
            bundle allows.
        prompt: text that every caption begins with. Its tokens go through the cache like those that are decoded;
            blanks around it are dropped.
        length_penalty: alpha of the length normalisation of scores; 0 ranks by the plain sum of log-probabilities,
            more favours longer captions. See `Hypothesis.score`.
        no_repeat_ngram: no n-gram of this many tokens stands twice in a caption, prompt included; 0 allows all.
        rerank: rank the captions of a picture by the bundle's own image-text similarity as well; needs
            `num_captions` above 1.
        rerank_weight: what a cosine of 1 is worth in nats: a caption's score is then
            `length-normalised log-probability + rerank_weight * cosine`.
    """

    search: Search = Greedy()
    num_captions: int = 1
    max_tokens: int | None = None
    prompt: str = ""
    length_penalty: float = LENGTH_PENALTY
    no_repeat_ngram: int = 0
    rerank: bool = False
    rerank_weight: float = RERANK_WEIGHT

    def __post_init__(self) -> None:
        _at_least("num_captions", self.num_captions, 1)
        _at_least("max_tokens", 1 if self.max_tokens is None else self.max_tokens, 1)
        _at_least("no_repeat_ngram", self.no_repeat_ngram, 0)
        for name, value in (("length_penalty", self.length_penalty), ("rerank_weight", self.rerank_weight)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected a number of at least 0, found {value}")
        most = _most(self.search)
        if most is not None and self.num_captions > most:
            raise ValueError(
                f"num_captions: expected at most {most} from {_said(self.search)}, found {self.num_captions}; "
                "take a wider beam or a nucleus"
            )
        if self.rerank and self.num_captions == 1:
            raise ValueError("rerank: expected num_captions above 1, found one caption, which has no rivals")

    @property
    def streams(self) -> bool:
        """Whether its captions can be handed out token by token: one a picture, and not from a beam."""
        return self.num_captions == 1 and not (isinstance(self.search, Beam) and self.search.width > 1)


def _most(search: Search) -> int | None:
    if isinstance(search, Beam):
        return search.width
    return 1 if isinstance(search, Greedy) else None


def _said(search: Search) -> str:
    return f"a beam of {search.width}" if isinstance(search, Beam) else "greedy decoding"


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, found {value}")


GREEDY: Final = Decoding()
"""The default: one greedy caption."""
