"""Both towers towards a blend: what the student says, already trained on the pairs, added to what the teacher says.

Their sum retrieves better than either of the two. Each tower learns it alone, where it is cheap: the image heads from
cached maps, and from maps that are cut together, on which both can be asked as well (Beyer et al. 2022, "Knowledge
distillation: a good teacher is patient and consistent"); the text tower from human and sampled captions, against the
new pictures. At last the two projections learn together what their towers' features are worth to each other.

Letters: `B` rows of a step, `N` pictures, `V` views, `M` captions, `D` embedding of the student, `T` of the teacher.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.flickr8k.descent import Descent, StudentTraining
from benchmarks.flickr8k.features import MAP
from benchmarks.flickr8k.heads import Features, Pair
from benchmarks.flickr8k.small import Lesson, as_maps
from benchmarks.flickr8k.text_alone import NOBODY, Sampled, batches, embedded_pictures, embedded_texts, turned
from pocketlens.distill import losses
from pocketlens.distill.students.student import Student

__all__ = ["Blend", "BlendTraining", "blend", "learn_pictures", "learn_projections", "learn_texts", "widened"]

_SIDE: Final = 7
_MIRRORED: Final = 2  # views: the picture and its mirror image
_PAD: Final = 0
_ROWS: Final = 500
_DRAWN: Final = 2  # captions of a picture


class BlendTraining(StudentTraining, frozen=True, kw_only=True):
    """How one tower learns the blend.

    Attributes:
        steps: of the descent; `epochs` is of no use here.
        teacher: the teacher's share of the blend; the projections take the blend as it is.
        captions: with how many captions a step compares its pictures.
    """

    steps: int
    teacher: float = 0.0
    captions: int = 2048
    dropout: float = 0.0
    word_dropout: float = 0.0
    ema: float = 0.98


class Blend(NamedTuple):
    """What is learnt: `images (V, N, D)`, `texts (M, D)` of unit norm, the human captions first, then the sampled ones.

    Attributes:
        images: of the picture and of its mirror image the mean of the two.
        texts: one of each caption.
        ids: `(M, L)` of the captions, padded with 0.
        start: the student's share in it; it stays as it is.
        directions: `(T, D)`, the student's space in the teacher's.
    """

    images: Tensor
    texts: Tensor
    ids: NDArray[np.int32]
    start: Student
    directions: Tensor


def widened(student: Student, queries: int) -> Student:
    """Return a student whose image head asks `queries` questions and that answers as `student` does."""
    wide, own = Student(msgspec.structs.replace(student.config, image_queries=queries)), student.state_dict()
    values, old = wide.state_dict(), student.config.image_queries
    attention, projection = "image_encoder.attention.", "image_encoder.projection.weight"
    for name, value in own.items():
        if values[name].shape == value.shape:
            values[name] = value
    scores, prior = values[f"{attention}scores.weight"], values[f"{attention}prior"]
    scores[:old], prior[:, :old] = own[f"{attention}scores.weight"], own[f"{attention}prior"]
    scores[old:] = torch.randn_like(scores[old:]) * scores[:old].std()
    prior[:, old:] = torch.randn_like(prior[:, old:]) * prior[:, :old].std()
    values[projection].zero_()
    values[projection][:, : own[projection].shape[1]] = own[projection]
    wide.load_state_dict(values)
    return wide.eval()


@torch.no_grad()
def blend(
    student: Student,
    lesson: Lesson,
    sampled: Sampled,
    ids: NDArray[np.int32],
    directions: Tensor,
    *,
    pictures: float,
    texts: float,
) -> Blend:
    """Return the blend with the teacher's shares `pictures` and `texts`; `ids` are the captions', in order."""
    own = torch.stack([embedded_pictures(student, view) for view in lesson.maps])
    taught = torch.from_numpy(lesson.teacher_images.astype(np.float32))[: len(own)]
    for vectors in (own, taught):
        vectors[:_MIRRORED] = functional.normalize(vectors[:_MIRRORED].mean(dim=0), dim=1)
    teacher = turned(np.concatenate([lesson.teacher_texts, sampled.teacher]), directions)
    return Blend(
        images=_between(own, functional.normalize(taught @ directions, dim=2), pictures),
        texts=_between(embedded_texts(student.text_encoder, torch.from_numpy(ids)), teacher, texts),
        ids=ids,
        start=student,
        directions=directions,
    )


def learn_pictures(
    student: Student, features: Features, pairs: Sequence[Pair], goal: Blend, training: BlendTraining
) -> list[float]:
    """Train the image heads of `student` in place; return the loss of each step.

    Half of a step are pictures in one of their views, half are two pictures cut together along a line of the grid: what
    the teacher's heads `pairs` and the start say of such a map of `features` is known too.
    """
    torch.manual_seed(training.seed)
    rng, image = np.random.default_rng(training.seed), student.image_encoder
    heads = [image.projection, *([image.attention] if image.attention is not None else [])]
    descent = Descent([weight for head in heads for weight in head.parameters()], training, steps=training.steps)
    scale, curve = student.logit_scale.detach().exp(), []
    views, count = goal.images.shape[:2]
    for _ in range(training.steps):
        rows, view = rng.integers(count, size=training.batch), rng.integers(views, size=training.batch)
        maps = torch.from_numpy(features.grids[view, rows].astype(np.float32))
        pooled = torch.from_numpy(features.pooled[view, rows].astype(np.float32))
        half = training.batch // 2
        cut, cut_pooled = _cut_together(maps, pooled, half, rng)
        with torch.no_grad():
            taught = torch.cat([pair.image(cut, None, cut_pooled) for pair in pairs], dim=1)
            own, _ = goal.start.image_encoder.heads(as_maps(cut[..., :MAP]))
            known = _between(own, functional.normalize(taught @ goal.directions, dim=1), training.teacher)
        images, _ = image.heads(as_maps(torch.cat([maps[half:], cut])[..., :MAP]))
        among = goal.texts[rng.integers(len(goal.texts), size=training.captions)]
        wanted = torch.cat([goal.images[view[half:], rows[half:]], known])
        curve.append(descent.step(_loss(images, among, wanted, among, scale, training)))
    descent.finish()
    return curve


def learn_texts(
    student: Student,
    lesson: Lesson,
    goal: Blend,
    training: BlendTraining,
    *,
    after: Callable[[int, float], None] = lambda step, loss: None,
    each: int = 140,
) -> list[float]:
    """Train the text tower of `student` in place, against its pictures, which stand still; return each step's loss.

    Half of a batch are human captions. `after` is called every `each` steps, while the tower has its mean weights.
    """
    torch.manual_seed(training.seed)
    rng, text = np.random.default_rng(training.seed), student.text_encoder
    owners = np.arange(len(goal.ids)) // 5
    owners[len(lesson.texts) :] = NOBODY
    still = [embedded_pictures(student, view) for view in lesson.maps[: len(goal.images)]]
    descent = Descent(list(text.parameters()), training, steps=training.steps)
    scale, curve = student.logit_scale.detach().exp(), []
    text.train()
    rounds = batches(goal.ids, owners, training, rng, steps=training.steps)
    for step, chosen in enumerate(rounds, 1):
        view = int(rng.integers(len(still)))
        longest = min(training.tokens, int((goal.ids[chosen] != _PAD).sum(axis=1).max()))
        moving = text(torch.from_numpy(goal.ids[chosen, :longest]))
        curve.append(descent.step(_loss(moving, still[view], goal.texts[chosen], goal.images[view], scale, training)))
        if step % each == 0:
            text.eval()
            with descent.averaged():
                after(step, float(np.mean(curve[-each:])))
            text.train()
    descent.finish()
    text.eval()
    return curve


def learn_projections(student: Student, lesson: Lesson, goal: Blend, training: BlendTraining) -> list[float]:
    """Train both projections of `student` in place on what the towers give them; return the loss of each step.

    A step takes `training.batch` pictures in one view and two human captions of each. The pairs count as well.
    """
    rng, image, text = np.random.default_rng(training.seed), student.image_encoder.projection, student.text_encoder
    taken = len(lesson.texts)
    captions = _given_texts(student, torch.from_numpy(goal.ids[:taken]))
    pictures = [_given(image, partial(embedded_pictures, student, view)) for view in lesson.maps[: len(goal.images)]]
    weights = [weight for layer in (text.projection, image) for weight in layer.parameters()]
    descent, curve = Descent(weights, training, steps=training.steps), []
    scale, terms = student.logit_scale.detach().exp(), training.losses
    for _ in range(training.steps):
        rows, view = rng.permutation(taken // 5)[: training.batch], int(rng.integers(len(pictures)))
        drawn = rng.permuted(np.tile(np.arange(5), (len(rows), 1)), axis=1)[:, :_DRAWN] + 5 * rows[:, None]
        of_texts = drawn.T.reshape(-1)
        images = functional.normalize(image(pictures[view][rows]), dim=1)
        texts = functional.normalize(text.projection(captions[of_texts]), dim=1)
        loss = _loss(images, texts, goal.images[view, rows], goal.texts[of_texts], scale, training)
        loss = loss + terms.feature * losses.feature(texts, goal.texts[of_texts])
        pairs = [losses.contrastive(images, part, scale) for part in texts.chunk(_DRAWN)]
        curve.append(descent.step(loss + terms.contrastive * torch.stack(pairs).mean()))
    descent.finish()
    return curve


def _given(layer: nn.Module, compute: Callable[[], object]) -> Tensor:
    """Return what `layer` is given while `compute` runs, row under row."""
    found: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])

    hook = layer.register_forward_pre_hook(note)
    try:
        compute()
    finally:
        hook.remove()
    return torch.cat(found).clone()


def _given_texts(student: Student, ids: Tensor) -> Tensor:
    """Return what the text tower's projection is given for `ids (M, L)`, computed in the order of their lengths."""
    text, lengths = student.text_encoder, (ids != _PAD).sum(dim=1)
    order = lengths.argsort()

    @torch.inference_mode()
    def compute() -> None:
        for rows in order.split(_ROWS):
            text(ids[rows, : int(lengths[rows].max())])

    found = _given(text.projection, compute)
    out = torch.empty_like(found)
    out[order] = found
    return out


