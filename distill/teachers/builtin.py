"""The built-in teachers for `scenes`, and the command that trains both from nothing.

::

    python -m pocketlens.distill.teachers.builtin embedder  --data build/teachers/scenes --out distill/teachers/weights
    python -m pocketlens.distill.teachers.builtin captioner --data build/teachers/scenes --out distill/teachers/weights

The data folder is rendered first if it is not there (16,000 training pictures). The embedder is saved in
open_clip's format, the captioner in Hugging Face's, and both are opened by the same code that opens any
other teacher. `--continue` starts from the weights in the output folder instead of from nothing;
docs/teachers.md says with which commands the weights in this repository were made.

Contrastive training alone needs far more pictures than an hour of CPU sees, so each picture tower
also predicts, from its pooled features and with a linear head that is thrown away, which kinds,
kind-colour pairs, counts, place and light the scene has (ground truth of the renderer).
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GPT2Config,
    PreTrainedTokenizerFast,
    TimmWrapperConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)

from pocketlens.core.preprocess import PreprocessSpec
from pocketlens.core.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from pocketlens.distill import augment
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.pictures import load_pixels
from pocketlens.distill.scenes import SceneSample, Split, read_split, write_dataset
from pocketlens.distill.schedule import warmup_cosine

__all__ = ["main"]

SIDE_PX = 96
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
TEXT_LENGTH = 32
VOCAB = 512
TRAIN_PICTURES = 16_000
SEED = 20_261_122

EMBEDDER = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIDE_PX, "timm_model_name": "mobilenetv4_conv_small", "timm_proj": ""},
    "text_cfg": {
        "context_length": TEXT_LENGTH,
        "vocab_size": VOCAB,
        "hf_tokenizer_name": "tokenizer",
        "width": 160,
        "heads": 4,
        "layers": 3,
        "pad_id": 0,
        "eos_id": 2,
        "pool_type": "eos",
    },
}
"""open_clip's model config. The picture tower is a stock timm model, the text tower is open_clip's own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train one built-in teacher; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train a built-in teacher from nothing.")
    parser.add_argument("teacher", choices=("embedder", "captioner"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3, help="AdamW's peak learning rate")
    parser.add_argument("--attributes", type=float, default=60.0, help="weight of the attribute head's loss")
    parser.add_argument("--continue", dest="resume", action="store_true", help="from the weights in --out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    data = _Data(options.data)
    train = _train_embedder if options.teacher == "embedder" else _train_captioner
    plan = _Plan(options.steps, options.batch, options.rate, options.attributes, options.resume)
    train(data, options.out / f"scenes-{options.teacher}", plan)
    return 0


class _Plan(NamedTuple):
    """How one teacher is trained."""

    steps: int
    batch: int
    rate: float
    attributes: float
    resume: bool


class _Data:
    """The training split in memory: pixels, token ids of every caption, and the labels."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "train.jsonl").exists():
            sizes: dict[Split, int] = {"train": TRAIN_PICTURES, "val": 500, "test": 500}
            sides: dict[Split, int] = {"train": 128, "val": 128, "test": 256}
            write_dataset(folder, split_sizes=sizes, size_px=sides, seed=SEED, progress=_report("render"))
        self.samples = read_split(folder, "train")
        spec = PreprocessSpec(height_px=SIDE_PX, width_px=SIDE_PX)
        paths = [folder / sample.image for sample in self.samples]
        self.pixels = np.asarray(load_pixels(paths, spec, cache=folder, progress=_report("decode")))
        self.bpe = train_bpe((text for sample in self.samples for text in sample.captions), vocab_size=VOCAB)
        tokenizer = Tokenizer(self.bpe, text_length=TEXT_LENGTH)
        texts = [text for sample in self.samples for text in sample.captions]
        self.ids = tokenizer.encode_batch(texts).reshape(len(self.samples), -1, TEXT_LENGTH)
        self.labels = _labels(self.samples)

    def steps(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield augmented pictures `(B, 3, H, W)`, one caption's ids `(B, T)` and labels `(B, A)`."""
        rng = np.random.default_rng(SEED)
        order = np.concatenate(
            [rng.permutation(len(self.samples)) for _ in range(1 + count * size // len(self.samples))]
        )
        for step in range(count):
            rows = np.sort(order[step * size : (step + 1) * size])
            params = np.stack([augment.parameters(SEED, int(row), step + 1) for row in rows])
            pictures = _to_tensor(augment.apply(self.pixels[rows], params))
            # half of the time the first caption, which names everything
            which = np.where(rng.random(size) < 0.5, 0, rng.integers(self.ids.shape[1], size=size))
            yield pictures, torch.from_numpy(self.ids[rows, which]), torch.from_numpy(self.labels[rows])


def _labels(samples: Sequence[SceneSample]) -> NDArray[np.float32]:
    """Return `(N, A)` 0/1: which of the words kind, kind-colour, kind-count, place and light hold."""
    bags = []
    for sample in samples:
        words = {sample.background, sample.light}
        for thing in sample.objects:
            words |= {
                thing.kind,
                f"{thing.kind}-{thing.colour}",
                f"{thing.kind}-{thing.count}",
                f"{thing.kind}-{thing.size}",
            }
        bags.append(words)
    names = sorted(set().union(*bags))
    return np.array([[float(name in bag) for name in names] for bag in bags], dtype=np.float32)


def _train_embedder(data: _Data, out: Path, plan: _Plan) -> None:
    model = open_clip.CLIP(**EMBEDDER)
    if plan.resume:
        model.load_state_dict(load_file(out / "open_clip_model.safetensors"))
    trunk = model.visual.trunk.to(memory_format=torch.channels_last)
    head = nn.Linear(trunk.head_hidden_size, data.labels.shape[1])

    def loss(pictures: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        pooled = trunk.forward_head(trunk.forward_features(pictures), pre_logits=True)  # (B, 1280)
        images = functional.normalize(trunk.classifier(pooled), dim=-1)
        texts = model.encode_text(ids.to(torch.int64), normalize=True)
        logits = model.logit_scale.clamp(max=4.6052).exp() * images @ texts.T
        target = torch.arange(len(logits))
        contrast = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        return contrast + plan.attributes * functional.binary_cross_entropy_with_logits(head(pooled), labels)

    def save() -> None:
        out.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in _halved(model).items()}, out / "open_clip_model.safetensors")
        settings = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
        _write_json(out / "open_clip_config.json", {"model_cfg": EMBEDDER, "preprocess_cfg": settings})
        _save_tokenizer(data, out)
        _write_json(out / "teacher.json", {"id": "scenes-embedder", "licence": "Apache-2.0"})

    _fit([model, head], loss, data.steps(plan.steps, plan.batch), plan, save)


def _train_captioner(data: _Data, out: Path, plan: _Plan) -> None:
    encoder = TimmWrapperConfig(
        architecture="levit_128s",
        model_args={
            "img_size": SIDE_PX, "embed_dim": [192], "depth": [5], "num_heads": [4],
            "key_dim": 32, "attn_ratio": 2, "mlp_ratio": 2,
        },
        hidden_size=192,
    )  # fmt: skip
    decoder = GPT2Config(
        vocab_size=VOCAB, n_positions=TEXT_LENGTH, n_embd=160, n_layer=3, n_head=4, add_cross_attention=True,
        is_decoder=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = VisionEncoderDecoderModel(config=config)
    model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, bos_token_id=1)
    if plan.resume:
        model = VisionEncoderDecoderModel.from_pretrained(out, dtype=torch.float32)
        model.train()
    head = nn.Linear(192, data.labels.shape[1])

    def loss(pictures: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        tokens = model.encoder(pictures).last_hidden_state  # (B, 36, 192)
        longest = int((ids != 0).sum(dim=1).max())
        ids = ids[:, :longest].to(torch.int64)
        hidden = model.enc_to_dec_proj(tokens)
        logits = model.decoder(input_ids=ids[:, :-1], encoder_hidden_states=hidden).logits
        caption = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
        return caption + plan.attributes * functional.binary_cross_entropy_with_logits(head(tokens.mean(dim=1)), labels)

    def save() -> None:
        model.eval()
        half = _halved(model)
        full = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(half)
        model.half().save_pretrained(out)
        model.float().load_state_dict(full)
        model.train()
        ViTImageProcessor(
            size={"height": SIDE_PX, "width": SIDE_PX}, resample=3, image_mean=list(MEAN), image_std=list(STD)
        ).save_pretrained(out)
        _save_tokenizer(data, out)
        _write_json(out / "teacher.json", {"id": "scenes-captioner", "licence": "Apache-2.0"})

    _fit([model, head], loss, data.steps(plan.steps, plan.batch), plan, save)


def _fit(
    modules: Sequence[nn.Module],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    plan: _Plan,
    save: Callable[[], None],
) -> None:
    steps, batch = plan.steps, plan.batch
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    start, mean = time.monotonic(), 0.0
    for step, (pictures, ids, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, total=steps, warmup=steps // 20 + 1, peak=plan.rate, floor=1e-5)
        value = loss(pictures, ids, labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean = value.item() if step == 0 else 0.95 * mean + 0.05 * value.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            rate = (step + 1) * batch / (time.monotonic() - start)
            left_min = (steps - step - 1) * batch / rate / 60
            print(
                f"step {step + 1}/{steps}  loss {mean:.4f}  {rate:.0f} images/s  {left_min:.1f} min left",
                file=sys.stderr,
            )
        if (step + 1) % 300 == 0 or step + 1 == steps:
            save()


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255.0
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _halved(model: nn.Module) -> dict[str, Tensor]:
    """Weights as float16: half the size in the repository, the loss is below the eighth digit of a cosine."""
    return {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}


def _save_tokenizer(data: _Data, out: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    backend = Backend.from_str(data.bpe.to_str())
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 1), (EOS, 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=TEXT_LENGTH,
    ).save_pretrained(out)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _report(what: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if done == total or done % 1024 == 0:
            print(f"{what} {done}/{total}", file=sys.stderr)

    return report


if __name__ == "__main__":
    random.seed(SEED)
    raise SystemExit(main())
