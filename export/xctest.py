"""Writes a Swift package that holds a bundle's CoreML graphs against its golden files on a Mac, iPhone or iPad.

It is the other half of `pocketlens.export.mil`: what that cannot show, a device's own rounding, this measures.

::

    Package.swift
    Tests/PocketlensGoldenTests/
      PocketlensGoldenTests.swift   pixels -> embedding, text -> embedding, greedy captions
      PocketlensGolden/             the four packages, pixels, expected embeddings and captions

Nothing of it can run where there is no CoreML. The Swift file says so in its first lines.
"""

import shutil
from pathlib import Path
from typing import Final

import numpy as np

from pocketlens.core.bundle import ROLES, Bundle, CaptionSpec, GraphRecord, Role
from pocketlens.core.errors import BundleIncomplete, storage_errors
from pocketlens.core.golden import read_golden
from pocketlens.core.preprocess import preprocess
from pocketlens.export.mil.package import open_package

__all__ = ["write_xctest"]

_TESTS: Final = "Tests/PocketlensGoldenTests"
_RESOURCES: Final = "PocketlensGolden"
_TEMPLATE: Final = Path(__file__).with_name("xctest.swift.j2")

_IOS18: Final = 9  # CoreML's specification version

# A device may lie this much further off than the saved package does in torch ...
_SLACK: Final = 4.0
# ... and half precision, summed in any order, may cost this much in any case.
_HALF_PRECISION_COSINE: Final = 0.999
_FLOAT_CAPTIONS: Final = 0.75
_QUANTIZED_SHARE: Final = 0.5

_PACKAGE: Final = """\
// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "PocketlensGoldenTests",
    platforms: [.macOS(.v{mac}), .iOS(.v{ios})],
    targets: [
        .testTarget(name: "PocketlensGoldenTests", resources: [.copy("{resources}")])
    ]
)
"""


def write_xctest(bundle: Bundle, out: Path, *, variant: str = "coreml-fp16") -> Path:
    """Write the Swift package for `variant` of `bundle` into the folder `out` and return the Swift file.

    Args:
        bundle: a verified bundle with golden files.
        out: made where it is missing; files of an earlier call are replaced.
        variant: target and precision; all four graphs must be there.

    Raises:
        BundleIncomplete: the bundle has no such variant, or it lacks a graph.
        BundleSchemaError: the golden files are malformed.
        StorageFull: no space left.
    """
    import jinja2

    records, caption = _contents(bundle, variant)
    source = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    values = _values(bundle, records, caption, variant)
    golden = read_golden(bundle.root)
    with storage_errors(out):
        tests = out / _TESTS
        resources = tests / _RESOURCES
        shutil.rmtree(resources, ignore_errors=True)
        resources.mkdir(parents=True)
        for role, record in records.items():
            shutil.copytree(bundle.path(record), resources / f"{role}.mlpackage")
        # A bundle may ship the expected pixels of a part of its pictures only; this device gets them all.
        spec = bundle.manifest.preprocess
        np.save(
            resources / "pixels.npy", np.stack([preprocess(golden.folder / n, spec) for n in golden.golden.pictures])
        )
        np.save(resources / "embeddings.npy", golden.embeddings.astype("<f4"))
        np.save(resources / "text_embeddings.npy", golden.text_embeddings.astype("<f4"))
        shutil.copyfile(golden.folder / "golden.json", resources / "golden.json")
        platforms = {"mac": 15, "ios": 18} if values["ios18"] else {"mac": 14, "ios": 17}
        (out / "Package.swift").write_text(_PACKAGE.format(resources=_RESOURCES, **platforms), encoding="utf-8")
        swift = tests / "PocketlensGoldenTests.swift"
        swift.write_text(source.render(values), encoding="utf-8")
    return swift


def _contents(bundle: Bundle, variant: str) -> tuple[dict[Role, GraphRecord], CaptionSpec]:
    found = {r.role: r for r in bundle.manifest.graphs if f"{r.target}-{r.precision}" == variant}
    caption = bundle.manifest.caption
    if caption is None or set(found) != set(ROLES) or found["image_encoder"].engine != "coreml":
        raise BundleIncomplete(
            f"bundle {bundle.root}",
            expected=f"all of {', '.join(ROLES)} as {variant}, for CoreML",
            found=", ".join(sorted(found)) or "none of them",
            remedy="Export the bundle with this variant.",
        )
    return {role: found[role] for role in ROLES}, caption


def _values(bundle: Bundle, records: dict[Role, GraphRecord], caption: CaptionSpec, variant: str) -> dict[str, object]:
    manifest = bundle.manifest
    programs = {role: open_package(bundle.path(record)) for role, record in records.items()}
    decode = programs["caption_decode"]
    outputs = {role: [port.name for port in program.outputs] for role, program in programs.items()}
    inputs = {role: [port.name for port in program.inputs] for role, program in programs.items()}
    stateful = bool(decode.states)
    return {
        "name": manifest.name,
        "model_version": manifest.model_version,
        "variant": variant,
        "stateful": stateful,
        "ios18": any(program.specification >= _IOS18 for program in programs.values()),
        "picture": bool(programs["image_encoder"].inputs[0].picture),
        "image_cosine": _cosine(records["image_encoder"]),
        "text_cosine": _cosine(records["text_encoder"]),
        "caption_agreement": _agreement(records["caption_decode"]),
        "bos_id": manifest.tokenizer.bos_id,
        "eos_id": manifest.tokenizer.eos_id,
        "prefix_length": caption.prefix_length,
        "max_tokens": caption.max_tokens,
        "pixels": inputs["image_encoder"][0],
        "embedding": outputs["image_encoder"][0],
        "visual_tokens": outputs["image_encoder"][1],
        "ids": inputs["text_encoder"][0],
        "text_embedding": outputs["text_encoder"][0],
        "prefill_input": inputs["caption_prefill"][0],
        "prefill_cache": outputs["caption_prefill"][0],
        "token": inputs["caption_decode"][0],
        "position": inputs["caption_decode"][1],
        "logits": outputs["caption_decode"][0],
        "decode_cache": decode.states[0].name if stateful else inputs["caption_decode"][2],
        "decode_cache_out": "" if stateful else outputs["caption_decode"][1],
    }


def _cosine(record: GraphRecord) -> float:
    """Return the smallest cosine that a device may show."""
    measured = 1.0 if record.parity is None else record.parity.minimum
    return round(min(_HALF_PRECISION_COSINE, 1 - _SLACK * (1 - measured)), 6)


def _agreement(record: GraphRecord) -> float:
    """Return the smallest share of equal captions: in half precision a near tie may fall the other way."""
    if record.precision in {"fp32", "fp16"} or record.parity is None:
        return _FLOAT_CAPTIONS
    return round(_QUANTIZED_SHARE * record.parity.mean, 6)
