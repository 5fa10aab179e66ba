"""No n-gram twice: which tokens a caption may not go on with.

Source: Paulus et al. 2018, "A Deep Reinforced Model for Abstractive Summarization", section 2.5 (trigrams).
"""

from collections.abc import Sequence

__all__ = ["repeating"]


def repeating(ids: Sequence[int], size: int) -> list[int]:
    """Return the tokens that would complete an n-gram of `size` that `ids` has already; size 0 bans nothing.

    The end token is never among them: it would have ended `ids`.
    """
    if size < 1 or len(ids) < size:
        return []
    tail = tuple(ids[len(ids) - size + 1 :])
    return [ids[at + size - 1] for at in range(len(ids) - size + 1) if tuple(ids[at : at + size - 1]) == tail]
