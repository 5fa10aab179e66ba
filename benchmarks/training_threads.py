"""How training uses two cores: two threads inside each operator, or two copies of the student.

    python -m benchmarks.training_threads [--batch 32] [--rounds 5]

Prints images a second of the nano student's training step (random pictures and captions, all terms of the loss) on one
thread, on two threads inside each operator, and on two copies (`pocketlens.distill.replicas`). The three take
turns, so that what else the machine does meets all alike; the median of the rounds counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from pocketlens.distill.batches import Batch
from pocketlens.distill.objective import Objective
from pocketlens.distill.recipe import LossWeights, TrainRecipe
from pocketlens.distill.replicas import Replicas
from pocketlens.distill.students.config import PRESETS
from pocketlens.distill.students.student import Student
from pocketlens.distill.threads import single_threads

_TEACHER_DIM, _CONCEPTS, _STEPS = 128, 87, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    ways = {
        "one thread": _way(options.batch, threads=1, copies=1),
        "two threads in each operator": _way(options.batch, threads=2, copies=1),
        "two copies of one thread": _way(options.batch, threads=1, copies=2),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            rates[name].append(options.batch * _STEPS / way())
    one = statistics.median(rates["one thread"])
    for name, seen in rates.items():
        median = statistics.median(seen)
        print(f"{name:30s} {median:6.0f} images/s  {median / one:.2f} x")
    return 0


def _way(size: int, *, threads: int, copies: int) -> Callable[[], float]:
    """Return a function that trains a few steps and returns the seconds that they took."""
    torch.manual_seed(0)
    settings = TrainRecipe(steps=1, losses=LossWeights(concepts=1.0))
    student = Student(PRESETS["nano"])
    model = Objective(student, teacher_dim=_TEACHER_DIM, concepts=torch.ones(_CONCEPTS))
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = _batch(size, student.config.image_px, student.config.text_length, student.config.vocab_size)

    def part_loss(one: Objective, part: Batch) -> None:
        look = one.look(part, batch, settings, 0)
        terms = {**look.terms, **one.compare(look.images, look.texts, part, settings)}
        torch.stack(list(terms.values())).sum().backward()

    def run() -> float:
        with single_threads(copies) as pool:
            replicas = Replicas(model, copies, pool)
            torch.set_num_threads(threads)
            replicas.spread()
            began = time.perf_counter()
            for _ in range(_STEPS):
                optimizer.zero_grad(set_to_none=True)
                if copies == 1:
                    part_loss(model, batch)  # in this thread, where the setting holds
                else:
                    replicas.map(part_loss, batch.split(copies))
                    replicas.gather_gradients()
                optimizer.step()
                replicas.spread()
            return time.perf_counter() - began

    run()  # the first steps compile kernels
    return run


def _batch(size: int, side: int, length: int, vocabulary: int) -> Batch:
    ids = torch.randint(4, vocabulary, (size, length), dtype=torch.int32)
    ids[:, 18:] = 0
    unit = torch.nn.functional.normalize(torch.randn(2 * size, _TEACHER_DIM), dim=1)
    pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8)
    return Batch(pixels, ids, unit[:size], unit[size:], torch.rand(size, _CONCEPTS) < 0.1)


if __name__ == "__main__":
    raise SystemExit(main())
