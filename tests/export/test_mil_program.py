"""Packages that are not ours: what is unknown, too large or written otherwise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketlens.core.errors import EngineError
from pocketlens.export.mil.package import open_package, run_package
from pocketlens.export.quiet import quiet


def save(path: Path, module: torch.nn.Module, *example: torch.Tensor, **options: Any) -> Path:
    """Convert `module` as the CoreML target does."""
    with quiet(), torch.no_grad():
        import coremltools as ct

        program = torch.export.export(module.eval(), example).run_decompositions({})
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            outputs=[ct.TensorType(name="y", dtype=np.float32)],
            skip_model_load=True,
            **options,
        )
        model.save(str(path))
    return path


class Square(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


class Running(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, dim=1) + torch.cumsum(x, dim=0)


def test_unknown_operators_are_named_with_their_graph(tmp_path: Path) -> None:
    path = save(tmp_path / "strange.mlpackage", Running(), torch.zeros(2, 3))
    with pytest.raises(EngineError, match=r"CoreML graph strange: .*found `cumsum` \(cumsum.*\), `cumsum` \(cumsum"):
        open_package(path)


def test_an_overflow_of_half_precision_shows(tmp_path: Path) -> None:
    path = save(tmp_path / "square.mlpackage", Square(), torch.zeros(1, 2))
    feed = {"x": np.array([[3.0, 300.0]], np.float32)}
    assert run_package(path, feed)["y"].tolist() == [[9.0, float("inf")]]
    assert run_package(path, feed, exact=True)["y"].tolist() == [[9.0, 90000.0]]


def test_a_picture_in_blue_green_red_is_turned_round(tmp_path: Path) -> None:
    import coremltools as ct

    class First(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0] + 0.0

    pixels = np.arange(1 * 64 * 64 * 3, dtype=np.int64).reshape(1, 64, 64, 3).astype(np.uint8)
    for layout, channel in ((ct.colorlayout.RGB, 0), (ct.colorlayout.BGR, 2)):
        picture = ct.ImageType(name="x", shape=(1, 3, 64, 64), color_layout=layout)
        path = save(tmp_path / f"{channel}.mlpackage", First(), torch.zeros(1, 3, 64, 64), inputs=[picture])
        assert np.array_equal(run_package(path, {"x": pixels})["y"], pixels[..., channel].astype(np.float32))


def test_an_input_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "square.mlpackage", Square(), torch.zeros(1, 2))
    with pytest.raises(EngineError, match=r"CoreML graph square: expected `x` of shape \(1, 2\); found shape \(1, 3\)"):
        run_package(path, {"x": np.zeros((1, 3), np.float32)})
