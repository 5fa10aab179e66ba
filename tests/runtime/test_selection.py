"""Which graphs a lens takes."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pocketlens.core.bundle import Manifest, load_bundle
from pocketlens.core.errors import BundleIncomplete
from pocketlens.runtime.selection import choose_graphs

Change = Callable[[Manifest], Manifest]
Rebuilt = Callable[[Change], Path]


def _precisions(path: Path, precision: str | None = None) -> list[str]:
    chosen = choose_graphs(load_bundle(path), engine="onnxruntime", precision=precision)
    return [chosen[role].precision for role in sorted(chosen)]


def _edit(role: str | None, precision: str, **fields: object) -> Change:
    def change(manifest: Manifest) -> Manifest:
        graphs = tuple(
            msgspec.structs.replace(graph, **fields)
            if graph.precision == precision and role in (None, graph.role)
            else graph
            for graph in manifest.graphs
        )
        return msgspec.structs.replace(manifest, graphs=graphs)

    return change


def test_a_faster_graph_that_is_not_preferred_is_left_alone(bundle_path: Path) -> None:
    assert set(_precisions(bundle_path)) == {"fp32"}


def test_a_graph_that_is_not_preferred_is_taken_when_it_is_asked_for(bundle_path: Path) -> None:
    assert _precisions(bundle_path, "int8") == ["int8"] * 4


def test_the_fastest_preferred_image_encoder_decides(rebuilt: Rebuilt) -> None:
    assert _precisions(rebuilt(_edit(None, "int8", preferred=True))) == ["int8"] * 4


def test_a_graph_that_was_never_measured_comes_last(rebuilt: Rebuilt) -> None:
    assert set(_precisions(rebuilt(_edit(None, "int8", preferred=True, latency=None)))) == {"fp32"}


def test_a_role_without_a_preferred_graph_of_that_precision_takes_another(rebuilt: Rebuilt) -> None:
    path = rebuilt(_edit("image_encoder", "int8", preferred=True))
    chosen = choose_graphs(load_bundle(path), engine="onnxruntime")
    assert {role: graph.precision for role, graph in chosen.items()} == {
        "image_encoder": "int8",
        "text_encoder": "fp32",
        "caption_prefill": "fp32",
        "caption_decode": "fp32",
    }


def test_a_precision_that_the_bundle_lacks_is_refused_with_what_there_is(bundle_path: Path) -> None:
    with pytest.raises(BundleIncomplete, match=r"int4 image_encoder.*found fp32 for onnxruntime, int8"):
        _precisions(bundle_path, "int4")


def test_an_engine_that_the_bundle_has_no_graphs_for_is_refused(bundle_path: Path) -> None:
    with pytest.raises(BundleIncomplete, match="executorch"):
        choose_graphs(load_bundle(bundle_path), engine="executorch")


def test_a_missing_graph_of_a_task_is_refused(rebuilt: Rebuilt) -> None:
    def change(manifest: Manifest) -> Manifest:
        graphs = tuple(graph for graph in manifest.graphs if graph.role != "caption_decode")
        return msgspec.structs.replace(manifest, graphs=graphs)

    with pytest.raises(BundleIncomplete, match="caption_decode"):
        _precisions(rebuilt(change))


def test_a_bundle_without_captions_needs_no_caption_graphs(rebuilt: Rebuilt) -> None:
    def change(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(manifest, tasks=("embed",), caption=None)

    chosen = choose_graphs(load_bundle(rebuilt(change)), engine="onnxruntime")
    assert set(chosen) == {"image_encoder", "text_encoder"}
