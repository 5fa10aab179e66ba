import msgspec
import pytest

from pocketlens.core.bundle import Bundle, GraphRecord, Parity, Quality
from pocketlens.core.errors import ParityGateFailed, SpeedGateFailed
from pocketlens.export.gates import check_parity, check_quality, check_speed, parity_failure, quality_failure
from pocketlens.export.parity import measure_parity
from pocketlens.export.recipe import Gates, Limits
from pocketlens.export.reference import Reference
from pocketlens.runtime.engines import open_engine


def graph(precision: str = "int8", speedup: float | None = None, parity: Parity | None = None) -> GraphRecord:
    return GraphRecord(
        role="text_encoder",
        target="onnx",
        precision=precision,
        engine="onnxruntime",
        path="graphs/x",
        sha256="0" * 64,
        bytes=1,
        inputs=(),
        outputs=(),
        parity=parity,
        speedup_vs_fp32=speedup,
        notes=("First.",),
    )


def cosine(minimum: float, mean: float) -> Parity:
    return Parity(metric="cosine", minimum=minimum, p1=minimum, mean=mean, samples=10)


def agreement(mean: float) -> Parity:
    return Parity(metric="token_agreement", minimum=0.0, p1=0.0, mean=mean, samples=10)


@pytest.mark.parametrize(
    ("precision", "parity", "words"),
    [
        ("fp32", cosine(0.9998, 1.0), r"onnx-fp32 text_encoder: expected cosine of at least 0.9999 .* found 0.999800"),
        ("fp32", agreement(0.99), "token_agreement of at least 1 .* found 0.990000 over 10 samples"),
        ("int8", cosine(0.9, 0.96), "at least 0.97 .*int8_min_mean_cosine.* found 0.960000"),
        ("int8", cosine(float("nan"), float("nan")), "found nan"),
        ("int8", agreement(0.4), "at least 0.5 .*int8_min_token_agreement"),
    ],
)
def test_a_graph_below_its_limit_fails(precision: str, parity: Parity, words: str) -> None:
    with pytest.raises(ParityGateFailed, match=words):
        check_parity([graph(precision, parity=parity)], Gates(int8_min_token_agreement=0.5))


def test_graphs_at_their_limit_and_graphs_that_cannot_run_here_pass() -> None:
    good = [
        graph("fp32", parity=cosine(0.9999, 1.0)),
        graph("fp32", parity=agreement(1.0)),
        graph("int8", parity=cosine(0.1, 0.97)),
        graph("fp16"),
    ]
    check_parity(good, Gates())


@pytest.mark.parametrize(
    ("precision", "parity", "words"),
    [
        ("fp16", cosine(0.9, 0.998), "at least 0.999 .*fp16_min_mean_cosine"),
        ("int8_dynamic", cosine(0.9, 0.96), "at least 0.97 .*int8_min_mean_cosine"),
        ("int4", cosine(0.9, 0.94), r"at least 0.95 .*limits\.int4\.mean_cosine.* found 0.940000"),
        ("int4", cosine(0.7, 0.96), r"at least 0.8 .*limits\.onnx-int4\.min_cosine.* found 0.700000"),
        ("int8", cosine(0.5, 0.99), r"at least 0.6 .*limits\.onnx-int8/text_encoder\.p1_cosine"),
        ("fp32", cosine(0.9999, 1.0), r"at least 0.99999 .*limits\.fp32\.min_cosine"),
        ("int4", agreement(0.2), r"token_agreement of at least 0.3 .*limits\.int4\.token_agreement"),
    ],
)
def test_the_narrowest_limit_counts(precision: str, parity: Parity, words: str) -> None:
    limits = {
        "int4": Limits(mean_cosine=0.95, min_cosine=0.1, token_agreement=0.3),
        "onnx-int4": Limits(min_cosine=0.8),
        "int8": Limits(p1_cosine=0.1),
        "onnx-int8/text_encoder": Limits(p1_cosine=0.6),
        "fp32": Limits(min_cosine=0.99999),
    }
    with pytest.raises(ParityGateFailed, match=words):
        check_parity([graph(precision, parity=parity)], Gates(limits=limits))


def test_half_precision_is_marked_when_slower_but_never_refused() -> None:
    slower = graph("fp16", speedup=0.8)
    _, marked = check_speed([graph("fp32"), slower], Gates())
    assert not marked.preferred
    assert marked.notes == ("First.", "Runs at 0.80 times the speed of its fp32 twin on the exporting machine.")


