"""From several raters' files and the key to agreement, a win rate and mean ratings with intervals."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError
from pocketlens.distill.evaluation.agreement import Level, krippendorff_alpha
from pocketlens.distill.evaluation.metrics import Bootstrap, Figure
from pocketlens.distill.evaluation.rating_sheet import RatingKey

__all__ = ["Rating", "RatingReport", "Ratings", "Verdict", "rating_report", "read_ratings"]

Question = Literal["correct", "invented", "useful"]

_LEVELS: Final[dict[Question, Level]] = {"correct": "ordinal", "invented": "nominal", "useful": "ordinal"}


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rater says about one caption.

    Attributes:
        correct: 1 (wrong) to 5 (all of it is right); `None` where not answered.
        invented: whether it names something that is not there.
        useful: 1 to 5.
    """

    correct: Literal[1, 2, 3, 4, 5] | None = None
    invented: bool | None = None
    useful: Literal[1, 2, 3, 4, 5] | None = None


class Rating(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rater says about one pair.

    Attributes:
        pair: its place in the sheet, from 0.
        left, right: about each caption.
        prefers: the better one; `None` where not answered.
    """

    pair: int
    left: Verdict = Verdict()
    right: Verdict = Verdict()
    prefers: Literal["left", "right", "neither"] | None = None


class Ratings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rater's export.

    Attributes:
        format: 1.
        seal: of the sheet that was rated.
        rater: the name that the rater gave.
        ratings: at most one a pair.
    """

    format: Literal[1]
    seal: str
    rater: str
    ratings: tuple[Rating, ...]


class RatingReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        systems: the two names, A and B.
        raters: how many.
        pairs: that somebody rated.
        win_rate: share of votes for A over B, a vote for neither counted half (in [0, 1]).
        preference_alpha: agreement about the preference.
        alpha: agreement about each question.
        figures: for each system and question the mean: `A_correct`, ...; and `A_minus_B_correct`, paired.
        votes: for A, for B, for neither.
    """

    systems: tuple[str, str]
    raters: int
    pairs: int
    win_rate: Figure
    preference_alpha: float
    alpha: dict[str, float]
    figures: dict[str, Figure]
    votes: dict[str, int]


def read_ratings(path: Path, key: RatingKey) -> Ratings:
    """Return the ratings at `path`, checked against `key`.

    Raises:
        DataError: it is malformed, belongs to another sheet, or names a pair twice or one that is not there.
    """
    try:
        ratings = msgspec.json.decode(path.read_bytes(), type=Ratings)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(
            str(path),
            expected="ratings that a sheet exported",
            found=str(error),
            remedy="Export them again from the sheet.",
        ) from error
    often = Counter(rating.pair for rating in ratings.ratings)
    strange = [pair for pair, count in often.items() if count > 1 or not 0 <= pair < len(key.pairs)]
    if ratings.seal != key.seal or strange:
        raise DataError(
            str(path),
            expected=f"ratings of the sheet with the seal {key.seal[:12]}, each of its pairs at most once",
            found=f"the seal {ratings.seal[:12]}; not fitting pairs: {strange[:5]}",
            remedy="Take the key and the ratings of the same sheet.",
        )
    return ratings


def rating_report(everybody: Sequence[Ratings], key: RatingKey, *, seed: int = 0) -> RatingReport:
    """Return agreement, win rate and means. Intervals are bootstraps over pictures, whose ratings stay together.

    Args:
        everybody: the raters, at least one.
        key: of the sheet.
        seed: of the bootstrap.

    Raises:
        DataError: no ratings, or two files of the same rater.
    """
    names = Counter(one.rater for one in everybody)
    twice = [name for name, count in names.items() if count > 1]
    rated = {rating.pair for one in everybody for rating in one.ratings}
    if not rated or twice:
        raise DataError(
            "ratings",
            expected="at least one rated pair, and one file a rater",
            found=f"{len(rated)} pairs; twice: {', '.join(twice) or 'nobody'}",
            remedy="Give each rater's export once.",
        )
    count = len(key.pairs)
    bootstrap = Bootstrap(count, seed=seed)
    votes = _votes(everybody, key)
    given = ~np.isnan(votes)
    figures: dict[str, Figure] = {}
    alpha: dict[str, float] = {}
    for question, level in _LEVELS.items():
        table = _verdicts(everybody, key, question)  # (raters, systems, pairs)
        alpha[question] = krippendorff_alpha(table.transpose(0, 2, 1).reshape(len(table), -1), level=level)
        means = [bootstrap.ratio(np.nansum(side, axis=0), (~np.isnan(side)).sum(axis=0)) for side in _sides(table)]
        figures |= {f"A_{question}": means[0], f"B_{question}": means[1]}
        figures[f"A_minus_B_{question}"] = bootstrap.difference(means[0], means[1])
    return RatingReport(
        systems=key.systems,
        raters=len(everybody),
        pairs=len(rated),
        win_rate=bootstrap.ratio(np.nansum(votes, axis=0), given.sum(axis=0)),
        preference_alpha=krippendorff_alpha(votes, level="ordinal"),
        alpha=alpha,
        figures=figures,
        votes={name: int((votes == value).sum()) for name, value in (("A", 1.0), ("B", 0.0), ("neither", 0.5))},
    )


def _sides(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return table[:, 0], table[:, 1]


def _votes(everybody: Sequence[Ratings], key: RatingKey) -> NDArray[np.float64]:
    """Return `(raters, pairs)`: 1 for A, 0 for B, 0.5 for neither, NaN for no vote."""
    votes = np.full((len(everybody), len(key.pairs)), np.nan)
    for row, one in enumerate(everybody):
        for rating in one.ratings:
            if rating.prefers is not None:
                left_is_a = key.pairs[rating.pair][1] == 0
                for_a = {"left": float(left_is_a), "right": float(not left_is_a), "neither": 0.5}
                votes[row, rating.pair] = for_a[rating.prefers]
    return votes


def _verdicts(everybody: Sequence[Ratings], key: RatingKey, question: Question) -> NDArray[np.float64]:
    """Return `(raters, 2, pairs)`: what was said about A's and about B's caption, NaN where nothing was."""
    table = np.full((len(everybody), 2, len(key.pairs)), np.nan)
    for row, one in enumerate(everybody):
        for rating in one.ratings:
            left = key.pairs[rating.pair][1]
            for side, verdict in ((left, rating.left), (1 - left, rating.right)):
                value = getattr(verdict, question)
                if value is not None:
                    table[row, side, rating.pair] = float(value)
    return table
