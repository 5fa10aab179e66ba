"""Training from a reinforced data set against training with the teacher in the loop.

    python -m benchmarks.cached_teacher --work DIR [--teacher ViT-B-32] [--batch 32] [--steps 8] [--rounds 3]

Images a second of one student (preset `small`: mobilenetv4_conv_small at 224 px, text tower 256 wide with 3 layers) on
the same rendered pictures and captions, four ways that take turns:

- `cached`: `pocketlens distill train` from shards, towers alone, as the others train no captioner;
- `cached, with captioner`: the same with the caption terms that a recipe has;
- `online`: pocketlens's own step with the teacher asked about each batch;
- `open_clip`: `open_clip_train` with `--distill-model`, the same backbone and the same widths.

open_clip's training needs `pip install "open_clip_torch[training]"`. The teacher has random weights: no answer is
judged here, and a forward pass costs the same. What the shards cost is printed too, and the epochs that pay for it.
"""

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import open_clip
import torch
from safetensors.torch import save_file

from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.data.recipe import ScenesData
from pocketlens.distill.data.sample import read_samples
from pocketlens.distill.pictures import load_pixels
from pocketlens.distill.pipeline import Workspace, prepare_data, reinforce_data
from pocketlens.distill.recipe import LossWeights, Recipe, ReinforceRecipe, StudentRecipe, TeacherPaths, TrainRecipe
from pocketlens.distill.reinforced import read_reinforced
from pocketlens.distill.step import Stepper, Steps
from pocketlens.distill.students.student import preprocess_spec
from pocketlens.distill.teachers.open_clip_teacher import OpenClipTeacher
from pocketlens.distill.token_cache import all_texts, token_ids
from pocketlens.distill.train import Progress, train

_SECONDS = re.compile(r"Batch \(t\): ([0-9.]+)")
_WARM_UP = 2  # steps that are not counted
_TOWERS = LossWeights(caption=0.0, sequence=0.0)


class Way(NamedTuple):
    """How a student is trained."""

    losses: LossWeights
    online: bool = False


