"""The stages `teacher` and `reinforce`: both teachers, and what they say of the training data.

Each leaves files in the output folder and skips what is there.
"""

from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.flickr8k.captioner import TEACHING, WIDTH, GridCaptioner, write_captions
from benchmarks.flickr8k.captions import (
    CaptionLesson,
    found_captions,
    found_likely,
    train_captions,
)
from benchmarks.flickr8k.features import CHANNELS
from benchmarks.flickr8k.heads import HeadRecipe, Pair, embed_grids, embed_tokens, train_pair
from benchmarks.flickr8k.judged import judged_captions, judged_recall
from benchmarks.flickr8k.likely import Likely
from benchmarks.flickr8k.nearest import nearest_captions
from benchmarks.flickr8k.place import Place, save_weights, shortened
from benchmarks.flickr8k.small import (
    encoded,
    small_tokenizer,
)
from benchmarks.flickr8k.word_space import WordSpace, word_space
from pocketlens.core.tokenizer import Tokenizer

__all__ = [
    "BEAMS",
    "HEADS",
    "Taught",
    "borrowed_captions",
    "embed",
    "open_captions",
    "open_pairs",
    "open_space",
    "open_teacher",
    "reinforce",
    "teach",
    "train_heads",
    "train_teacher_captioner",
    "vocabulary",
]

HEADS = (HeadRecipe(), HeadRecipe(queries=6, dropout=0.35, seed=1), HeadRecipe(queries=6, dropout=0.3, seed=2))
"""The ensemble. Its members differ in seed, queries and dropout."""

BEAMS = 3

_NEIGHBOURS = (1, 30)

_CAPTION_VIEWS = 2  # a crop may have lost what its captions speak of


class Taught(NamedTuple):
    """The teachers, and the vocabulary in which the captioner writes: the student's."""

    pairs: list[Pair]
    captioner: GridCaptioner
    words: Tokenizer


def teach(place: Place) -> None:
    """Train the ensemble of heads and the captioner; judge both on `dev`."""
    if (place.out / "teacher.json").exists():
        return
    train_heads(place)
    embed(place)
    train_teacher_captioner(place)
    taught, dev, references = open_teacher(place), place.features("dev"), place.split("dev").captions
    images, texts = embed_grids(taught.pairs, dev), embed_tokens(taught.pairs, dev)
    figures = {
        f"captions, {beams} beams": judged_captions(
            [text for text, _ in write_captions(taught.captioner, taught.words, dev.grids[0], beams=beams)], references
        )
        for beams in (1, BEAMS)
    }
    figures |= {
        f"caption of {count} nearest pictures": judged_captions(borrowed_captions(place, images[0], count), references)
        for count in _NEIGHBOURS
    }
    figures["one view"] = judged_recall(images[0], texts)
    figures["mirrored too"] = judged_recall(_unit(images.mean(axis=0)), texts)
    place.write("teacher", {"seconds": place.seconds(), "dev": figures})


def train_heads(place: Place) -> None:
    """Train the members of the ensemble that are not there yet."""
    for number, recipe in enumerate(HEADS[:1] if place.quick else HEADS):
        path = place.out / f"head-{number}.pt"
        if not path.exists():
            features = place.features("train")
            with place.timed(f"head {number}"):
                batch = min(recipe.batch, len(features.pooled[0]))
                epochs = 1 if place.quick else recipe.epochs
                shortened = msgspec.structs.replace(recipe, epochs=epochs, batch=batch)
                save_weights(path, train_pair(features, shortened).state_dict())


def train_teacher_captioner(place: Place) -> None:
    """Train the captioning teacher unless it is there."""
    path = place.out / "captioner.pt"
    if path.exists():
        return
    lesson = open_captions(place)._replace(teacher=None, likely=None)
    with place.timed("captioner"):
        torch.manual_seed(0)
        model = GridCaptioner(channels=CHANNELS, vocabulary=vocabulary(place).vocab_size)
        model.start(open_space(place, lesson, WIDTH))
        train_captions(model, lesson, shortened(place, TEACHING))
    save_weights(path, model.state_dict())


