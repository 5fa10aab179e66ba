"""Every figure that the demo is held to, flat, computed from the run: `summary.json`."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from pocketlens.core.bundle import Manifest
from pocketlens.core.errors import storage_errors
from pocketlens.distill.evaluation import Evaluation, token_identity

__all__ = ["Summary", "summarise", "write_summary"]

Summary = dict[str, float | int | str | None]


def summarise(
    evaluations: Mapping[str, Evaluation],
    manifest: Manifest,
    *,
    seed: int,
    mode: str,
    student_params: int,
    bundle_bytes_onnx_int8: int,
    seconds: Mapping[str, float],
    resumed: bool,
) -> Summary:
    """Return the run's figures under flat keys.

    Args:
        evaluations: by subject: `teacher`, `student`, `onnx-fp32`, `onnx-int8`, `executorch-fp32`, ...
        manifest: of the exported bundle.
        seed: of the run.
        mode: `quick`, `demo` or `full`.
        student_params: weights of the student.
        bundle_bytes_onnx_int8: bytes of a bundle with the int8 ONNX graphs alone.
        seconds: wall time by stage.
        resumed: whether the run went on from an earlier one, so that `seconds` is not all that it took.
    """
    summary: Summary = {
        "mode": mode,
        "seed": seed,
        "resumed": resumed,
        "test_pictures": len(evaluations["student"].sample_ids),
        "student_params": student_params,
        "bundle_bytes_onnx_int8": bundle_bytes_onnx_int8,
    }
    names = {"teacher": "teacher", "student": "student", "int8": "onnx-int8"}
    metrics = {"r1_i2t": "r1_i2t", "r1_t2i": "r1_t2i", "cider": "cider", "hallucination": "hallucination"}
    metrics |= {"zero_shot": "zero_shot", "bleu4": "bleu4"}
    for prefix, subject in names.items():
        for key, metric in metrics.items():
            summary[f"{prefix}_{key}"] = evaluations[subject].figures[metric].value
    summary["int8_speedup_image"] = _speedup(manifest, "onnx")
    summary["int8_speedup_image_executorch"] = _speedup(manifest, "executorch")
    for target in ("onnx", "executorch"):
        exported = evaluations.get(f"{target}-fp32")
        if exported is not None:
            summary[f"caption_token_identity_{target}"] = token_identity(evaluations["student"], exported)
    summary |= {f"seconds_{name}": round(value, 1) for name, value in seconds.items()}
    summary["seconds_total"] = round(sum(seconds.values()), 1)
    return summary


def write_summary(path: Path, summary: Summary) -> None:
    """Write `summary` as indented JSON."""
    with storage_errors(path):
        path.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")


def _speedup(manifest: Manifest, target: str) -> float | None:
    for graph in manifest.graphs:
        if (graph.role, graph.target, graph.precision) == ("image_encoder", target, "int8"):
            return graph.speedup_vs_fp32
    return None
