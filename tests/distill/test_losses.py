import math

import torch
from torch.nn import functional

from pocketlens.distill import losses


def _unit(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, columns, generator=generator), dim=1)


def test_contrastive_of_uniform_similarities_is_the_log_of_the_batch() -> None:
    same = torch.ones(8, 4) / 2
    assert math.isclose(losses.contrastive(same, same, torch.tensor(10.0)).item(), math.log(8), rel_tol=1e-5)


def test_contrastive_prefers_matching_rows() -> None:
    rows = torch.eye(6)
    matching = losses.contrastive(rows, rows, torch.tensor(20.0))
    shuffled = losses.contrastive(rows, rows.roll(1, dims=0), torch.tensor(20.0))
    assert matching < 1e-3
    assert shuffled > 10


def test_affinity_is_zero_when_the_student_has_the_teachers_similarities() -> None:
    images, texts = _unit(5, 8, 0), _unit(5, 8, 1)
    same = losses.affinity(images, texts, torch.tensor(20.0), images, texts, temperature=0.05)
    assert same.abs() < 1e-6
    other = losses.affinity(images, texts.roll(1, dims=0), torch.tensor(20.0), images, texts, temperature=0.05)
    assert other > 0.1


def test_feature_is_the_squared_distance_of_unit_vectors() -> None:
    a, b = _unit(7, 8, 0), _unit(7, 8, 1)
    expected = (2 - 2 * (a * b).sum(dim=1)).mean()
    assert torch.allclose(losses.feature(a, b), expected, atol=1e-6)


def test_caption_cross_entropy_leaves_padding_out() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, 2, 1] = 100.0  # a sure and wrong guess at the padded place
    ids = torch.tensor([[4, 3, 0]], dtype=torch.int32)
    value = losses.caption_cross_entropy(logits, ids, pad_id=0)
    assert math.isclose(value.item(), math.log(5), rel_tol=1e-5)
