"""The `small` student on the frozen backbone: its sizes, its vocabulary, and where its weights start.

The backbone starts from the ImageNet weights that the teacher stands on (weight inheritance) and stays as it is, so
training reads its cached maps: a step costs the heads and the text tower, not the pictures.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.flickr8k.closed_form import principal_directions, start_images, start_texts
from benchmarks.flickr8k.words import inherited_vectors
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.students.config import StudentConfig
from pocketlens.distill.students.inheritance import load_backbone
from pocketlens.distill.students.student import Student

__all__ = [
    "IMAGE_QUERIES",
    "SMALL",
    "TEXT_LAYERS",
    "Lesson",
    "Start",
    "as_maps",
    "cleaned",
    "encoded",
    "new_student",
    "small_tokenizer",
    "start_towers",
    "teacher_directions",
]

SMALL: Final = StudentConfig(
    backbone="mobilenetv2_100",
    backbone_padding="same",
    image_px=224,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    visual_grid=7,
    image_queries=4,
    embed_dim=256,
    width=192,
    heads=6,
    text_layers=2,
    decoder_layers=2,
    vocab_size=2500,
)
TEXT_LAYERS: Final = 3
"""Blocks of the text tower in the end: it is deepened when it learns alone, so the captioner knows nothing of it."""

IMAGE_QUERIES: Final = 8
"""Queries of the image head in the end: it is widened when it learns the blend."""

Start = Literal["closed form", "inherited words", "random"]
"""What the towers start from: ridge regression, the text teacher's word vectors, or nothing."""

_BEFORE_MARK: Final = re.compile(r"\s+([.,!?;:'])")


class Lesson(NamedTuple):
    """What is learnt from.

    Attributes:
        maps: `(V, N, 49, 320)` float16, the backbone's last map.
        captions: N times five human captions.
        teacher_images: `(V, N, T)` of unit norm.
        teacher_texts: `(5 N, T)` of unit norm.
    """

    maps: NDArray[np.float16]
    captions: Sequence[Sequence[str]]
    teacher_images: NDArray[np.float16]
    teacher_texts: NDArray[np.float16]

    @property
    def texts(self) -> list[str]:
        """All human captions, five of a picture in a row."""
        return [text for of_picture in self.captions for text in of_picture]


def cleaned(text: str) -> str:
    """Return a caption without the blanks before marks and the final full stop that Flickr8k's have."""
    return _BEFORE_MARK.sub(r"\1", text.strip()).strip(" .").lower()


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.int32]:
    """Return `(M, 32)` ids of the cleaned `texts`, padded with 0."""
    return tokenizer.encode_batch([cleaned(text) for text in texts]).astype(np.int32)


def as_maps(places: Tensor) -> Tensor:
    """`(B, 49, C)` -> feature maps `(B, C, 7, 7)`."""
    grid: Tensor = places.transpose(1, 2).unflatten(2, (7, 7))
    return grid


def small_tokenizer(path: Path, captions: Sequence[Sequence[str]]) -> Tokenizer:
    """Return the student's BPE, trained into `path` unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [cleaned(text) for of_picture in captions for text in of_picture]
        train_bpe(texts, vocab_size=SMALL.vocab_size).save(str(path))
    return Tokenizer.from_file(path, text_length=SMALL.text_length)


def new_student(tokenizer: Tokenizer, weights: Path, *, config: StudentConfig = SMALL, seed: int = 0) -> Student:
    """Return a student whose backbone has the ImageNet `weights`."""
    torch.manual_seed(seed)
    student = Student(msgspec.structs.replace(config, vocab_size=tokenizer.vocab_size))
    load_backbone(student, weights)
    return student


def teacher_directions(lesson: Lesson, width: int) -> Tensor:
    """Return the teacher's `width` principal directions `(T, width)`: the student's space in the teacher's."""
    texts = torch.from_numpy(lesson.teacher_texts.astype(np.float32))
    images = torch.from_numpy(lesson.teacher_images.astype(np.float32)).flatten(0, 1)
    return principal_directions((images, texts), width)


def start_towers(student: Student, tokenizer: Tokenizer, vocabulary: Path, lesson: Lesson, start: Start) -> Tensor:
    """Set the heads and the text tower to their `start`; return the teacher's principal directions `(T, D)`."""
    texts = torch.from_numpy(lesson.teacher_texts.astype(np.float32))
    images = torch.from_numpy(lesson.teacher_images.astype(np.float32)).flatten(0, 1)
    directions = teacher_directions(lesson, student.config.embed_dim)
    if start == "closed form":
        means = torch.cat([torch.from_numpy(view.mean(axis=1, dtype=np.float32)) for view in lesson.maps])
        start_images(student.image_encoder, means, images @ directions)
        ids = torch.from_numpy(encoded(tokenizer, lesson.texts))
        start_texts(student.text_encoder, ids, texts @ directions)
    if start == "inherited words":
        with torch.no_grad():
            student.text_encoder.tokens.weight.copy_(inherited_vectors(vocabulary, width=student.config.width))
    return directions
