"""One exported graph among the eager student's others."""

import numpy as np
import pytest

import pocketlens
from pocketlens.core.bundle import Bundle, Quality, Role
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.evaluation.judged import JudgedStudent
from pocketlens.distill.students.student import Student
from pocketlens.export import Gates, Samples
from pocketlens.export.gates import quality_failure
from pocketlens.export.graphs import Graph
from pocketlens.export.recipe import Limits
from pocketlens.export.single_graph import SingleGraph, single_graphs


def _only(bundle: Bundle, graphs: dict[str, Graph], role: Role) -> SingleGraph:
    limits = Limits(recall_loss=0.1) if role in {"image_encoder", "text_encoder"} else Limits(cider_loss=1.0)
    (single,) = single_graphs(bundle, graphs, Gates(limits={f"onnx-int8/{role}": limits}))  # type: ignore[arg-type]
    assert (single.role, single.judged.name) == (role, f"onnx-int8/{role}")
    return single


def test_only_graphs_with_a_limit_of_their_own_for_a_metric_are_judged_alone(
    bundle: Bundle, graphs: dict[str, Graph]
) -> None:
    gates = Gates(
        limits={
            "onnx-int8": Limits(recall_loss=0.1),
            "int8": Limits(cider_loss=1.0),
            "onnx-int8/text_encoder": Limits(min_cosine=0.5),
            "executorch-int8/image_encoder": Limits(recall_loss=0.1),
        }
    )
    assert list(single_graphs(bundle, graphs, gates)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["image_encoder", "text_encoder"])
def test_its_embeddings_are_the_graphs_and_the_others_the_eager_students(
    role: Role,
    bundle: Bundle,
    graphs: dict[str, Graph],
    samples: tuple[Samples, Samples],
    student: tuple[Student, Tokenizer],
) -> None:
    paths, texts = list(samples[0].pictures), list(samples[0].captions)
    judged = _only(bundle, graphs, role).judged
    lens = pocketlens.load(bundle.root, engine="onnxruntime", precision="int8", threads=1)
    eager = JudgedStudent(*student)
    int8_pictures = np.stack([vector for vector in lens.embed_images(paths) if isinstance(vector, np.ndarray)])
    pictures, words = (int8_pictures, eager.embed_texts(texts))
    others = (eager.embed_images(paths), lens.embed_texts(texts))
    if role == "text_encoder":
        (pictures, words), others = others, (pictures, words)
    np.testing.assert_allclose(judged.embed_images(paths), pictures, atol=1e-5)
    np.testing.assert_allclose(judged.embed_texts(texts), words, atol=1e-5)
    changed = 0 if role == "image_encoder" else 1
    assert np.abs((pictures, words)[changed] - others[changed]).max() > 1e-3  # int8 is not float


@pytest.mark.parametrize("role", ["caption_prefill", "caption_decode"])
def test_its_captions_come_from_that_graph_and_the_eager_students_others(
    role: Role,
    bundle: Bundle,
    graphs: dict[str, Graph],
    samples: tuple[Samples, Samples],
    student: tuple[Student, Tokenizer],
) -> None:
    paths = list(samples[0].pictures)
    (single,) = single_graphs(
        bundle,
        graphs,  # type: ignore[arg-type]
        Gates(limits={f"onnx-fp32/{role}": Limits(cider_loss=1.0)}),
    )
    # In fp32 each graph gives the eager student's ids and probabilities, in int8 others, whatever stands around it.
    eager, texts = JudgedStudent(*student), [["a"]] * len(paths)  # the captions of this student have six ids
    found = [caption.token_ids for caption in single.judged.captions(paths)]
    assert found == [caption.token_ids for caption in eager.captions(paths)]
    scores, expected, int8 = (
        np.array([list(one.values()) for one in judged.text_logprobs(paths, texts)])
        for judged in (single.judged, eager, _only(bundle, graphs, role).judged)
    )
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert np.abs(int8 - expected).max() > 1e-3


def test_the_gate_refuses_the_graph_by_its_own_figure_and_not_by_its_variants() -> None:
    gates = Gates(limits={"onnx-int8/image_encoder": Limits(recall_loss=0.05)})
    values = {"student": 0.5, "onnx-int8": 0.3, "onnx-int8/image_encoder": 0.48}
    figures = [Quality(subject=s, metric="r1_i2t", value=v, samples=8) for s, v in values.items()]
    assert quality_failure(figures, gates, variant="onnx-int8", role="image_encoder") is None
    without = [figure for figure in figures if "/" not in figure.subject]
    failure = quality_failure(without, gates, variant="onnx-int8", role="image_encoder")
    assert failure is not None
    assert failure.found == "0.3000"
