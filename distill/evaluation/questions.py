"""What every subject is asked in one evaluation, so that their figures compare."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from pocketlens.distill.evaluation.objects import ObjectTable, counted, object_table, true_kinds
from pocketlens.distill.evaluation.probes import Probe, draw_probes
from pocketlens.distill.evaluation.subjects import Opened
from pocketlens.distill.evaluation.zero_shot import ClassPrompts, read_class_prompts, scene_prompts

__all__ = ["PROBED_PICTURES", "Judge", "Questions", "prepare_judge", "prepare_questions"]

PROBED_PICTURES: Final = 500
"""Pictures that are probed, by default, as many as in the paper of POPE: each costs up to 24 sentences."""

_FORMAT: Final = 1  # raised when the same questions are asked in another way


class Judge(msgspec.Struct, frozen=True, eq=False):
    """The model that gives CLIPScore.

    Attributes:
        id: who it is.
        identity: digests of its models.
        images: `(N, D)`, its embeddings of the pictures.
        texts: embeds texts.
    """

    id: str
    identity: tuple[str, ...]
    images: NDArray[np.float32]
    texts: Callable[[Sequence[str]], NDArray[np.float32]]


class Questions(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What is asked about a set of pictures.

    Attributes:
        seed: of probes, corruptions and bootstrap.
        table: classes of objects.
        truths: `(N,)`, the classes that each picture shows.
        counted: somebody counted the objects of every picture; otherwise the human captions are the truth.
        probes: the yes/no probes; empty for none.
        classes: of zero-shot classification; `None` for none.
        corruptions: kinds and severities.
        judge: id of the judge of CLIPScore, empty for none.
    """

    seed: int
    table: ObjectTable
    truths: tuple[frozenset[str], ...]
    counted: bool
    probes: tuple[Probe, ...] = ()
    classes: ClassPrompts | None = None
    corruptions: tuple[tuple[str, int], ...] = ()
    judge: tuple[str, ...] = ()

    def key(self, samples: Sequence[Sample]) -> str:
        """Return a hash of the questions and of the pictures that they are about."""
        about = [(sample.id, sample.image, sample.sha256, sample.captions) for sample in samples]
        truths = [sorted(truth) for truth in self.truths]
        probed = sorted({kind for probe in self.probes for kind in (probe.present, probe.absent)})
        names = [self.table.name(kind) for kind in probed]  # what is asked about them holds these words
        asked = (_FORMAT, self.seed, truths, self.probes, names, self.classes, self.corruptions, self.judge, about)
        return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


def prepare_questions(
    samples: Sequence[Sample],
    *,
    seed: int = 0,
    objects: str = "auto",
    classes: Path | None = None,
    probed_pictures: int = PROBED_PICTURES,
    robustness: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    judge: tuple[str, ...] = (),
) -> Questions:
    """Return the questions about `samples`.

    Args:
        samples: the pictures.
        seed: of probes, corruptions and bootstrap.
        objects: `scenes`, `photo`, a table's file, or `auto`: `scenes` where every picture's kinds are known.
        classes: a file of classes and templates; without one the built-in scenes have their own, other data none.
        probed_pictures: how many of the first pictures are probed, 0 for none.
        robustness: kinds of corruption.
        severities: of each kind.
        judge: identity of CLIPScore's judge.

    Raises:
        DataError: a table is malformed, or there is no such corruption.
    """
    scenes = object_table("scenes")
    drawn = bool(samples) and all(counted(sample, scenes) for sample in samples)
    table = object_table(("scenes" if drawn else "photo") if objects == "auto" else objects)
    strange = sorted({*map(str, set(severities) - set(SEVERITIES)), *(set(robustness) - set(CORRUPTIONS))})
    if strange:
        raise DataError(
            "robustness",
            expected=f"kinds out of {', '.join(CORRUPTIONS)}; severities out of {', '.join(map(str, SEVERITIES))}",
            found=", ".join(strange),
            remedy="Choose from those.",
        )
    truths = true_kinds(samples, table)
    probes = draw_probes(truths, ids=[sample.id for sample in samples], seed=seed) if probed_pictures else []
    prompts = read_class_prompts(classes) if classes is not None else scene_prompts() if drawn else None
    return Questions(
        seed=seed,
        table=table,
        truths=tuple(truths),
        counted=all(counted(sample, table) for sample in samples),
        probes=tuple(probe for probe in probes if probe.picture < probed_pictures),
        classes=prompts,
        corruptions=tuple((kind, severity) for kind in robustness for severity in severities),
        judge=judge,
    )


def prepare_judge(opened: Opened, samples: Sequence[Sample], folder: Path) -> Judge:
    """Return the judge of CLIPScore with its view of all pictures.

    Raises:
        DataError: it does not embed.
        PictureError: a picture cannot be read.
    """
    system = opened.system
    if not system.embeds:
        raise DataError(
            f"judge {system.name}",
            expected="a model that embeds pictures and texts",
            found="one that does not",
            remedy="Name an embedding teacher, a student or a bundle with a text encoder.",
        )
    images = system.embed_images([sample.picture(folder) for sample in samples])
    return Judge(opened.id, opened.identity, images, system.embed_texts)
