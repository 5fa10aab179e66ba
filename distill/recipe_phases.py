"""Tables of a distillation recipe for what may follow the training; all are off by default."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["PruningRecipe", "QatRecipe", "SelfCriticalRecipe"]

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Part = Annotated[float, Meta(ge=0.0, lt=1.0)]


class PruningRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Structured pruning and the training after it; see `compression.pruning`.

    Attributes:
        steps: optimizer steps after the cut; 0 leaves the phase out.
        channels: share of the backbone's channels that goes.
        units: share of the hidden units of text tower and captioner that goes.
        importance: what is least important: by the `taylor` expansion of the loss, or by the `magnitude` of weights.
        learning_rate: its peak.
    """

    steps: Count = 0
    channels: Part = 0.25
    units: Part = 0.25
    importance: Literal["taylor", "magnitude"] = "taylor"
    learning_rate: Rate = 5e-4


class SelfCriticalRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training of the captioner for CIDEr itself; see `self_critical`.

    Attributes:
        steps: optimizer steps; 0 leaves the phase out.
        samples: captions drawn of each picture.
        learning_rate: its peak.
        baseline: what a caption's score is compared with: that of the picture's `greedy` caption, or the mean of its
            `other` samples.
    """

    steps: Count = 0
    samples: Positive = 5
    learning_rate: Rate = 5e-5
    baseline: Literal["greedy", "other"] = "other"


class QatRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training with simulated 8-bit arithmetic, for static int8; see `compression.qat`.

    Attributes:
        steps: optimizer steps; 0 leaves the phase out.
        learning_rate: its peak.
        moving: share of the steps over which the ranges of activations follow what is seen; then they stand still.
    """

    steps: Count = 0
    learning_rate: Rate = 1e-4
    moving: Share = 0.6
