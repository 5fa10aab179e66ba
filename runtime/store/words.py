"""Captions by their words (FTS5, BM25), and two rankings made one."""

import re
from collections.abc import Sequence
from typing import Final

import apsw

from pocketlens.runtime.store.models import Model

__all__ = ["by_words", "fused", "with_words"]

_RRF_K: Final = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""
_WORD: Final = re.compile(r"\w+")
_MOST_WORDS: Final = 64
_EMPTY_WORDS: Final = frozenset(
    "a an and are at by for from in is it of on or some that the there this to with".split()  # noqa: SIM905
)
"""Left out of a query that has other words: nearly every caption has them, and ranks count whatever the score."""


def by_words(
    connection: apsw.Connection, model: Model, words: str, k: int, *, condition: str, values: Sequence[object]
) -> list[int]:
    """Return the ids of at most `k` entries whose captions share words with `words`, by BM25.

    `condition` and `values` are those of the filter.
    """
    match = _match(words)
    if match is None:
        return []
    rows = connection.execute(
        "SELECT words.rowid FROM words JOIN entries e ON e.id = words.rowid JOIN files f ON f.id = e.file "
        f"WHERE words MATCH ? AND e.model = ? AND {condition} ORDER BY words.rank, words.rowid LIMIT ?",
        (match, model.id, *values, k),
    )
    return [int(row[0]) for row in rows]


def with_words(connection: apsw.Connection, ids: Sequence[int], words: str) -> set[int]:
    """Return those of `ids` whose captions hold one of `words`."""
    match = _match(words)
    if match is None or not ids:
        return set()
    marks = ",".join(str(int(index)) for index in ids)
    rows = connection.execute(f"SELECT rowid FROM words WHERE words MATCH ? AND rowid IN ({marks})", (match,))
    return {int(row[0]) for row in rows}


def fused(*rankings: Sequence[int]) -> dict[int, float]:
    """Return the score of each id in `rankings`: the sum of 1 / (60 + rank), ranks from 1."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, index in enumerate(ranking, 1):
            scores[index] = scores.get(index, 0.0) + 1 / (_RRF_K + rank)
    return scores


def _match(words: str) -> str | None:
    """Return an FTS5 query for any of `words`: each in quotes, so that none of them is read as an operator."""
    every = _WORD.findall(words)[:_MOST_WORDS]
    found = [word for word in every if word.lower() not in _EMPTY_WORDS] or every
    return " OR ".join(f'"{word}"' for word in found) or None