def test_a_slower_quantized_graph_fails_unless_its_role_is_accepted() -> None:
    slower = graph(speedup=0.8)
    with pytest.raises(SpeedGateFailed, match=r"onnx-int8 text_encoder: expected at least 1 times .* found 0.80 times"):
        check_speed([graph("fp32"), slower], Gates(accept_slower=("image_encoder",)))
    check_speed([graph("fp32"), slower], Gates(accept_slower=("onnx-int8",)))
    fp32, accepted = check_speed([graph("fp32"), slower], Gates(accept_slower=("text_encoder",)))
    assert fp32 == graph("fp32")
    assert not accepted.preferred
    assert accepted.notes[0] == "First."
    assert accepted.notes[1].startswith("Runs at 0.80 times the speed of its fp32 twin")


def test_a_role_may_be_accepted_in_one_variant_only() -> None:
    slower = graph(speedup=0.8)
    with pytest.raises(SpeedGateFailed):
        check_speed([slower], Gates(accept_slower=("executorch-int8/text_encoder",)))
    (accepted,) = check_speed([slower], Gates(accept_slower=("onnx-int8/text_encoder",)))
    assert len(accepted.notes) == 2


def test_a_slower_graph_without_a_twin_in_the_bundle_stays_the_default() -> None:
    (accepted,) = check_speed([graph(speedup=0.8)], Gates(accept_slower=("text_encoder",)))
    assert accepted.preferred
    assert len(accepted.notes) == 2


def test_a_faster_graph_passes_untouched() -> None:
    records = [graph("fp32"), graph(speedup=1.4), graph("fp16")]
    assert check_speed(records, Gates(min_speedup=1.3)) == records
    with pytest.raises(SpeedGateFailed, match=r"at least 1.5 times"):
        check_speed(records, Gates(min_speedup=1.5))


def test_real_figures_meet_the_same_gate(bundle: Bundle) -> None:
    records = [msgspec.structs.replace(g, notes=(), preferred=True) for g in bundle.manifest.graphs]
    with pytest.raises(SpeedGateFailed, match="measured in turns on this machine"):
        check_speed(records, Gates(min_speedup=1e6))


def test_a_lost_metric_fails_only_where_a_limit_is_set_and_both_sides_have_it() -> None:
    figures = [
        Quality(subject=subject, metric=metric, value=value, samples=9)
        for subject, metric, value in (
            ("student", "r1_i2t", 0.50),
            ("onnx-int8", "r1_i2t", 0.48),
            ("student", "cider", 1.0),
            ("onnx-int8", "cider", 0.2),
            ("onnx-int8", "bleu4", 0.0),
        )
    ]
    check_quality(figures, Gates(), variants=["onnx-int8"])
    check_quality(figures, Gates(max_metric_loss={"r1_i2t": 0.021, "bleu4": 0.0}), variants=["onnx-int8"])
    check_quality(figures, Gates(max_metric_loss={"cider": 0.1}), variants=["onnx-fp32"])
    with pytest.raises(ParityGateFailed, match=r"onnx-int8 cider: expected at most 0.1 below the student's 1.0000"):
        check_quality(figures, Gates(max_metric_loss={"cider": 0.1}), variants=["onnx-int8"])


def quality(**figures: float) -> list[Quality]:
    """Figures named `subject__metric`, with `_` for the hyphen of a subject."""
    split = {name: name.partition("__") for name in figures}
    return [
        Quality(subject=split[n][0].replace("onnx_", "onnx-"), metric=split[n][2], value=value, samples=9)
        for n, value in figures.items()
    ]


@pytest.mark.parametrize(
    ("limits", "figures", "words"),
    [
        (
            {"int8": Limits(recall_loss=0.1)},
            {"student__r5_t2i": 0.5, "onnx_int8__r5_t2i": 0.39},
            r"onnx-int8 r5_t2i: expected at most 0.1 below the student's 0.5000 \(limits.int8.recall_loss\); found 0.3",
        ),
        (
            {"int8": Limits(cider_loss=50.0), "onnx-int8": Limits(cider_loss=2.0)},
            {"student__cider": 100.0, "onnx_int8__cider": 97.0},
            r"onnx-int8 cider: expected at most 2 below the student's 100.0000 \(limits.onnx-int8.cider_loss\)",
        ),
        (
            {"onnx-int8": Limits(hallucination_rise=0.05)},
            {"student__hallucination": 0.1, "onnx_int8__hallucination": 0.2},
            r"onnx-int8 hallucination: expected at most 0.05 above the student's 0.1000 .* found 0.2000",
        ),
        (
            {"int8": Limits(hallucination_rise=0.05)},
            {"student__hallucination_captions": 0.1, "onnx_int8__hallucination_captions": float("nan")},
            "onnx-int8 hallucination_captions.* found nan",
        ),
    ],
)
def test_limits_of_task_metrics_know_which_way_is_worse(
    limits: dict[str, Limits], figures: dict[str, float], words: str
) -> None:
    with pytest.raises(ParityGateFailed, match=words):
        check_quality(quality(**figures), Gates(limits=limits), variants=["onnx-int8"])