WAYS = {
    "cached": Way(_TOWERS),
    "cached, with captioner": Way(LossWeights()),
    "online": Way(_TOWERS, online=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for pictures, teacher and runs")
    parser.add_argument("--teacher", default="ViT-B-32", help="a built-in model of open_clip with CLIP's tokenizer")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each round; two more come first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode for open_clip")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    folder = _teacher(options.work / options.teacher, options.teacher)
    recipe = Recipe(
        name="cached-teacher",
        threads=options.threads,
        teachers=TeacherPaths(embedder=f"open_clip:{folder}"),
        data=ScenesData(train=options.pictures, val=2, test=2, train_px=224, test_px=224),
        reinforce=ReinforceRecipe(views=1),
        student=StudentRecipe(preset="small"),
        train=TrainRecipe(steps=options.steps + _WARM_UP, batch=options.batch, checkpoint_every=1_000_000),
    )
    work = Workspace(options.work / f"run-{options.teacher}")
    prepare_data(recipe, work, _silent)
    shards, seconds = _reinforced(recipe, work)
    data, teacher = _data(recipe, work, shards), OpenClipTeacher(folder)
    table, student = _captions_table(work), _open_clip_student(options.work / "open_clip_student", recipe)
    rates: dict[str, list[float]] = {name: [] for name in (*WAYS, "open_clip")}
    for _ in range(options.rounds):
        for name, way in WAYS.items():
            rates[name].append(_ours(data, way, teacher if way.online else None, "run"))
        rates["open_clip"].append(_open_clip(student, folder, table, options, work.root / "open_clip"))
    medians = {name: statistics.median(seen) for name, seen in rates.items()}
    print(f"teacher {options.teacher}, batch {options.batch}, {options.threads} threads, {options.rounds} rounds")
    for name, median in medians.items():
        print(f"{name:24s} {median:7.1f} images/s   cached is {medians['cached'] / median:.2f} x")
    if seconds is not None:
        a_picture, saved = seconds / options.pictures, 1 / medians["online"] - 1 / medians["cached"]
        print(f"shards, both teachers: {a_picture * 1000:.0f} ms a picture, saved by {a_picture / saved:.1f} epochs")
    return 0


class _Data(NamedTuple):
    """What every way of ours reads."""

    recipe: Recipe
    folder: Path
    training: TrainingSet
    tokenizer: Tokenizer
    teacher_dim: int


class _Online:
    """Steps that ask the teacher about their own pictures and captions first."""

    def __init__(self, data: _Data, teacher: OpenClipTeacher, stepper: Steps) -> None:
        self.seen: dict[str, float] = {}
        self._data, self._teacher, self._stepper = data, teacher, stepper

    def backward(self, step: int) -> dict[str, float]:
        """Leave the gradients of the step in the model."""
        batch = self._data.training.batch(step, self._data.recipe.train.batch)
        images = torch.from_numpy(self._teacher.embed_images(batch.pixels.numpy()))
        texts = self._teacher.embed_texts([self._data.tokenizer.decode(ids) for ids in batch.ids.tolist()])
        # What the step learns from is read from the shards all the same: it is the same, to float16's precision.
        for asked, kept in ((images, batch.teacher_images), (torch.from_numpy(texts), batch.teacher_texts)):
            if (cosine := torch.cosine_similarity(asked, kept).min().item()) < 0.999:
                raise SystemExit(f"the teacher's answer and the shard's have a cosine of {cosine}")
        return self._stepper.backward(step)


def _teacher(folder: Path, name: str) -> Path:
    """Write a built-in model of open_clip with random weights as a folder, once."""
    if not (folder / "open_clip_config.json").exists():
        torch.manual_seed(0)
        model: torch.nn.Module = open_clip.create_model(name, pretrained=None)
        folder.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
        pixels = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
        pixels |= {"interpolation": "bicubic", "resize_mode": "shortest"}
        config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": pixels}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def _reinforced(recipe: Recipe, work: Workspace) -> tuple[list[Path], float | None]:
    """Return the shards, and the seconds that they took unless they were there."""
    fresh, began = not work.reinforced.exists(), time.perf_counter()
    shards = reinforce_data(recipe, work, _silent)
    return shards, time.perf_counter() - began if fresh else None


def _data(recipe: Recipe, work: Workspace, shards: Sequence[Path]) -> _Data:
    samples, reinforced = read_samples(work.data, "train"), read_reinforced(shards)
    preset = recipe.preset()
    words = train_bpe(all_texts(samples, reinforced), vocab_size=preset.vocab_size)
    tokenizer = Tokenizer(words, text_length=preset.text_length)
    spec = preprocess_spec(preset)
    pixels = load_pixels([sample.picture(work.data) for sample in samples[:]], spec, cache=work.cache)
    ids = token_ids(samples, reinforced, tokenizer)
    # The captions by people alone: the others' texts are the captioner's, whom open_clip does not know.
    training = TrainingSet(samples, pixels, reinforced, ids, teacher_caption_share=0.0, seed=recipe.seed)
    return _Data(recipe, work.root, training, tokenizer, reinforced.dim)


def _ours(data: _Data, way: Way, teacher: OpenClipTeacher | None, run: str) -> float:
    """Return images a second of a training of its own."""
    recipe = msgspec.structs.replace(
        data.recipe, name=run, train=msgspec.structs.replace(data.recipe.train, losses=way.losses)
    )
    times: list[float] = []

    def note(_: Progress) -> None:
        times.append(time.perf_counter())

    def steps(*made_of: Any) -> Steps:
        replicas, place, device = made_of
        stepper = Stepper(recipe, data.training, replicas, place, pad_id=data.tokenizer.pad_id, device=device)
        return stepper if teacher is None else _Online(data, teacher, stepper)

    folder = data.folder / run
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    train(recipe, data.training, data.tokenizer, teacher_dim=data.teacher_dim, run=folder, progress=note, steps=steps)
    return recipe.train.batch * (len(times) - _WARM_UP) / (times[-2] - times[_WARM_UP - 1])


def _open_clip_student(folder: Path, recipe: Recipe) -> Path:
    """Write open_clip's student: the backbone and the widths of ours, CLIP's tokenizer, as its teacher's is."""
    ours = recipe.preset()
    vision = {"timm_model_name": ours.backbone, "timm_model_pretrained": False, "timm_pool": "avg"}
    text = {"context_length": 77, "vocab_size": 49408}
    text |= {"width": ours.width, "heads": ours.heads, "layers": ours.text_layers}
    config = {
        "embed_dim": ours.embed_dim,
        "vision_cfg": vision | {"timm_proj": "", "image_size": ours.image_px},
        "text_cfg": text,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def _captions_table(work: Workspace) -> Path:
    """Write the training split as open_clip reads it."""
    path = work.root / "open_clip.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, delimiter="\t")
        table.writerow(("filepath", "title"))
        for sample in read_samples(work.data, "train")[:]:
            table.writerow((work.data / sample.image, sample.captions[0]))
    return path


def _open_clip(student: Path, teacher: Path, table: Path, options: argparse.Namespace, logs: Path) -> float:
    """Return images a second of open_clip's training, from its own log."""
    shutil.rmtree(logs, ignore_errors=True)
    taken = table.with_suffix(".part.csv")
    rows = (options.steps + _WARM_UP) * options.batch
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    taken.write_text("".join(lines[:1] + [lines[1 + at % (len(lines) - 1)] for at in range(rows)]), encoding="utf-8")
    order = f"""--model local-dir:{student} --distill-model {options.teacher}
        --distill-pretrained {teacher / "open_clip_model.safetensors"} --train-data {taken} --dataset-type csv
        --batch-size {options.batch} --epochs 1 --workers {options.workers} --device cpu --precision fp32 --lr 1e-3
        --warmup 1 --log-every-n-steps 1 --save-frequency 0 --logs {logs} --name run"""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-m", "open_clip_train.main", *order.split()]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"open_clip_train ended with {done.returncode}:\n{done.stderr[-2000:]}")
    seconds = [float(one) for one in _SECONDS.findall((logs / "run" / "out.log").read_text(encoding="utf-8"))]
    return options.batch / statistics.mean(seconds[_WARM_UP:])


def _silent(step: str, done: int, total: int, note: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
