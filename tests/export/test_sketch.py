"""A sketch says what an untrained student costs."""

from pathlib import Path

import pytest

from pocketlens.distill.students.student import Student
from pocketlens.export.graphs import student_graphs
from pocketlens.export.quiet import quiet
from pocketlens.export.sketch import Sketch, sketch
from pocketlens.export.targets import open_target
from tests.distill.tiny import CONFIG


@pytest.fixture(scope="module")
def found() -> Sketch:
    return sketch(CONFIG, runs=3)


def test_weights_are_counted(found: Sketch) -> None:
    assert found.parameters == Student(CONFIG).parameter_count()
    assert [graph.role for graph in found.graphs] == [
        "image_encoder",
        "text_encoder",
        "caption_prefill",
        "caption_decode",
    ]


def test_arithmetic_is_counted(found: Sketch) -> None:
    text = found.graphs[1]
    width, length = CONFIG.width, CONFIG.text_length
    block = length * 12 * width**2 + 2 * length**2 * width  # 4 E² attention, 8 E² feed-forward, scores and mixing
    assert text.macs == CONFIG.text_layers * block + width * CONFIG.embed_dim


def test_the_predicted_sizes_are_near_the_real_ones(found: Sketch, tmp_path: Path) -> None:
    graph = student_graphs(Student(CONFIG).eval())["text_encoder"]
    paths = {precision: tmp_path / f"{precision}.onnx" for precision in ("fp32", "fp16", "int4")}
    with quiet():
        open_target("onnx").export(graph, paths, ())
    for precision, path in paths.items():
        predicted = found.graphs[1].bytes[precision]
        assert predicted == pytest.approx(path.stat().st_size, rel=0.25, abs=8_000), precision
    assert found.bytes["fp32"] > found.bytes["fp16"] > found.bytes["int8"]


def test_latency_is_measured(found: Sketch) -> None:
    assert all(graph.latency.p50_ms > 0 and graph.latency.runs == 3 for graph in found.graphs)
    assert found.caption_ms > sum(graph.latency.p50_ms for graph in found.graphs)