def test_better_figures_pass_whichever_way_is_better() -> None:
    figures = quality(
        student__hallucination=0.4, onnx_int8__hallucination=0.0, student__r1_i2t=0.1, onnx_int8__r1_i2t=0.9,
        student__cider=1.0, onnx_int8__cider=90.0,
    )  # fmt: skip
    gates = Gates(
        limits={"int8": Limits(recall_loss=0.0, cider_loss=0.0, hallucination_rise=0.0)},
        max_metric_loss={"hallucination": 0.0},
    )
    check_quality(figures, gates, variants=["onnx-int8"])
    worse = quality(student__hallucination=0.1, onnx_int8__hallucination=0.11)
    with pytest.raises(ParityGateFailed, match=r"hallucination: expected at most 0 above .* \(max_metric_loss\)"):
        check_quality(worse, gates, variants=["onnx-int8"])


def test_fp32_answers_to_limits_of_its_own_and_not_to_those_of_quantized_variants() -> None:
    figures = quality(student__cider=9.0, onnx_fp32__cider=1.0)
    check_quality(figures, Gates(max_metric_loss={"cider": 0.5}), variants=["onnx-fp32"])
    with pytest.raises(ParityGateFailed, match=r"limits\.fp32\.cider_loss"):
        check_quality(figures, Gates(limits={"fp32": Limits(cider_loss=0.5)}), variants=["onnx-fp32"])


def test_a_graph_is_judged_by_its_own_figures_where_there_are_any() -> None:
    gates = Gates(limits={"onnx-int8/image_encoder": Limits(recall_loss=0.1)})
    figures = quality(student__r1_i2t=0.5, onnx_int8__r1_i2t=0.1)
    assert quality_failure(figures, gates, variant="onnx-int8") is None
    assert quality_failure(figures, gates, variant="onnx-int8", role="text_encoder") is None
    failure = quality_failure(figures, gates, variant="onnx-int8", role="image_encoder")
    assert failure is not None
    assert "limits.onnx-int8/image_encoder.recall_loss" in failure.expected
    own = [*figures, Quality(subject="onnx-int8/image_encoder", metric="r1_i2t", value=0.49, samples=9)]
    assert quality_failure(own, gates, variant="onnx-int8", role="image_encoder") is None


def test_a_graph_that_must_be_measured_and_was_not_fails() -> None:
    note = "Parity was not measured: `topk` (node_3)."
    unmeasured = msgspec.structs.replace(graph("fp16"), target="coreml", engine="coreml", notes=(note,))
    assert parity_failure(unmeasured, Gates()) is None
    for name in ("coreml", "fp16", "coreml-fp16", "coreml-fp16/text_encoder"):
        failure = parity_failure(unmeasured, Gates(require_parity=(name,)))
        assert failure is not None
        assert "require_parity" in failure.expected
        assert failure.found == note
    assert parity_failure(unmeasured, Gates(require_parity=("onnx", "coreml-fp16/image_encoder"))) is None


def test_a_damaged_graph_fails_the_parity_gate(
    bundle: Bundle, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import onnx
    from onnx import numpy_helper

    fp32 = {g.role: g for g in bundle.manifest.graphs if g.precision == "fp32"}
    root = tmp_path_factory.mktemp("damaged")
    for record in fp32.values():
        (root / record.path).parent.mkdir(parents=True, exist_ok=True)
        (root / record.path).write_bytes(bundle.path(record).read_bytes())
    sound = measure_parity(open_engine("onnxruntime", Bundle(root, bundle.manifest), fp32), reference, bundle.manifest)
    check_parity([msgspec.structs.replace(g, parity=sound[g.role]) for g in fp32.values()], Gates())

    path = root / fp32["text_encoder"].path
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    onnx.save(model, path)
    damaged = measure_parity(
        open_engine("onnxruntime", Bundle(root, bundle.manifest), fp32), reference, bundle.manifest
    )
    assert damaged["image_encoder"] == sound["image_encoder"]
    with pytest.raises(ParityGateFailed, match="onnx-fp32 text_encoder"):
        check_parity([msgspec.structs.replace(g, parity=damaged[g.role]) for g in fp32.values()], Gates())
