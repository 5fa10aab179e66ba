"""The report's two tables, from evaluations and the manifest."""

from collections.abc import Mapping

from pocketlens.core.bundle import GraphRecord, Manifest
from pocketlens.demo.report_content import ComparisonRow, Figure, ParityFigure, VariantRow
from pocketlens.distill.evaluation import Evaluation
from pocketlens.distill.evaluation import Figure as Measured
from pocketlens.runtime.engines import ENGINES

__all__ = ["comparison_rows", "variant_rows"]

_METRICS = (
    # key, name as shown, is a share of 1, higher is better, stands at the top of the page
    ("r1_i2t", "R@1 image → text", True, True, True),
    ("r5_i2t", "R@5 image → text", True, True, False),
    ("r10_i2t", "R@10 image → text", True, True, False),
    ("r1_t2i", "R@1 text → image", True, True, True),
    ("r5_t2i", "R@5 text → image", True, True, False),
    ("r10_t2i", "R@10 text → image", True, True, False),
    ("zero_shot", "Zero-shot accuracy", True, True, False),
    ("cider", "CIDEr", False, True, True),
    ("bleu4", "BLEU-4", False, True, False),
    ("hallucination", "Hallucinated objects", True, False, False),
    ("missed", "Objects not named", True, False, False),
)


def comparison_rows(evaluations: Mapping[str, Evaluation]) -> tuple[ComparisonRow, ...]:
    """Return teacher, student and int8 ONNX graphs side by side."""
    teacher, student, int8 = (evaluations[name].figures for name in ("teacher", "student", "onnx-int8"))
    return tuple(
        ComparisonRow(
            metric=name,
            scale="percent" if share else "score",
            higher_is_better=higher,
            teacher=_figure(teacher[key]),
            student=_figure(student[key]),
            int8=_figure(int8[key]),
            ratio=student[key].value / teacher[key].value if teacher[key].value else None,
            headline=headline,
        )
        for key, name, share, higher, headline in _METRICS
        if key in teacher and key in student and key in int8
    )


def variant_rows(manifest: Manifest, evaluations: Mapping[str, Evaluation]) -> tuple[VariantRow, ...]:
    """Return one row for each target and precision in the manifest."""
    variants = list(dict.fromkeys((graph.target, graph.precision) for graph in manifest.graphs))
    return tuple(_variant(manifest, target, precision, evaluations) for target, precision in variants)


def _variant(manifest: Manifest, target: str, precision: str, evaluations: Mapping[str, Evaluation]) -> VariantRow:
    graphs = [g for g in manifest.graphs if (g.target, g.precision) == (target, precision)]
    image = next(g for g in graphs if g.role == "image_encoder")
    decode = next((g for g in graphs if g.role == "caption_decode"), None)
    judged = evaluations.get(f"{target}-{precision}")
    figures = judged.figures if judged is not None else {}
    return VariantRow(
        target=target,
        precision=precision,
        engine=image.engine,
        bytes=sum(graph.bytes for graph in graphs),
        image_p50_ms=image.latency.p50_ms if image.latency else None,
        image_p90_ms=image.latency.p90_ms if image.latency else None,
        decode_p50_ms=decode.latency.p50_ms if decode is not None and decode.latency else None,
        parity=_parity(image),
        r1_i2t=figures["r1_i2t"].value if figures else None,
        r1_t2i=figures["r1_t2i"].value if figures else None,
        cider=figures["cider"].value if figures else None,
        speedup=image.speedup_vs_fp32,
        unmeasured=_missing(image),
        notes=tuple(dict.fromkeys(note for graph in graphs for note in graph.notes)),
    )


def _missing(graph: GraphRecord) -> str:
    """Return why figures may be missing: parity of CoreML is measured anywhere, by an interpreter."""
    if graph.latency is not None or (graph.engine in ENGINES and graph.engine != "coreml"):
        return "not measured in this run"
    where = "a Mac" if graph.engine == "coreml" else "its own device"
    return f"latency needs {where}; recall and captions were not evaluated"


def _figure(measured: Measured) -> Figure:
    return Figure(measured.value, measured.low, measured.high)


def _parity(graph: GraphRecord) -> ParityFigure | None:
    parity = graph.parity
    return None if parity is None else ParityFigure(parity.metric, parity.minimum, parity.mean)
