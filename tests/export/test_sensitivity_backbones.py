"""The two backbones that plain int8 ruins, the whole way: tower, ranking, search, report."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.sensitivity import main
from pocketlens.export.sensitivity import Frontier


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backbone", ["repvit_m0_9", "efficientvit_b0"])
def test_a_backbone_that_int8_ruins_passes_with_some_layers_in_float(backbone: str, tmp_path: Path) -> None:
    options = ["--side", "64", "--pictures", "16", "--runs", "3", "--out", str(tmp_path)]
    assert main(["--backbone", backbone, *options]) == 0
    result = msgspec.json.decode((tmp_path / "frontier.json").read_bytes(), type=Frontier)
    points = {point.label: point for point in result.points}
    assert points["nothing"].parity.mean < 0.99 <= points["chosen"].parity.mean
    assert 0 < points["chosen"].float_layers < points["everything"].float_layers
    assert points["chosen"].size_bytes < points["everything"].size_bytes
    assert backbone in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
