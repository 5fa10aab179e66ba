"""CIDEr, BLEU and ROUGE-L of captions against human ones, through pycocoevalcap.

Texts are lower-cased and cut into runs of letters and digits (an apostrophe inside a word stays);
punctuation is dropped. The papers use the Penn Treebank tokenizer, which needs Java. On plain
English sentences the two give the same words but for contractions ("it's" stays one word here).
"""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from pocketlens.distill.evaluation.metrics import Bootstrap, Figure

__all__ = ["bleu_counts", "caption_figures", "cider_scores", "rouge_scores", "tokenize"]

_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ORDERS: Final = 4
_PERCENT: Final = 100.0


def tokenize(text: str) -> str:
    """Return the words of `text`, lower-case, separated by single spaces."""
    return " ".join(_WORD.findall(text.lower()))


def caption_figures(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Return `cider`, `bleu1` to `bleu4` and `caption_length`.

    CIDEr and BLEU are multiplied by 100, as papers print them: BLEU is in [0, 100], CIDEr in
    [0, 1000]. `caption_length` is in words. CIDEr weighs words by their rarity in the references at
    hand, so values of different test sets do not compare; the intervals keep these weights fixed.

    Args:
        captions: N captions.
        references: N lists of human captions, at least one each.
        bootstrap: of N pictures.
    """
    scorer, counts = _bleu(captions, references)
    drawn = _corpus_bleu(bootstrap.sums(counts))  # (draws, 4)
    values = scorer.compute_score(option="closest")[0]
    bleu = {
        f"bleu{order + 1}": bootstrap.figure(
            _PERCENT * float(values[order]), _PERCENT * drawn[:, order], samples=len(captions)
        )
        for order in range(_ORDERS)
    }
    lengths = np.array([len(tokenize(text).split()) for text in captions], dtype=np.float64)
    return {
        "cider": bootstrap.mean(_PERCENT * cider_scores(captions, references)),
        **bleu,
        "caption_length": bootstrap.mean(lengths),
    }


def cider_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the CIDEr-D of each caption, `(N,)` in [0, 10] (Vedantam et al. 2015, section 4).

    The rarity of an n-gram is counted over the N pictures, so that a single picture scores 0.
    """
    scorer = CiderScorer(n=_ORDERS, sigma=6.0)
    for caption, texts in zip(captions, references, strict=True):
        scorer += (tokenize(caption), [tokenize(text) for text in texts])
    _, scores = scorer.compute_score()
    return np.asarray(scores, dtype=np.float64)


def rouge_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the ROUGE-L of each caption, `(N,)` in [0, 1] (Lin 2004, section 3; beta 1.2 as COCO's server has it)."""
    rouge = Rouge()
    return np.array(
        [
            rouge.calc_score([tokenize(caption)], [tokenize(text) for text in texts])
            for caption, texts in zip(captions, references, strict=True)
        ],
        dtype=np.float64,
    )


def bleu_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return what BLEU is made of, `(N, 10)`: for each caption its length and that of the closest
    reference, then the n-grams that are right, then all of its n-grams, n from 1 to 4.
    """
    return _bleu(captions, references)[1]


def _bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[BleuScorer, NDArray[np.float64]]:
    scorer = BleuScorer(n=_ORDERS)
    for caption, texts in zip(captions, references, strict=True):
        scorer += (tokenize(caption), [tokenize(text) for text in texts])
    rows = []
    for cooked in scorer.ctest:
        length = cooked["testlen"]
        closest = min(cooked["reflen"], key=lambda other: (abs(other - length), other))
        rows.append([length, closest, *cooked["correct"], *cooked["guess"]])
    return scorer, np.array(rows, dtype=np.float64)


def _corpus_bleu(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return BLEU-1 to BLEU-4 `(R, 4)` of summed counts `(R, 10)` (Papineni et al. 2002, section 2.3)."""
    length, closest, right, every = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:]
    # The library keeps a count of nothing off zero in this way; intervals must fit its values.
    precision = (right + 1e-15) / (every + 1e-9)
    geometric = np.cumprod(precision, axis=1) ** (1.0 / np.arange(1, _ORDERS + 1))
    brevity = np.exp(np.minimum(0.0, 1.0 - closest / np.maximum(length, 1e-9)))
    scores: NDArray[np.float64] = geometric * brevity[:, None]
    return scores
