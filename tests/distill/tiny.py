"""Small true things to test distillation with: a student, teachers in the real formats, a data set."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    PreTrainedTokenizerFast,
    TimmWrapperConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)

from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.quiet import quiet_loading
from pocketlens.distill.students.config import StudentConfig

TEXTS = ("a red ball on the grass", "two blue cars at night", "a small green tree in the snow", "a pink duck")

CONFIG = StudentConfig(
    backbone="mobilenetv4_conv_small_035",
    output_stride=16,
    image_px=32,
    embed_dim=24,
    width=32,
    heads=2,
    text_layers=1,
    decoder_layers=2,
    text_length=16,
    caption_tokens=10,
    vocab_size=280,
)


def noise(count: int, side: int, *, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_embedder(folder: Path, *, texts: Sequence[str] = TEXTS) -> Path:
    """A random dual encoder in open_clip's format."""
    backend = train_bpe(texts, vocab_size=280)
    text = {"context_length": 16, "vocab_size": backend.get_vocab_size(), "width": 32, "heads": 2, "layers": 1}
    text |= {"hf_tokenizer_name": "tokenizer", "pad_id": 0, "eos_id": 2, "pool_type": "eos"}
    vision = {"image_size": 32, "timm_model_name": "mobilenetv4_conv_small_035", "timm_proj": ""}
    config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    model = open_clip.CLIP(**config)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    settings = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": settings}))
    _save_tokenizer(backend, folder)
    (folder / "teacher.json").write_text(json.dumps({"id": "tiny-embedder", "licence": "Apache-2.0"}))
    return folder


def write_captioner(folder: Path, *, texts: Sequence[str] = TEXTS) -> Path:
    """A random captioner in Hugging Face's format."""
    backend = train_bpe(texts, vocab_size=280)
    levit = {"img_size": 32, "embed_dim": [32], "depth": [1], "num_heads": [2], "key_dim": 8}
    decoder = GPT2Config(
        vocab_size=backend.get_vocab_size(), n_positions=40, n_embd=16, n_layer=1, n_head=2, add_cross_attention=True,
        is_decoder=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    encoder = TimmWrapperConfig(architecture="levit_128s", model_args=levit, hidden_size=32)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    torch.manual_seed(2)
    with quiet_loading():
        model = VisionEncoderDecoderModel(config=config)
        model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, bos_token_id=1)
        model.save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(folder)
    _save_tokenizer(backend, folder)
    (folder / "teacher.json").write_text(json.dumps({"id": "tiny-captioner", "licence": "research-only"}))
    return folder


def _save_tokenizer(backend: object, folder: Path) -> None:
    backend.post_processor = TemplateProcessing(  # type: ignore[attr-defined]
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
