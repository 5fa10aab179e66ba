"""What the recipes that ship cost: arithmetic counted, images a second measured here, disk from the shards' format.

    python -m benchmarks.recipe_cost [--batch 4] [--rounds 3]

Every model is built at its true size with random weights. Prints for each recipe how many pictures its teachers and its
student see, GFLOP a picture (two for a multiply-add; a training step counts three forward passes), images a second of
this machine, and hours on a GPU that sustains `--tflops`: an assumption, not a measurement. A captioner is counted as
one pass over a picture and a caption, since decoding reuses its cache; each of several captions as a pass of its own.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    LlamaConfig,
    LlamaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from pocketlens.distill.recipe import Recipe, read_recipe
from pocketlens.distill.students.student import Student

_RECIPES = Path(__file__).parents[1] / "recipes"
_PICTURES = {"coco-small": 113_287, "cc3m-base": 2_900_000, "photo-library-small": 20_000}
"""Training pictures: Karpathy's train and restval; CC3M as far as it can still be fetched; a large library."""
_WORDS = 12  # ids of a caption


class _Model(NamedTuple):
    """A model that looks at pictures of a side, and the width of its embedding."""

    look: Callable[[torch.Tensor], object]
    side_px: int
    dim: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Count, measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tflops", type=float, default=10.0, help="sustained, of the GPU that is thought of")
    options = parser.parse_args(argv)
    print("recipe\tpart\tpictures seen\tGFLOP a picture\timages/s here\thours here\tGPU hours")
    for path in sorted(_RECIPES.glob("*.toml")):
        recipe = read_recipe(path)
        pictures = _PICTURES[recipe.name]
        embedder = _embedder(recipe)
        rows = [
            ("embedding teacher", embedder, pictures * recipe.reinforce.views, 1),
            ("captioning teacher", _captioner(recipe), pictures * recipe.reinforce.captions, 1),
            ("student", _student(recipe), recipe.train.steps * recipe.train.batch, 3),
        ]
        total = 0.0
        for part, model, count, passes in rows:
            flop, rate = _measured(model, options.batch, options.rounds, passes)
            hours = count * flop / options.tflops / 1e12 / 3600
            total += hours
            here = f"{rate:.1f}\t{count / rate / 3600:,.0f}"
            print(f"{recipe.name}\t{part}\t{count:,}\t{flop / 1e9:.2f}\t{here}\t{hours:.1f}")
        print(f"{recipe.name}\tsum\t\t\t\t\t{total:.1f}")
        print(f"{recipe.name}\t{_disk(recipe, pictures, embedder.dim)}")
    return 0


def _disk(recipe: Recipe, pictures: int, dim: int) -> str:
    """Return what shards and decoded pixels take; see docs/data.md."""
    plan, width = recipe.reinforce, 1 if recipe.reinforce.store == "int8" else 2
    texts = plan.captions + (5 if recipe.name.startswith("coco") else 0)
    sample = plan.views * (width * dim + 28) + texts * (width * dim + 4 * 12)
    cached = 3 * recipe.preset().image_px ** 2 if recipe.cache_pixels else 0
    return f"disk: shards {pictures * sample / 1e9:.2f} GB, the student's pixels {pictures * cached / 1e9:.1f} GB"


def _measured(model: _Model, batch: int, rounds: int, passes: int) -> tuple[float, float]:
    """Return the floating point operations of a picture and images a second; three passes stand for a training step."""
    pixels = torch.rand(batch, 3, model.side_px, model.side_px)
    with torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            model.look(pixels[:1])
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            model.look(pixels)
            times.append(time.perf_counter() - began)
    return float(passes * counter.get_total_flops()), batch / statistics.median(times) / passes


def _embedder(recipe: Recipe) -> _Model:
    """Return the picture tower of the recipe's embedding teacher; its texts cost a tenth or less."""
    name = recipe.teachers.embedder
    if name == "open_clip:MobileCLIP2-S0@dfndr2b":
        model = open_clip.create_model("MobileCLIP2-S0", pretrained=None).eval()
        return _Model(model.encode_image, 256, 512)
    side = {"hf:google/siglip2-base-patch16-256": 256, "hf:google/siglip2-base-patch16-224": 224}[str(name)]
    vision = SiglipVisionModel(SiglipVisionConfig(image_size=side)).eval()
    return _Model(lambda pixels: vision(pixel_values=pixels), side, 768)


def _captioner(recipe: Recipe) -> _Model:
    """Return the recipe's captioning teacher, as one pass over a picture and a caption."""
    if recipe.teachers.captioner == "hf:Salesforce/blip-image-captioning-base":
        blip = BlipForConditionalGeneration(BlipConfig(vision_config={"image_size": 384})).eval()
        return _Model(lambda pixels: blip(pixel_values=pixels, input_ids=_ids(len(pixels), _WORDS)), 384)
    # SmolVLM-256M: SigLIP base at 512 px, whose 1,024 places become 64 tokens, and SmolLM2-135M; no split pictures.
    vision = SiglipVisionModel(SiglipVisionConfig(image_size=512)).eval()
    text = LlamaModel(
        LlamaConfig(
            vocab_size=49280, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3,
        )
    ).eval()  # fmt: skip
    return _Model(lambda pixels: (vision(pixel_values=pixels), text(_ids(len(pixels), 64 + 30 + _WORDS))), 512)


def _student(recipe: Recipe) -> _Model:
    config = recipe.preset()
    student = Student(config).eval()

    def look(pixels: torch.Tensor) -> object:
        picture, visual = student.image_encoder((pixels.permute(0, 2, 3, 1) * 255).to(torch.uint8))
        ids = _ids(len(pixels), config.text_length)
        return picture, student.text_encoder(ids), student.caption_decoder(visual, ids[:, : config.caption_tokens])

    return _Model(look, config.image_px, config.embed_dim)


def _ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(4, 400, (rows, length), dtype=torch.int32)


if __name__ == "__main__":
    sys.exit(main())
