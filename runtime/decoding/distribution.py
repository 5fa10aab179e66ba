"""Logits as a distribution: log-probabilities of the tokens that are asked for, entropies, and the whole table.

Letters: `R` rows, `N` vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import EngineError

__all__ = ["Distribution", "log_softmax"]


class Distribution:
    """What the model says about the next token of each row.

    Exponentials are taken in float32 and summed in float64: log-probabilities and entropies are exact to about
    1e-6. Nothing but the exponentials touches all `N` columns until `table` is asked for.

    Args:
        logits: `(R, N)` float.

    Raises:
        EngineError: a logit is not a finite number.
    """

    def __init__(self, logits: NDArray[np.floating[Any]]) -> None:
        if not np.isfinite(logits).all():
            raise EngineError(
                "caption_decode",
                expected="finite logits",
                found="NaN or infinity",
                remedy="The graph is numerically broken: export the bundle again or choose another precision.",
            )
        self._shifted = logits - logits.max(axis=-1, keepdims=True)  # (R, N), at most 0
        powers = np.exp(self._shifted)
        total = powers.sum(axis=-1, dtype=np.float64)
        self._log_total = np.log(total)
        weighted = (powers * self._shifted).sum(axis=-1, dtype=np.float64)
        self.entropies: NDArray[np.float64] = np.maximum(self._log_total - weighted / total, 0.0)
        """`(R,)` nats."""

    def rows(self, rows: Sequence[int]) -> "Distribution":
        """Return the distributions of `rows`, in that order; a row may be asked for more than once."""
        chosen = object.__new__(Distribution)
        chosen._shifted = self._shifted[rows]
        chosen._log_total = self._log_total[rows]
        chosen.entropies = self.entropies[rows]
        return chosen

    def best(self, banned: Sequence[Sequence[int]] = ()) -> NDArray[np.int32]:
        """Return the most probable token of each row `(R,)`; ties go to the smaller id.

        Args:
            banned: tokens that are out of the question, by row; none at all, or one sequence for each row.
        """
        best: NDArray[np.int32] = self._without(self._shifted, banned).argmax(axis=-1).astype(np.int32)
        return best

    def probabilities(self, temperature: float, banned: Sequence[Sequence[int]] = ()) -> NDArray[np.float64]:
        """Return `(R, N)` in proportion to the probabilities at `temperature`; 0 for what is banned.

        Args:
            temperature: logits are divided by it; above 0.
            banned: as in `best`.
        """
        cooled = self._without(self._shifted.astype(np.float64) / temperature, banned)
        # Without its most probable tokens a row may be all but empty: the best of what is left counts as 1.
        powers: NDArray[np.float64] = np.exp(cooled - cooled.max(axis=-1, keepdims=True))
        return powers

    def _without(self, table: NDArray[Any], banned: Sequence[Sequence[int]]) -> NDArray[Any]:
        if not any(banned):
            return table
        table = table.copy()
        for row, tokens in enumerate(banned):
            table[row, list(tokens)] = -np.inf
        return table

    def logprobs(self, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
        """Return the natural log-probability `(R,)` of one token per row."""
        chosen: NDArray[np.float64] = self._shifted[np.arange(len(tokens)), tokens] - self._log_total
        return chosen

    def table(self) -> NDArray[np.float64]:
        """Return all natural log-probabilities `(R, N)`."""
        table: NDArray[np.float64] = self._shifted - self._log_total[:, None]
        return table


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return natural log-probabilities over the last axis of `logits`, in float64 throughout.

    Raises:
        EngineError: a logit is not a finite number.
    """
    wide = logits.astype(np.float64)
    return Distribution(wide.reshape(-1, wide.shape[-1])).table().reshape(wide.shape)
