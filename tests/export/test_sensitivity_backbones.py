"""The two backbones that plain int8 ruins, the whole way: tower, ranking, search, report."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.sensitivity import main
from pocketlens.export.sensitivity import Frontier


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("backbone", ["efficientvit_b0", "repvit_m0_9"])
def test_a_backbone_that_int8_ruins_passes_with_16_bit_activations(backbone: str, tmp_path: Path) -> None:
    options = ["--pictures", "48", "--activations", "16", "--runs", "3", "--out", str(tmp_path)]
    assert main(["--backbone", backbone, *options]) == 0
    result = msgspec.json.decode((tmp_path / "frontier.json").read_bytes(), type=Frontier)
    points = {point.label: point for point in result.points}
    assert points["chosen"].parity.mean >= 0.99  # on pictures that neither ranking nor search saw
    assert points["chosen"].float_layers <= points["everything"].float_layers / 4
    assert points["chosen"].size_bytes < points["everything"].size_bytes / 2
    assert backbone in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
