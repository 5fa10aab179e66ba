"""Where the data and the results of the stages lie, and how a short run is shortened."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from benchmarks.flickr8k.descent import StudentTraining
from benchmarks.flickr8k.features import Split, grid_features, read_split, token_features
from benchmarks.flickr8k.heads import Features

__all__ = [
    "Place",
    "save_weights",
    "shortened",
]

_TRAINING_VIEWS = 4

_Training = TypeVar("_Training", bound=StudentTraining)


class Place:
    """Where data and results lie, and what was read so far."""

    def __init__(self, data: Path, out: Path, *, quick: bool = False) -> None:
        self.data, self.out, self.quick = data, out, quick
        out.mkdir(parents=True, exist_ok=True)
        self._splits: dict[str, Split] = {}
        self._features: dict[tuple[str, int], Features] = {}

    @property
    def weights(self) -> Path:
        """The ImageNet backbone."""
        return self.data / "weights" / "mobilenetv2_100_same_in1k_fp16.safetensors"

    @cached_property
    def training_views(self) -> int:
        """Views of a training picture: itself, mirrored, and crops."""
        return 2 if self.quick else _TRAINING_VIEWS

    def split(self, name: str) -> Split:
        """Return a split, read once."""
        if name not in self._splits:
            self._splits[name] = read_split(self.data, name)
        return self._splits[name]

    def features(self, name: str) -> Features:
        """Return the frozen towers' features of a split: training views, or the picture and its mirror image."""
        views = self.training_views if name == "train" else 2
        key = (name, views)
        if key not in self._features:
            split, cache = self.split(name), self.out / "features"
            grids, pooled = grid_features(split, self.weights, cache, views=range(views), progress=_progress)
            tokens, lengths = token_features([text for texts in split.captions for text in texts], cache)
            self._features[key] = Features(grids, pooled, tokens, lengths)
        return self._features[key]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note the processor seconds of a piece of work, for `seconds`."""
        began = time.process_time()
        yield
        self.write("seconds", self.seconds() | {name: round(time.process_time() - began, 1)})

    def seconds(self) -> dict[str, float]:
        """Return the processor seconds noted so far, of earlier runs too."""
        path = self.out / "seconds.json"
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float]) if path.exists() else {}

    def write(self, name: str, found: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write a stage's result."""
        path = self.out / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))
        partial.replace(path)


def shortened(place: Place, training: _Training) -> _Training:
    """Return `training` with no more views and pictures than there are; of one epoch where the run is a quick one."""
    views, batch = min(training.views, place.training_views), min(training.batch, len(place.split("train").captions))
    return msgspec.structs.replace(training, epochs=1 if place.quick else training.epochs, views=views, batch=batch)


def save_weights(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _progress(done: int, total: int) -> None:
    if done % 1000 == 0 or done == total:
        print(f"features {done}/{total}", file=sys.stderr, flush=True)
