"""Everything that one system said about a set of pictures: asked once, kept on disk, figured as often as wanted.

Letters: `N` pictures, `M` human captions.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketlens.core.errors import DataError, storage_errors
from pocketlens.distill.data.sample import PictureFile, Sample
from pocketlens.distill.evaluation.clipscore import PROMPT, clip_scores, reference_scores
from pocketlens.distill.evaluation.corruptions import write_corrupted
from pocketlens.distill.evaluation.judged import Examined
from pocketlens.distill.evaluation.metrics import class_vector, retrieval_ranks, zero_shot_right
from pocketlens.distill.evaluation.probes import probe_texts
from pocketlens.distill.evaluation.questions import Judge, Questions
from pocketlens.distill.evaluation.zero_shot import ClassPrompts, labels_of
from pocketlens.distill.pictures import batches

__all__ = ["Answers", "Seen", "ask", "check_samples", "load_answers", "save_answers"]

_CHUNK: Final = 64
_REMEDY: Final = "Delete it and evaluate again."
Told = Callable[[int, int], None]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the system made of the pictures, clean or made worse.

    Attributes:
        image_ranks: `(N,)`, see `metrics.retrieval_ranks`; empty for a system that does not embed.
        text_ranks: `(M,)`, likewise.
        captions: `(N,)`; empty for a system that does not caption.
    """

    image_ranks: tuple[int, ...] = ()
    text_ranks: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()


class Answers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one system said.

    Attributes:
        subject: its name.
        identity: digests of its models.
        key: of what it was asked: answers to other questions have another one.
        clean: about the pictures as they are.
        corrupted: about the pictures made worse, by `KIND-SEVERITY`.
        confidences: `(N,)`; empty for a system without.
        right: `(N,)`, its zero-shot class is the right one; empty where nobody asked.
        probe_scores: for each picture that was probed, by its row, the log-probability of each text; `None` for a text
            that did not fit.
        clip: `(N,)` CLIPScore; empty without a judge.
        ref_clip: `(N,)` RefCLIPScore.
        notes: what a reader must know, in whole sentences.
    """

    subject: str
    identity: tuple[str, ...]
    key: str
    clean: Seen
    corrupted: dict[str, Seen] = {}
    confidences: tuple[float, ...] = ()
    right: tuple[bool, ...] = ()
    probe_scores: dict[int, dict[str, float | None]] = {}
    clip: tuple[float, ...] = ()
    ref_clip: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def ask(
    system: Examined,
    identity: tuple[str, ...],
    samples: Sequence[Sample],
    folder: Path,
    questions: Questions,
    *,
    judge: Judge | None = None,
    notes: Sequence[str] = (),
    progress: Told | None = None,
) -> Answers:
    """Return what `system` says about `samples`.

    Args:
        system: who is asked.
        identity: digests of its models.
        samples: the pictures, each with at least one human caption.
        folder: what their paths are relative to.
        questions: what is asked.
        judge: gives CLIPScore; `None` for none.
        notes: go into the answers.
        progress: called with (pictures looked at, pictures to look at in all).

    Raises:
        DataError: no samples, or one without captions.
        PictureError: a picture cannot be read.
        StorageFull: no space for the pictures that are made worse.
    """
    check_samples(samples)
    pictures = [sample.picture(folder) for sample in samples]
    probed = sorted({probe.picture for probe in questions.probes}) if system.scores_texts else []
    watch = _Watch(progress, len(pictures) * (1 + len(questions.corruptions)) + len(probed))
    watch.add(0)  # now the clock runs
    texts, owners = _texts(system, samples)
    images, captions, confidences = _look(system, pictures, watch)
    clip, ref_clip = _judged(judge, samples, captions) if captions else ((), ())
    return Answers(
        subject=system.name,
        identity=identity,
        key=questions.key(samples),
        clean=_seen(images, texts, owners, captions),
        corrupted={
            f"{kind}-{severity}": _made_worse(
                system, samples, pictures, (texts, owners), kind, severity, questions.seed, watch
            )
            for kind, severity in questions.corruptions
        },
        confidences=confidences,
        right=_right(system, samples, images, questions.classes),
        probe_scores=_probed(system, pictures, questions, probed, watch),
        clip=clip,
        ref_clip=ref_clip,
        notes=tuple(notes),
    )


def check_samples(samples: Sequence[Sample]) -> None:
    """Check that there are pictures and that each has a human caption.

    Raises:
        DataError: not so.
    """
    bare = [sample.id for sample in samples if not sample.captions]
    if bare or not samples:
        raise DataError(
            "evaluation samples",
            expected="at least one picture, each with a caption",
            found=f"no caption for {bare[0]}" if bare else "none",
            remedy="Choose another split.",
        )


def save_answers(path: Path, answers: Answers) -> None:
    """Write `answers` to `path`; a kill or a full disk leaves what was there before.

    Raises:
        StorageFull: no space left.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(msgspec.json.encode(answers) + b"\n")
        partial.replace(path)


