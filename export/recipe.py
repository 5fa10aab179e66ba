"""What is exported, how it is quantized, and what it must reach: plain numbers, read from TOML."""

from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from pocketlens.core.bundle import ROLES
from pocketlens.core.errors import RecipeError

__all__ = ["VARIANTS", "ExportRecipe", "Gates", "Variant", "load_recipe", "split_variant"]

Variant = Literal["onnx-fp32", "onnx-int8", "executorch-fp32", "executorch-int8", "coreml-fp16"]
"""A target and a precision, as they name a folder under `graphs/`."""

VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)


class Gates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an exported graph must reach; one that does not fails the export.

    Attributes:
        fp32_min_cosine: smallest cosine to the eager student that one picture or text may have.
        fp32_min_token_agreement: share of pictures whose greedy caption has the eager student's ids.
        int8_min_mean_cosine: mean cosine to the eager student, for embeddings and the caption cache.
        int8_min_token_agreement: as for fp32. Quantized captions differ in harmless words, so the
            gate that counts is `max_metric_loss` on a caption metric.
        max_metric_loss: by metric name (`r1_i2t`, `cider`, ...), how much lower than the student's a
            quantized variant's `Quality.value` may be. Only metrics that were evaluated are looked at.
        min_speedup: an int8 graph must be at least this many times as fast as its fp32 twin ...
        accept_slower: ... unless its role (`text_encoder`) is listed here, or its role in one variant
            (`executorch-int8/image_encoder`).
    """

    fp32_min_cosine: float = 0.9999
    fp32_min_token_agreement: float = 1.0
    int8_min_mean_cosine: float = 0.97
    int8_min_token_agreement: float = 0.0
    max_metric_loss: dict[str, float] = {}
    min_speedup: float = 1.0
    accept_slower: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {*ROLES, *(f"{variant}/{role}" for variant in VARIANTS for role in ROLES)}
        for name in self.accept_slower:
            if name not in known:
                raise ValueError(f"accept_slower: expected a role or variant/role, found {name!r}")


class ExportRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One export.

    Attributes:
        variants: what the bundle ships. The fp32 twin of an int8 variant is built and measured in
            any case, since the gates compare with it, and left out of the bundle if not listed.
        calibration_samples: pictures (and captions) that quantization ranges are taken from.
        latency_runs: timed calls of each graph, taken in turns.
        golden_samples: pictures that ship with expected pixels, embeddings and captions.
        workers: processes that lower graphs; 0 lowers in the calling process, one after the other.
        seed: picks calibration samples and decoding steps.
        gates: see `Gates`.
    """

    variants: tuple[Variant, ...] = VARIANTS
    calibration_samples: int = 128
    latency_runs: int = 200
    golden_samples: int = 4
    workers: int = 0
    seed: int = 0
    gates: Gates = Gates()

    def __post_init__(self) -> None:
        for field in ("calibration_samples", "latency_runs", "golden_samples"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: expected at least 1, found {getattr(self, field)}")
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more, found {self.workers}")
        if not self.variants or len(set(self.variants)) != len(self.variants):
            raise ValueError(f"variants: expected each variant once, found {list(self.variants)}")


def load_recipe(path: Path) -> ExportRecipe:
    """Return the recipe in the TOML file `path`.

    Raises:
        RecipeError: unreadable, an unknown key, a wrong type or a value out of range.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ExportRecipe)
    except (OSError, msgspec.MsgspecError) as error:
        raise RecipeError(
            f"export recipe {path}",
            expected="a TOML file with the keys of ExportRecipe",
            found=str(error),
            remedy="Correct the key; `pocketlens export --help` names the documentation of all of them.",
        ) from error


def split_variant(variant: str) -> tuple[str, str]:
    """Return target and precision of a variant: `onnx-int8` -> (`onnx`, `int8`)."""
    target, _, precision = variant.partition("-")
    return target, precision
