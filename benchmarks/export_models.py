"""What the export table is measured on: image towers of true size, and the four graphs of `nano`; random weights.

Batch norms have seen the calibration pictures, and branches that only training needs are fused before anything is
exported. Letters: `B` batch.
"""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from timm.utils.model import reparameterize_model
from torch import nn

from pocketlens.core.bundle import Role, TensorSpec
from pocketlens.core.preprocess import PreprocessSpec, preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.scenes.caption import captions
from pocketlens.distill.scenes.grammar import sample_scene
from pocketlens.distill.scenes.render import render
from pocketlens.distill.students.config import PRESETS, StudentConfig
from pocketlens.distill.students.image_encoder import ImageEncoder
from pocketlens.distill.students.student import Student
from pocketlens.export.graphs import Graph, student_graphs
from pocketlens.export.reference import Feed, calibration_feeds

__all__ = ["BACKBONES", "MODELS", "Subject", "open_subject", "read_pictures", "typical_feed"]


class Backbone(msgspec.Struct, frozen=True):
    """A timm model as an image tower: its input side, and how many visual tokens a side it gives."""

    timm_name: str
    image_px: int
    visual_grid: int


BACKBONES: Final[dict[str, Backbone]] = {
    "MobileNetV4-conv-small": Backbone("mobilenetv4_conv_small", 224, 7),
    "MobileNetV2": Backbone("mobilenetv2_100", 224, 7),
    "FastViT-T8": Backbone("fastvit_t8", 256, 4),
    "RepViT-M0.9": Backbone("repvit_m0_9", 224, 7),
    "TinyViT-5M": Backbone("tiny_vit_5m_224", 224, 7),
    "ViT-Tiny": Backbone("vit_tiny_patch16_224", 224, 7),
}
"""The table's image towers, by the name that the table gives them."""

MODELS: Final[tuple[str, ...]] = (*BACKBONES, "nano")
"""Everything that can be asked for; `nano` is the preset, with all of its graphs."""

_PICTURES: Final = 32
_BATCH: Final = 16


@dataclass(frozen=True)
class Subject:
    """One graph with the inputs that it is calibrated and compared on.

    Attributes:
        graph: what is exported.
        calibration: inputs of batch 1.
        held_out: as many others.
        parameters: numbers in the module.
    """

    graph: Graph
    calibration: Sequence[Feed]
    held_out: Sequence[Feed]
    parameters: int


def open_subject(model: str, role: Role, photos: Path | None) -> Subject:
    """Return the graph `role` of `model`, one of `MODELS`, the same at every call.

    Args:
        model: a backbone has the role `image_encoder` alone.
        role: which graph.
        photos: an uncompressed tar of JPEG files; `None` renders scenes.
    """
    torch.manual_seed(0)
    if model in BACKBONES:
        return _tower(BACKBONES[model], photos)
    return _nano(role, photos)


def typical_feed(model: str, role: Role) -> Feed:
    """Return one input of batch 1 for the graph `role` of `model`, to be timed with: no weights, no photographs."""
    if model in BACKBONES:
        return {"pixels": read_pictures(None, 1, BACKBONES[model].image_px)}
    return open_subject(model, role, None).held_out[0]


def read_pictures(photos: Path | None, count: int, side_px: int) -> NDArray[np.uint8]:
    """Return uint8 (count, side, side, 3): the first JPEG files of a tar, or rendered scenes."""
    if photos is None:
        return np.stack([render(sample_scene(seed, split="train"), size_px=side_px) for seed in range(count)])
    spec = PreprocessSpec(height_px=side_px, width_px=side_px)
    found: list[NDArray[np.uint8]] = []
    with tarfile.open(photos) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if stream is not None and len(found) < count:
                found.append(preprocess(stream.read(), spec))
    return np.stack(found)


def _tower(backbone: Backbone, photos: Path | None) -> Subject:
    pixels = read_pictures(photos, 2 * _PICTURES, backbone.image_px)
    config = StudentConfig(
        backbone=backbone.timm_name,
        image_px=backbone.image_px,
        visual_grid=backbone.visual_grid,
        embed_dim=512,
        width=512,
        heads=8,
        text_layers=1,
        decoder_layers=1,
        vocab_size=512,
    )
    tower = ImageEncoder(config)
    _settle(tower, pixels[:_PICTURES])
    fused = reparameterize_model(tower)
    example = torch.from_numpy(pixels[:2])
    with torch.no_grad():
        embedding, visual = fused(example)
    graph = Graph(
        "image_encoder",
        fused,
        (TensorSpec(name="pixels", dtype="uint8", shape=(-1, *example.shape[1:])),),
        (
            TensorSpec(name="embedding", dtype="float32", shape=(-1, *embedding.shape[1:])),
            TensorSpec(name="visual_tokens", dtype="float32", shape=(-1, *visual.shape[1:])),
        ),
        (example,),
    )
    feeds = [{"pixels": row[None]} for row in pixels]
    return _subject(graph, feeds[:_PICTURES], feeds[_PICTURES:])


def _nano(role: Role, photos: Path | None) -> Subject:
    texts = [captions(sample_scene(seed, split="train"))[0] for seed in range(2 * _PICTURES)]
    backend = train_bpe(texts, vocab_size=PRESETS["nano"].vocab_size)
    config = msgspec.structs.replace(PRESETS["nano"], vocab_size=backend.get_vocab_size())
    student = Student(config)
    pixels = read_pictures(photos, 2 * _PICTURES, config.image_px)
    _settle(student.image_encoder, pixels[:_PICTURES])
    student.eval()
    tokenizer = Tokenizer(backend, text_length=config.text_length)
    ids = tokenizer.encode_batch(texts).astype(np.int32)
    feeds = calibration_feeds(student, tokenizer, pixels, ids, seed=0)[role]
    return _subject(student_graphs(student)[role], feeds[:_PICTURES], feeds[_PICTURES:])


def _subject(graph: Graph, calibration: list[Feed], held_out: list[Feed]) -> Subject:
    return Subject(graph, calibration, held_out, sum(p.numel() for p in graph.module.parameters()))


@torch.no_grad()
def _settle(tower: nn.Module, pixels: NDArray[np.uint8]) -> None:
    """Give batch norms the plain average over `pixels (N, H, W, 3)`, and leave the tower in eval mode."""
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # a plain average, not a moving one
    tower.train()
    for first in range(0, len(pixels), _BATCH):
        tower(torch.from_numpy(pixels[first : first + _BATCH]))
    tower.eval()