def load_answers(path: Path) -> Answers | None:
    """Return the answers at `path`, `None` where there are none.

    Raises:
        DataError: the file is no answers, or cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Answers)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(str(path), expected="answers as JSON", found=str(error), remedy=_REMEDY) from error


class _Watch:
    """Counts pictures."""

    def __init__(self, told: Told | None, total: int) -> None:
        self._told, self._total, self._done = told, total, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._told is not None:
            self._told(self._done, self._total)


_Texts = tuple[NDArray[np.float32] | None, NDArray[np.intp]]


def _texts(system: Examined, samples: Sequence[Sample]) -> _Texts:
    """Return the vectors of all human captions, `None` for a system that does not embed, and their owners."""
    texts = [text for sample in samples for text in sample.captions]
    owners = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
    return (system.embed_texts(texts) if system.embeds else None), owners


def _look(
    system: Examined, pictures: Sequence[PictureFile], watch: _Watch
) -> tuple[NDArray[np.float32] | None, tuple[str, ...], tuple[float, ...]]:
    """Return embeddings, captions and confidences: what the system has of them."""
    images, captions, confidences = [], list[str](), list[float]()
    for part in batches(len(pictures), _CHUNK):
        if system.embeds:
            images.append(system.embed_images(pictures[part]))
        if system.captions_pictures:
            said = system.captions(pictures[part])
            captions += [one.text for one in said]
            confidences += [one.confidence for one in said if one.confidence is not None]
        watch.add(part.stop - part.start)
    return np.concatenate(images) if images else None, tuple(captions), tuple(confidences)


def _seen(
    images: NDArray[np.float32] | None,
    texts: NDArray[np.float32] | None,
    owners: NDArray[np.intp],
    captions: tuple[str, ...],
) -> Seen:
    if images is None or texts is None:
        return Seen(captions=captions)
    of_images, of_texts = retrieval_ranks(images, texts, owners)
    return Seen(image_ranks=tuple(of_images.tolist()), text_ranks=tuple(of_texts.tolist()), captions=captions)


def _made_worse(
    system: Examined,
    samples: Sequence[Sample],
    pictures: Sequence[PictureFile],
    texts: _Texts,
    kind: str,
    severity: int,
    seed: int,
    watch: _Watch,
) -> Seen:
    images, captions = list[NDArray[np.float32]](), list[str]()
    for part in batches(len(pictures), _CHUNK):
        with tempfile.TemporaryDirectory(prefix="pocketlens-") as scratch, storage_errors(Path(scratch)):
            worse = [Path(scratch) / f"{row}.png" for row in range(part.start, part.stop)]
            for source, target, sample in zip(pictures[part], worse, samples[part], strict=True):
                write_corrupted(source, target, kind, severity, key=sample.id, seed=seed)
            found, said, _ = _look(system, worse, _Watch(None, 0))
        images += [] if found is None else [found]
        captions += said
        watch.add(part.stop - part.start)
    return _seen(np.concatenate(images) if images else None, *texts, tuple(captions))


def _right(
    system: Examined, samples: Sequence[Sample], images: NDArray[np.float32] | None, classes: ClassPrompts | None
) -> tuple[bool, ...]:
    labels = labels_of(samples, classes) if classes is not None else np.full(len(samples), -1)
    if classes is None or images is None or not (labels >= 0).any():
        return ()
    vectors = np.stack([class_vector(system.embed_texts(texts)) for texts in classes.prompts.values()])
    return tuple(zero_shot_right(images, vectors, labels).tolist())


def _probed(
    system: Examined, pictures: Sequence[PictureFile], questions: Questions, rows: Sequence[int], watch: _Watch
) -> dict[int, dict[str, float | None]]:
    texts = probe_texts(questions.probes, questions.table, len(pictures))
    result: dict[int, dict[str, float | None]] = {}
    for part in batches(len(rows), _CHUNK):
        mine = rows[part]
        scores = system.text_logprobs([pictures[row] for row in mine], [texts[row] for row in mine])
        for row, group in zip(mine, scores, strict=True):
            result[row] = {text: None if np.isnan(value) else value for text, value in group.items()}
        watch.add(len(mine))
    return result


def _judged(
    judge: Judge | None, samples: Sequence[Sample], captions: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return CLIPScore and RefCLIPScore of each caption; both sides of the latter get the prompt, as in the paper."""
    if judge is None:
        return (), ()
    own = judge.texts([PROMPT + text for text in captions])
    owners = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
    human = judge.texts([PROMPT + text for sample in samples for text in sample.captions])
    scores = clip_scores(judge.images, own)
    return tuple(scores.tolist()), tuple(reference_scores(scores, own, human, owners).tolist())
