"""Small random models of other libraries, saved in their true formats."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
)

from pocketlens.distill.quiet import quiet_loading

TEXTS = (
    "a red ball on the grass",
    "two blue cars at night",
    "a small green tree in the snow",
    "a pink duck swims on a lake near the old mill",
    "it's a dog's life, they don't care",
    "seven yellow boats under a bridge in autumn",
)
SIDE_PX = 32
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

VIT = {"image_size": SIDE_PX, "layers": 1, "width": 64, "patch_size": 16}
"""open_clip's own vision transformer."""

FASTVIT = {"image_size": 64, "timm_model_name": "fastvit_t8", "timm_model_pretrained": False, "timm_pool": "avg"}
"""A backbone with branches that are fused for inference."""

CLIP_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
"""A text tower with CLIP's own vocabulary: causal, pooled at the end token."""


SEP_BIAS = 0.6
"""Random weights never stop: with this bias for the end token some captions do, some do not."""


def stir(model: nn.Module, *, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Give batch norms statistics of their own and spread all weights, so that nothing is near to nothing."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.2
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5
            module.bias.data = torch.randn(module.num_features, generator=generator) * 0.1
        elif isinstance(module, nn.Linear):
            module.weight.data *= gain
        elif isinstance(module, nn.Conv2d) and module.kernel_size == module.stride:
            module.weight.data *= 4 * gain  # patches: pictures must differ by more than their positions
    return model.eval()


def write_open_clip(folder: Path, *, vision: dict[str, Any], text: dict[str, Any], custom: bool = False) -> Path:
    """Write a dual encoder as `open_clip.push_to_hf_hub` lays it out; without `hf_tokenizer_name`, CLIP's tokenizer."""
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    model = stir((open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    settings = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    model_cfg = config | ({"custom_text": True} if custom else {})
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": settings}))
    (folder / "teacher.json").write_text(json.dumps({"id": "tiny-dual-encoder", "licence": "MIT"}))
    return folder


def write_open_clip_siglip(folder: Path) -> Path:
    """Write open_clip's form of SigLIP: unigram pieces, no first token, attention both ways, pooled at the end."""
    text: dict[str, Any] = {
        "context_length": 12,
        "vocab_size": 120,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
    }
    text |= {"pool_type": "last", "proj_bias": True, "hf_tokenizer_name": "tiny"}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}}
    write_open_clip(folder, vision=VIT, text=text, custom=True)
    unigram().save_pretrained(folder)
    return folder


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer like SigLIP's in open_clip: `</s>` ends a text and fills it up."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


def write_clip(folder: Path) -> Path:
    """Write a transformers CLIP whose texts are filled up with the end token, as OpenAI's are."""
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=620, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    # CLIP's vocabulary has every byte twice, in a word and at its end; the merges follow in order.
    names = [*letters, *(f"{letter}</w>" for letter in letters)]
    names += [name for name in ("".join(merge) for merge in merges) if name not in names]
    vocab = {name: index for index, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges)
    size, end = len(vocab), vocab["<|endoftext|>"]
    config = CLIPConfig(
        text_config={
            "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": end - 1, "eos_token_id": end,
            "pad_token_id": 1,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE_PX, "patch_size": 16,
        },
        projection_dim=20,
    )  # fmt: skip
    torch.manual_seed(4)
    images = CLIPImageProcessor(
        size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}, resample=3
    )
    return save(folder, [stir(CLIPModel(config), gain=3.0), tokenizer, images])


def write_siglip(folder: Path) -> Path:
    """Write a transformers SigLIP with a sentencepiece model, as its own tokenizer class reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = folder / "spiece.model"
    pieces.write_bytes(_sentencepiece(TEXTS))
    tokenizer = SiglipTokenizer(str(pieces))
    config = SiglipConfig(
        text_config={
            "vocab_size": 120, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 12, "projection_size": 32,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE_PX, "patch_size": 16,
        },
    )  # fmt: skip
    torch.manual_seed(5)
    images = SiglipImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}, resample=3)
    return save(folder, [stir(SiglipModel(config), gain=3.0), tokenizer, images])


def write_blip(folder: Path, *, layers: int = 2) -> Path:
    """Write a BLIP captioner; its tokenizer is BERT's, which does not know the token that captions begin with."""
    words = sorted({word for text in TEXTS for word in text.replace(",", "").replace("'", " ").split()})
    letters = sorted({letter for word in words for letter in word})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), ",", "'"]
    vocab = {name: index for index, name in enumerate([*names, *(word for word in words if word not in letters)])}
    size = len(vocab)
    config = BlipConfig(
        text_config={
            "vocab_size": size + 2, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 24,
            "bos_token_id": size, "sep_token_id": vocab["[SEP]"], "eos_token_id": 2, "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE_PX, "patch_size": 16, "initializer_range": 0.02,  # not 1e-10
        },
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(6)
    model: Any = stir(BlipForConditionalGeneration(config), gain=8.0)
    model.text_decoder.cls.predictions.bias.data[vocab["[SEP]"]] = SEP_BIAS
    images = BlipImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX})
    return save(folder, [model, BertTokenizer(vocab=vocab), images])


def _sentencepiece(texts: Iterable[str]) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts] * 4), model_writer=out, vocab_size=120, hard_vocab_limit=False,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def save(folder: Path, parts: Iterable[Any]) -> Path:
    """Write every part into `folder` with its `save_pretrained`."""
    with quiet_loading():
        for part in parts:
            part.save_pretrained(folder)
    return folder
