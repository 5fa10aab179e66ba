"""A phone-size image tower with random weights, twice: as a bundle, and as the ONNX file that other libraries take.

MobileNetV4-conv-small, fp32, 224 x 224, and a random projection to 512 dimensions. Speed does not depend on what the
weights are. Both forms hold the same tensors; the bundle's graph takes uint8 pixels and normalises them itself, the
other one takes normalised float32 (B, 3, 224, 224), as fastembed and hand-written loops feed it.
"""

import json
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import timm
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from pocketlens.core.bundle import (
    EmbeddingSpec,
    GraphRecord,
    Manifest,
    Role,
    TensorSpec,
    TokenizerSpec,
    file_sha256,
    write_bundle,
)
from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.core.tokenizer import SPECIAL_TOKENS

__all__ = ["DIM", "MEAN", "SIDE_PX", "STD", "write_models"]

SIDE_PX: Final = 224
DIM: Final = 512
TEXT_LENGTH: Final = 16
# CLIP's own constants.
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)


class Tower(nn.Module):
    """Normalised float32 (B, 3, 224, 224) to (B, 512) of unit norm."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("mobilenetv4_conv_small", pretrained=False, num_classes=0)
        self.projection = nn.Linear(self.backbone.head_hidden_size, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings."""
        return nn.functional.normalize(self.projection(self.backbone(x)), dim=-1)


class PixelTower(nn.Module):
    """The same from uint8 (B, 224, 224, 3)."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("scale", 1 / (255 * torch.tensor(STD)).reshape(3, 1, 1))
        self.register_buffer("shift", (torch.tensor(MEAN) / torch.tensor(STD)).reshape(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the embeddings."""
        return self.tower(pixels.permute(0, 3, 1, 2).float() * self.scale - self.shift)


class Words(nn.Module):
    """A bundle that embeds needs a text tower: the mean of a table's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(len(SPECIAL_TOKENS) + 256, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, 512) of ids (B, T)."""
        return nn.functional.normalize(self.table(ids).mean(1), dim=-1)


def write_models(folder: Path, *, jpeg_scaling: Literal["none", "dct"] = "none") -> tuple[Path, Path]:
    """Return the folder of the bundle and the folder for the others, written below `folder` where they are absent.

    Args:
        folder: for both.
        jpeg_scaling: of the bundle's preprocessing spec.
    """
    bundle, plain = folder / f"bundle-{jpeg_scaling}", folder / "plain"
    torch.manual_seed(0)
    tower = Tower().eval()
    if not (plain / "preprocessor_config.json").exists():
        plain.mkdir(parents=True, exist_ok=True)
        _export(tower, torch.zeros(2, 3, SIDE_PX, SIDE_PX), plain / "model.onnx", "pixel_values")
        torch.save(tower.state_dict(), plain / "tower.pt")
        (plain / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
    if not bundle.exists():
        _write_bundle(bundle, tower, jpeg_scaling)
    return bundle, plain


_PROCESSOR: Final = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": SIDE_PX},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": SIDE_PX,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
}


def _export(module: nn.Module, example: Tensor, path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("B")
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        input_names=[name],
        dynamic_shapes=({0: batch},),
        opset_version=20,
        verbose=False,
    )
    model = program.model_proto
    onnx.save(model, str(path))


def _write_bundle(root: Path, tower: Tower, jpeg_scaling: str) -> None:
    staged = root.with_name(f"{root.name}.staged")
    graphs = staged / "graphs" / "onnx-fp32"
    pixels = torch.zeros(2, SIDE_PX, SIDE_PX, 3, dtype=torch.uint8)
    _export(PixelTower(tower).eval(), pixels, graphs / "image_encoder.onnx", "pixels")
    _export(Words().eval(), torch.zeros(2, TEXT_LENGTH, dtype=torch.int32), graphs / "text_encoder.onnx", "ids")
    output = (TensorSpec(name="embedding", dtype="float32", shape=(-1, DIM)),)
    vocabulary = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(staged / "tokenizer.json"))
    inputs: dict[Role, TensorSpec] = {
        "image_encoder": TensorSpec(name="pixels", dtype="uint8", shape=(-1, SIDE_PX, SIDE_PX, 3)),
        "text_encoder": TensorSpec(name="ids", dtype="int32", shape=(-1, TEXT_LENGTH)),
    }
    records = tuple(
        GraphRecord(
            role=role,
            target="onnx",
            precision="fp32",
            engine="onnxruntime",
            path=f"graphs/onnx-fp32/{role}.onnx",
            sha256=file_sha256(graphs / f"{role}.onnx"),
            bytes=(graphs / f"{role}.onnx").stat().st_size,
            inputs=(spec,),
            outputs=output,
        )
        for role, spec in inputs.items()
    )
    scaling = {} if jpeg_scaling == "none" else {"jpeg_scaling": jpeg_scaling}
    manifest = Manifest(
        name="phone",
        model_version=f"phone-{jpeg_scaling}",
        tasks=("embed",),
        embedding=EmbeddingSpec(dim=DIM),
        preprocess=PreprocessSpec(height_px=SIDE_PX, width_px=SIDE_PX, **scaling),
        tokenizer=TokenizerSpec(vocab_size=len(vocabulary), text_length=TEXT_LENGTH, pad_id=0, bos_id=1, eos_id=2),
        caption=None,
        graphs=records,
        licence="Apache-2.0",
        provenance={"weights": "random"},
    )
    write_bundle(root, manifest, staged)


def largest_difference(bundle: Path, plain: Path) -> float:
    """Return by how much both graphs differ on one random picture: they must be the same weights."""
    import onnxruntime

    pixels = np.random.default_rng(0).integers(0, 256, (1, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    ours = onnxruntime.InferenceSession(str(bundle / "graphs/onnx-fp32/image_encoder.onnx"))
    other = onnxruntime.InferenceSession(str(plain / "model.onnx"))
    normalised = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    return float(np.abs(ours.run(None, {"pixels": pixels})[0] - other.run(None, {"pixel_values": normalised})[0]).max())