def vocabulary(place: Place) -> Tokenizer:
    """Return the student's, which the captioning teacher shares."""
    return small_tokenizer(place.out / "student" / "tokenizer.json", place.split("train").captions)


def open_captions(place: Place) -> CaptionLesson:
    """Return what a captioner learns from, all channels of the maps; with what the teacher says where it lies there."""
    captions, path = place.split("train").captions, place.out / "teacher-captions.npy"
    likely = place.out / "teacher-tokens.npz"
    return CaptionLesson(
        maps=place.features("train").grids[:_CAPTION_VIEWS],
        human=encoded(vocabulary(place), [text for texts in captions for text in texts]).reshape(len(captions), 5, -1),
        teacher=np.load(path) if path.exists() else None,
        likely=Likely.read(likely) if likely.exists() else None,
    )


def borrowed_captions(place: Place, images: NDArray[np.float32], neighbours: int) -> list[str]:
    """Return the captions of the training pictures nearest to the teacher's `images (N, T)`."""
    texts = [text for texts in place.split("train").captions for text in texts]
    with np.load(place.out / "reinforced.npz") as stored:
        pictures, vectors = (stored[name].astype(np.float32) for name in ("images", "texts"))
    return nearest_captions(images, pictures[0], vectors, texts, neighbours=neighbours)


def open_pairs(place: Place) -> list[Pair]:
    """Return the heads that `train_heads` trained."""
    features, pairs = place.features("dev"), []
    for number, recipe in enumerate(HEADS[:1] if place.quick else HEADS):
        pair = Pair(features, recipe)
        pair.load_state_dict(torch.load(place.out / f"head-{number}.pt", weights_only=True))
        pairs.append(pair.eval())
    return pairs


def open_teacher(place: Place) -> Taught:
    """Return the teachers that `teach` trained."""
    words = vocabulary(place)
    model = GridCaptioner(channels=CHANNELS, vocabulary=words.vocab_size)
    model.load_state_dict(torch.load(place.out / "captioner.pt", weights_only=True))
    return Taught(open_pairs(place), model.eval(), words)


def embed(place: Place) -> None:
    """Write the embedding teacher's vectors of the training pictures, in all views, and of their captions."""
    path = place.out / "reinforced.npz"
    if path.exists():
        return
    pairs, features = open_pairs(place), place.features("train")
    partial = path.with_suffix(".partial.npz")
    with place.timed("teacher's embeddings"):
        images, texts = embed_grids(pairs, features), embed_tokens(pairs, features)
    np.savez(partial, images=images.astype(np.float16), texts=texts.astype(np.float16))
    partial.replace(path)


def reinforce(place: Place) -> None:
    """Write what the teachers say of the training data: embeddings, a caption of each picture, likely tokens."""
    embed(place)
    path, tokens = place.out / "teacher-captions.npy", place.out / "teacher-tokens.npz"
    if path.exists() and tokens.exists():
        return
    taught, maps = open_teacher(place), place.features("train").grids[0]
    if not path.exists():
        with place.timed("teacher's captions"):
            ids, _ = found_captions(taught.captioner, taught.words, maps, beams=BEAMS)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, ids)
        partial.replace(path)
    if not tokens.exists():
        with place.timed("teacher's likely tokens"):
            found_likely(taught.captioner, maps, open_captions(place).captions).write(tokens)


def open_space(place: Place, lesson: CaptionLesson, width: int) -> WordSpace:
    """Return where a captioner of `width` starts."""
    with np.load(place.out / "reinforced.npz") as stored:
        return word_space(
            lesson.maps[0],
            lesson.human.reshape(-1, lesson.human.shape[2]),
            stored["images"][0],
            stored["texts"],
            vocabulary=vocabulary(place).vocab_size,
            width=width,
        )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return out
