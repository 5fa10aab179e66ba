"""What is exported, how it is quantized, and what it must reach: plain numbers, read from TOML."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from pocketlens.core.bundle import ROLES, Role
from pocketlens.core.errors import RecipeError

__all__ = [
    "DEFAULT_VARIANTS",
    "TAKES_PART",
    "VARIANTS",
    "ExportRecipe",
    "Gates",
    "Limits",
    "Variant",
    "choose_variants",
    "is_float",
    "load_recipe",
    "needs_calibration",
    "split_variant",
]

Variant = Literal[
    "onnx-fp32",
    "onnx-fp16",
    "onnx-int8",
    "onnx-int8_dynamic",
    "onnx-int8_blocks",
    "onnx-int4",
    "executorch-fp32",
    "executorch-int8",
    "executorch-8da8w",
    "executorch-8da4w",
    "executorch_coreml-fp32",
    "executorch_coreml-fp16",
    "executorch_vulkan-fp32",
    "executorch_vulkan-fp16",
    "coreml-fp32",
    "coreml-fp16",
    "coreml-int8",
    "coreml-palette4",
    "coreml-int4",
    "coreml-w8a8",
    "coremlstate-fp16",
    "litert-fp32",
    "tensorrt-fp16",
    "tensorrt-int8",
]
"""A target and a precision, as they name a folder under `graphs/`."""

VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)
"""Everything that can be exported."""

DEFAULT_VARIANTS: Final[tuple[Variant, ...]] = (
    "onnx-fp32",
    "onnx-int8",
    "executorch-fp32",
    "executorch-int8",
    "coreml-fp16",
)
"""What a recipe exports that names nothing."""

TAKES_PART: Final[dict[str, tuple[Role, ...]]] = {
    "recall_loss": ("image_encoder", "text_encoder"),
    "cider_loss": ("image_encoder", "caption_prefill", "caption_decode"),
    "hallucination_rise": ("image_encoder", "caption_prefill", "caption_decode"),
}
"""Which graphs have a part in the figure that a field of `Limits` is about."""

_FLOATS: Final = frozenset({"fp32", "fp16"})
_CALIBRATED: Final = frozenset({"int8", "w8a8"})


def split_variant(variant: str) -> tuple[str, str]:
    """Return target and precision of a variant: `onnx-int8` -> (`onnx`, `int8`)."""
    target, _, precision = variant.partition("-")
    return target, precision


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one precision, one variant or one graph; what is absent is taken from the next wider one.

    Attributes:
        min_cosine: smallest cosine to the eager student that one picture or text may have.
        p1_cosine: the same for the first percentile.
        mean_cosine: the same for the mean.
        token_agreement: share of pictures whose greedy caption has the eager student's ids.
        recall_loss: how much lower than the student's any recall at k (`r1_i2t`, `r10_t2i`, ...) may be.
        cider_loss: the same for `cider`, in points.
        hallucination_rise: how much higher than the student's `hallucination` and `hallucination_captions` may be.

    The last three are figures of all graphs of a variant together. For one graph they may be set where it
    takes part: recall for `image_encoder` and `text_encoder`, the others for all but `text_encoder`. Then
    that graph is refused, and not its variant.
    """

    min_cosine: float | None = None
    p1_cosine: float | None = None
    mean_cosine: float | None = None
    token_agreement: float | None = None
    recall_loss: float | None = None
    cider_loss: float | None = None
    hallucination_rise: float | None = None


