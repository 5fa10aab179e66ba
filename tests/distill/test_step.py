"""One step is the same whoever shares it: copies, micro-batches, processes under torchrun."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from pocketlens.core.errors import RecipeError
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.batches import TrainingSet
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.data.recipe import ScenesData
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.distributed import Place
from pocketlens.distill.losses import token_cross_entropy
from pocketlens.distill.objective import Objective
from pocketlens.distill.recipe import LossWeights, Recipe, TrainRecipe
from pocketlens.distill.reinforced import Reinforced
from pocketlens.distill.replicas import Replicas
from pocketlens.distill.shards import pack_texts, pack_vectors
from pocketlens.distill.step import Stepper, copies_of
from pocketlens.distill.students.student import Student
from pocketlens.distill.threads import single_threads
from pocketlens.distill.token_cache import token_ids
from pocketlens.distill.train import train
from pocketlens.distill.validation import Validation
from tests.distill.tiny import CONFIG, TEXTS, noise

COUNT, DIM = 16, 20


def recipe(**options: object) -> Recipe:
    losses = options.pop("losses", LossWeights(feature=2.0, interactive=0.5))
    fields = {"steps": 3, "batch": 8, "checkpoint_every": 50, "losses": losses, **options}
    threads = int(fields.pop("threads", 1))  # type: ignore[call-overload]
    train_recipe = TrainRecipe(**fields)  # type: ignore[arg-type]
    return Recipe(name="t", threads=threads, data=ScenesData(train=1, val=1, test=1), train=train_recipe)


def world(*, alternatives: bool = False) -> tuple[TrainingSet, Tokenizer]:
    """Sixteen pictures with two captions each, and a third by a teacher."""
    rng = np.random.default_rng(3)
    unit = lambda *shape: (v := rng.normal(size=shape)) / np.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
    samples = [Sample(id=str(i), image="", captions=(TEXTS[i % 4], TEXTS[(i + 1) % 4])) for i in range(COUNT)]
    written = [TEXTS[(i + 2) % 4] for i in range(COUNT)]
    tokenizer = Tokenizer(train_bpe(TEXTS, vocab_size=280), text_length=CONFIG.text_length)
    shard = {
        **pack_vectors("images", unit(COUNT, 2, DIM).astype(np.float32), int8=False),
        **pack_vectors("texts", unit(3 * COUNT, DIM).astype(np.float32), int8=False),
        **pack_texts(written),
        "params": np.tile(np.array([0, 0, 1, 1, 0, 1, 0], np.float32), (COUNT, 2, 1)),
        "text_ends": np.arange(3, 3 * COUNT + 1, 3),
        "written": np.ones(COUNT, np.int32),
        "logprobs": np.zeros(COUNT, np.float32),
    }
    if alternatives:
        ids = tokenizer.encode_batch(written)[:, 1:]
        shard["caption_ids"] = np.where(ids == 0, -1, ids).astype(np.int32)
        shard["top_ids"] = np.stack([ids, (ids + 5) % 200, (ids + 9) % 200], axis=2).astype(np.int32)
        logprobs = np.broadcast_to(np.log([0.7, 0.2, 0.05]), (*ids.shape, 3)) * (ids != 0)[..., None]
        shard["top_logprobs"] = logprobs.astype(np.float16)
    reinforced = Reinforced([shard])
    data = TrainingSet(
        samples,
        noise(COUNT, CONFIG.image_px),
        reinforced,
        token_ids(samples, reinforced, tokenizer),
        teacher_caption_share=0.5,
        with_alternatives=alternatives,
        seed=11,
    )
    return data, tokenizer


def objective() -> Objective:
    torch.manual_seed(0)
    config = msgspec.structs.replace(CONFIG, vocab_size=280)
    return Objective(Student(config), teacher_dim=DIM, concepts=torch.empty(0))


def gradients(plan: Recipe, copies: int, *, training: bool) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    data, tokenizer = world()
    model = objective().train(training)
    with single_threads(copies) as pool:
        replicas = Replicas(model, copies, pool)
        stepper = Stepper(plan, data, replicas, Place(), pad_id=tokenizer.pad_id, device=torch.device("cpu"))
        terms = stepper.backward(1)
    return terms, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("copies", "rounds"), [(2, 1), (1, 2), (1, 4), (2, 2)])
def test_copies_and_micro_batches_make_the_gradients_of_the_whole_batch(copies: int, rounds: int) -> None:
    # eval: a batch norm that sees a part of a batch would answer differently, as it should
    terms, whole = gradients(recipe(), 1, training=False)
    shared_terms, shared = gradients(recipe(micro_batches=rounds), copies, training=False)
    assert set(terms) == {"feature", "caption", "contrastive", "affinity", "interactive"}
    assert shared_terms == pytest.approx(terms, rel=1e-5)
    assert shared.keys() == whole.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(shared[name], expected, rtol=3e-4, atol=3e-5, msg=name)


def test_the_first_of_two_looks_leaves_the_running_statistics_alone() -> None:
    data, _ = world()
    plan, counts = recipe(micro_batches=2), []
    for only_captions in (False, True):
        losses = LossWeights(contrastive=0, affinity=0, feature=0) if only_captions else LossWeights()
        settings = msgspec.structs.replace(plan, train=msgspec.structs.replace(plan.train, losses=losses))
        model = objective().train()
        with single_threads(1) as pool:
            replicas = Replicas(model, 1, pool)
            Stepper(settings, data, replicas, Place(), pad_id=0, device=torch.device("cpu")).backward(0)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(norm.momentum == 0.1 for norm in norms)
        counts.append(torch.cat([norm.running_mean for norm in norms if norm.running_mean is not None]))
    torch.testing.assert_close(counts[0], counts[1])  # one look with captions alone, two with pairs


def test_a_batch_that_does_not_divide_is_refused() -> None:
    data, _ = world()
    with single_threads(1) as pool, pytest.raises(RecipeError, match=r"train\.batch"):
        Stepper(
            recipe(micro_batches=3), data, Replicas(objective(), 1, pool), Place(), pad_id=0, device=torch.device("cpu")
        )


def test_threads_are_shared_by_the_processes() -> None:
    plan = recipe(threads=4)
    assert [copies_of(plan, Place(0, n)) for n in (1, 2, 4, 8)] == [4, 2, 1, 1]


def test_labels_without_pixels_and_rows_of_a_batch_are_those_of_the_batch() -> None:
    data, _ = world(alternatives=True)
    whole, labels, part = data.batch(2, 8), data.batch(2, 8, pixels=None), data.batch(2, 8, pixels=slice(2, 5))
    assert labels.pixels.shape == (8, 0, 0, 3)
    for name in ("ids", "teacher_images", "teacher_texts"):
        assert torch.equal(getattr(labels, name), getattr(whole, name))
        assert torch.equal(getattr(part, name), getattr(whole, name)[2:5])
    assert torch.equal(part.pixels, whole.pixels[2:5])


def test_alternatives_belong_to_the_teachers_captions_alone() -> None:
    data, _ = world(alternatives=True)
    batch = data.batch(0, 16)
    known = (batch.top_logprobs < 0).any(dim=2)
    by_teacher = known.any(dim=1)
    assert 2 < int(by_teacher.sum()) < 14
    for row in torch.nonzero(by_teacher).flatten().tolist():
        length = int(known[row].sum())
        assert torch.equal(batch.top_ids[row, :length, 0], batch.ids[row, 1 : length + 1])


def test_the_token_term_falls_where_the_student_says_what_the_teacher_says() -> None:
    top_ids = torch.tensor([[[3, 4], [5, 6], [0, 0]], [[0, 0]] * 3])
    logprobs = torch.tensor([[[-0.1, -2.4], [-0.7, -0.7], [0.0, 0.0]], [[0.0, 0.0]] * 3])
    ids = torch.tensor([[3, 5, 0], [7, 7, 7]])
    logits = torch.zeros(2, 3, 8)
    uniform = token_cross_entropy(logits, ids, top_ids, logprobs)
    assert float(uniform) == pytest.approx(np.log(8) / 2, rel=1e-5)  # the second row counts 0
    logits[0, 0, 3] = logits[0, 1, 5] = logits[0, 1, 6] = 9.0
    assert float(token_cross_entropy(logits, ids, top_ids, logprobs)) < 0.4 * float(uniform)


# Whole runs


def run(folder: Path, plan: Recipe, *, validation: bool = False) -> list[float]:
    data, tokenizer = world()
    look = None
    if validation:
        ids = tokenizer.encode_batch([TEXTS[i % 4] for i in range(6)])
        look = Validation(noise(6, CONFIG.image_px, seed=9), ids, pad_id=0, every=plan.train.validate_every)
    from pocketlens.distill.students import config

    config.PRESETS["tiny"] = CONFIG
    plan = msgspec.structs.replace(plan, student=msgspec.structs.replace(plan.student, preset="tiny"))
    train(plan, data, tokenizer, teacher_dim=DIM, run=folder, validation=look)
    return losses_of(folder)


def losses_of(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(encoding="utf-8") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


_RANK = """
import sys
from pathlib import Path
from tests.distill.test_step import recipe, run
run(Path(sys.argv[1]), recipe(threads=2, steps=6))
"""


def test_two_processes_under_torchrun_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", recipe(threads=2, steps=6))
    (tmp_path / "rank.py").write_text(_RANK)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(port), str(tmp_path / "rank.py"), str(tmp_path / "shared")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses_of(tmp_path / "shared") == pytest.approx(alone, rel=1e-3)
    assert (tmp_path / "shared" / "student.safetensors").exists()


def test_training_looks_at_the_validation_split_draws_curves_and_stops_when_it_gets_worse(tmp_path: Path) -> None:
    plan = recipe(steps=40, validate_every=2, patience=2, learning_rate=0.3)  # a rate that makes it worse
    losses = run(tmp_path, plan, validation=True)
    assert 4 <= len(losses) < 40
    with (tmp_path / "validation.csv").open(encoding="utf-8") as stream:
        looks = [float(row["loss"] or "inf") for row in csv.DictReader(stream)]
    assert len(looks) == len(losses) // 2
    assert min(looks) == looks[-3]  # two worse ones ended it
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_bfloat16_trains(tmp_path: Path) -> None:
    losses = run(tmp_path, recipe(steps=12, precision="bfloat16"))
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