def _loss(
    moving: Tensor, still: Tensor, wanted: Tensor, wanted_still: Tensor, scale: Tensor, training: BlendTraining
) -> Tensor:
    """Return how far `moving (B, D)` is from `wanted`, alone and by its similarities to the other tower's vectors."""
    near = losses.affinity(moving, still, scale, wanted, wanted_still, temperature=1 / scale.item())
    return training.losses.affinity * near + training.losses.feature * losses.feature(moving, wanted)


def _between(own: Tensor, taught: Tensor, share: float) -> Tensor:
    return functional.normalize(own + share * (taught - own), dim=-1)


def _cut_together(maps: Tensor, pooled: Tensor, half: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return `half` maps, each a part of one of the first `half` and a part of another, and their pooled features.

    The pooled ones are mixed by area: they are means over places.
    """
    other = rng.permutation(half) + half
    kept, upright = rng.integers(1, _SIDE, size=half), rng.random(half) < 0.5
    row, column = np.divmod(np.arange(_SIDE**2), _SIDE)
    first = np.where(upright[:, None], column < kept[:, None], row < kept[:, None])
    share = torch.from_numpy(kept / _SIDE).float()[:, None]
    cut = torch.where(torch.from_numpy(first)[..., None], maps[:half], maps[other])
    return cut, share * pooled[:half] + (1 - share) * pooled[other]