class Gates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an exported graph must reach; one that does not fails the export.

    Attributes:
        fp32_min_cosine: smallest cosine to the eager student that one picture or text may have.
        fp32_min_token_agreement: share of pictures whose greedy caption has the eager student's ids.
        fp16_min_mean_cosine: mean cosine to the eager student, for embeddings and the caption cache.
        int8_min_mean_cosine: the same for every quantized precision, not only int8.
        int8_min_token_agreement: as for fp32, for fp16 and every quantized precision. Such captions
            differ in harmless words, so the gate that counts is `max_metric_loss` on a caption metric.
        limits: by precision (`int4`), variant (`onnx-int4`) or graph (`onnx-int4/text_encoder`): limits
            of its own; see `Limits`. The narrowest name counts, then the five keys above.
        max_metric_loss: by metric name (`r1_i2t`, `cider`, ...), how much worse than the student's a
            quantized variant's `Quality.value` may be: lower, or higher for `hallucination` and
            `hallucination_captions`. Only metrics that were evaluated are looked at.
        require_parity: targets (`coreml`), precisions, variants, or graphs (`coreml-fp16/image_encoder`) whose parity
            must have been measured: an engine that is not on this machine, or an operator that the
            interpreter of CoreML packages does not know, then fails the export instead of a note in the record.
        min_speedup: a quantized graph must be at least this many times as fast as its fp32 twin ...
        accept_slower: ... unless its role (`text_encoder`) is listed here, its variant (`onnx-int4`), or its role
            in one variant (`executorch-int8/image_encoder`). An fp16 graph is never held to it: the
            exporting machine's CPU says nothing about the GPU that it is for.
    """

    fp32_min_cosine: float = 0.9999
    fp32_min_token_agreement: float = 1.0
    fp16_min_mean_cosine: float = 0.999
    int8_min_mean_cosine: float = 0.97
    int8_min_token_agreement: float = 0.0
    limits: dict[str, Limits] = {}
    max_metric_loss: dict[str, float] = {}
    require_parity: tuple[str, ...] = ()
    min_speedup: float = 1.0
    accept_slower: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        graphs = {f"{variant}/{role}" for variant in VARIANTS for role in ROLES}
        for name in self.accept_slower:
            if name not in {*ROLES, *VARIANTS, *graphs}:
                raise ValueError(f"accept_slower: expected a role, a variant or variant/role, found {name!r}")
        precisions = {split_variant(variant)[1] for variant in VARIANTS}
        for name in self.limits:
            if name not in {*precisions, *VARIANTS, *graphs}:
                raise ValueError(f"limits: expected a precision, a variant or variant/role, found {name!r}")
        targets = {split_variant(variant)[0] for variant in VARIANTS}
        for name in self.require_parity:
            if name not in {*targets, *precisions, *VARIANTS, *graphs}:
                raise ValueError(
                    f"require_parity: expected a target, a precision, a variant or variant/role, found {name!r}"
                )
        for name, limits in self.limits.items():
            role = name.partition("/")[2]
            for field, roles in TAKES_PART.items():
                if role and role not in roles and getattr(limits, field) is not None:
                    raise ValueError(f"limits.{name}.{field}: expected one of {', '.join(roles)}, found {role}")


class ExportRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One export.

    Attributes:
        variants: what the bundle ships. The fp32 twin of a quantized variant that runs on this machine is
            built and measured in any case, since the gates compare with it, and left out of the bundle
            if not listed.
        calibration_samples: pictures (and captions) that quantization ranges are taken from.
        latency_runs: timed calls of each graph, taken in turns.
        golden_samples: pictures that ship with expected pixels, embeddings and captions.
        coreml_samples: pictures and texts that CoreML graphs are compared on, in an interpreter, which is slow; 0
            leaves them unmeasured.
        workers: processes that lower graphs; 0 lowers in the calling process, one after the other.
        seed: picks calibration samples and decoding steps.
        mixed_precision: `auto`: a graph in static int8 (ONNX, ExecuTorch) that fails a cosine of its gate is
            searched for the fewest layers that must stay in float, and written again with them. `off`: it
            just fails, as every other graph does.
        max_float_share: share of a graph's layers that may stay in float, 0 to 1; a search that needs more fails.
        gates: see `Gates`.
    """

    variants: tuple[Variant, ...] = DEFAULT_VARIANTS
    calibration_samples: int = 128
    latency_runs: int = 200
    golden_samples: int = 4
    coreml_samples: int = 16
    workers: int = 0
    seed: int = 0
    mixed_precision: Literal["auto", "off"] = "auto"
    max_float_share: float = 0.6
    gates: Gates = Gates()

    def __post_init__(self) -> None:
        for field in ("calibration_samples", "latency_runs", "golden_samples"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: expected at least 1, found {getattr(self, field)}")
        for field in ("workers", "coreml_samples"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}: expected 0 or more, found {getattr(self, field)}")
        if not 0 <= self.max_float_share <= 1:
            raise ValueError(f"max_float_share: expected 0 to 1, found {self.max_float_share:g}")
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


def choose_variants(targets: Iterable[str], precisions: Iterable[str] = ()) -> tuple[Variant, ...]:
    """Return all variants of `targets`, in the order of `VARIANTS`; of `precisions` only, if there are any.

    Args:
        targets: names of targets (`onnx`), of variants (`onnx-int8`), or `all`.
        precisions: names of precisions.

    Raises:
        RecipeError: a name that none of them has, or no variant fits both.
    """
    named, wanted = set(targets), set(precisions)
    known = {part for variant in VARIANTS for part in (split_variant(variant)[0], variant)} | {"all"}
    unknown = (named - known) | (wanted - {split_variant(variant)[1] for variant in VARIANTS})
    chosen = tuple(
        variant
        for variant in VARIANTS
        if {"all", variant, split_variant(variant)[0]} & named and (not wanted or split_variant(variant)[1] in wanted)
    )
    if unknown or not chosen:
        raise RecipeError(
            "export targets",
            expected=f"targets or variants with their precisions: {', '.join(VARIANTS)}",
            found=", ".join(sorted(unknown or named | wanted)) or "nothing",
            remedy="Name a target (onnx), a variant (onnx-int8), or all.",
        )
    return chosen


def is_float(precision: str) -> bool:
    """Return whether nothing is quantized."""
    return precision in _FLOATS


def needs_calibration(precision: str) -> bool:
    """Return whether ranges of activations are fixed at export."""
    return precision in _CALIBRATED
