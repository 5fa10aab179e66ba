"""Yes/no probes for object hallucination, asked of a captioner through the probability of a sentence.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (POPE), EMNLP 2023, ask a chat model "Is
there a dog in the image?". A captioner cannot be asked, but it can be made to score: each picture gets as many objects
that it shows as objects that it does not, and of each the log-probability of "there is a dog". Absent objects are drawn
in the paper's three ways (section 4.2):

- `random`: any object that the picture does not show;
- `popular`: the absent objects that most pictures show;
- `adversarial`: the absent objects that most often stand beside those that the picture shows.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Final, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.distill.evaluation.metrics import Bootstrap, Figure
from pocketlens.distill.evaluation.objects import ObjectTable

__all__ = ["PROBES_PER_PICTURE", "Probe", "Way", "affirmed", "denied", "draw_probes", "probe_figures", "probe_texts"]

PROBES_PER_PICTURE: Final = 3
"""The most objects of each answer and way that a picture is asked about, as in the paper."""

Way = Literal["random", "popular", "adversarial"]

_WAYS: Final[tuple[Way, ...]] = get_args(Way)
_VOWELS: Final = frozenset("aeiou")


class Probe(msgspec.Struct, frozen=True):
    """A pair of questions about one picture.

    Attributes:
        picture: its row.
        way: how the absent object was drawn.
        present: a class that the picture shows.
        absent: a class that it does not show.
    """

    picture: int
    way: Way
    present: str
    absent: str


def draw_probes(truths: Sequence[frozenset[str]], *, ids: Sequence[str], seed: int) -> list[Probe]:
    """Return the probes of all pictures; a picture that shows nothing of the table has none.

    Args:
        truths: what each picture shows.
        ids: of the pictures; with `seed` they decide the draws, whatever the order.
        seed: of the draws.
    """
    shown = Counter(kind for truth in truths for kind in truth)
    together: dict[str, Counter[str]] = {kind: Counter() for kind in shown}
    for truth in truths:
        for one, other in combinations(sorted(truth), 2):
            together[one][other] += 1
            together[other][one] += 1
    kinds = sorted(shown)  # classes that no picture shows would be too easy to deny
    probes = []
    for row, (truth, name) in enumerate(zip(truths, ids, strict=True)):
        number = hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8]
        rng = np.random.default_rng(int.from_bytes(number, "big"))
        present = [str(kind) for kind in rng.permutation(sorted(truth))][:PROBES_PER_PICTURE]
        absent = [str(kind) for kind in rng.permutation([kind for kind in kinds if kind not in truth])]
        beside = Counter[str]()
        for kind in truth:
            beside.update(together[kind])
        # sorted() is stable: equals stay in random order
        ranked: dict[Way, list[str]] = {
            "random": absent,
            "popular": sorted(absent, key=lambda kind: -shown[kind]),
            "adversarial": sorted(absent, key=lambda kind: -beside[kind]),
        }
        for way in _WAYS:
            probes += [Probe(row, way, a, b) for a, b in zip(present, ranked[way], strict=False)]
    return probes


def affirmed(table: ObjectTable, kind: str) -> str:
    """Return "there is a dog"."""
    noun = table.name(kind)
    return f"there is {'an' if noun[0] in _VOWELS else 'a'} {noun}"


def denied(table: ObjectTable, kind: str) -> str:
    """Return "there is no dog"."""
    return f"there is no {table.name(kind)}"


def probe_texts(probes: Sequence[Probe], table: ObjectTable, count: int) -> list[tuple[str, ...]]:
    """Return, for each of `count` pictures, the texts that its probes need scored, each once."""
    asked: list[dict[str, None]] = [{} for _ in range(count)]
    for probe in probes:
        for kind in (probe.present, probe.absent):
            asked[probe.picture] |= {affirmed(table, kind): None, denied(table, kind): None}
    return [tuple(texts) for texts in asked]


def probe_figures(
    probes: Sequence[Probe], scores: Sequence[dict[str, float]], table: ObjectTable, *, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Return, for each way of drawing, how the captioner answered.

    Two forms. *Yes or no*: "yes" where "there is a dog" is more probable than "there is no dog"; figures as in the
    paper: `probe_WAY_accuracy`, `_precision`, `_recall`, `_f1` and `_yes` (the share of yes). A captioner that never
    read "there is no" says yes to everything: accuracy 0.5. So also *pairs*, `probe_WAY_pairs`: the share of pairs of a
    present and an absent object in which the present one is the more probable; chance is 0.5, and a frequent word has
    an advantage in every picture. Ties count as wrong.

    Args:
        probes: from `draw_probes`.
        scores: for each picture the log-probability of each of its `probe_texts`.
        table: of the classes.
        bootstrap: of the pictures.
    """
    figures: dict[str, Figure] = {}
    for way in _WAYS:
        mine = [probe for probe in probes if probe.way == way]
        table_of = np.zeros((bootstrap.count, 6))  # asked, hits, false alarms, yes, pairs, right pairs
        for probe in mine:
            table_of[probe.picture] += _answers(probe, scores[probe.picture], table)
        asked, hits, alarms, yes, pairs, won = table_of.T
        figures |= {
            f"probe_{way}_accuracy": bootstrap.ratio(hits + pairs - alarms, asked),
            f"probe_{way}_precision": bootstrap.ratio(hits, hits + alarms),
            f"probe_{way}_recall": bootstrap.ratio(hits, pairs),
            f"probe_{way}_f1": bootstrap.ratio(2 * hits, hits + alarms + pairs),
            f"probe_{way}_yes": bootstrap.ratio(yes, asked),
            f"probe_{way}_pairs": bootstrap.ratio(won, pairs),
        }
    return figures


def _answers(probe: Probe, scores: dict[str, float], table: ObjectTable) -> NDArray[np.float64]:
    there, absent = (scores[affirmed(table, kind)] for kind in (probe.present, probe.absent))
    hit = there > scores[denied(table, probe.present)]
    alarm = not absent < scores[denied(table, probe.absent)]  # a tie, or what is no number, is wrong
    return np.array([2, hit, alarm, hit + alarm, 1, there > absent], dtype=np.float64)
