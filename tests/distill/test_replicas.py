"""Several copies of the model give the step that one would."""

import threading

import pytest
import torch
from torch import Tensor, nn

from pocketlens.distill.replicas import Replicas
from pocketlens.distill.threads import single_threads


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def _backward(model: nn.Module, part: Tensor) -> int:
    model(part).square().sum().backward()
    return threading.get_ident()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_copies_gradients_add_up_to_those_of_the_whole_batch(count: int) -> None:
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    alone, shared = _model(), _model()
    alone(rows).square().sum().backward()
    with single_threads(count) as pool:
        replicas = Replicas(shared, count, pool)
        replicas.map(_backward, list(rows.tensor_split(count)))
        replicas.gather_gradients()
    for expected, found in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_gradients_are_forgotten_once_they_are_gathered() -> None:
    with single_threads(2) as pool:
        replicas = Replicas(_model(), 2, pool)
        rows = list(torch.ones(4, 5).tensor_split(2))
        replicas.map(_backward, rows)
        replicas.gather_gradients()
        again = replicas.map(lambda model, _: [parameter.grad is None for parameter in model.parameters()], rows)
    assert not any(again[0])
    assert all(again[1])


def test_spread_gives_all_the_same_weights_and_the_mean_of_the_running_statistics() -> None:
    model = nn.BatchNorm1d(2, momentum=1.0)
    with single_threads(2) as pool:
        replicas = Replicas(model, 2, pool)
        parts = [torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[4.0, 4.0], [6.0, 4.0]])]
        replicas.map(lambda copy, part: copy(part), parts)
        with torch.no_grad():
            model.weight.fill_(3.0)
        replicas.spread()
        states = replicas.map(lambda copy, _: {k: v.clone() for k, v in copy.state_dict().items()}, parts)
    assert states[0]["running_mean"].tolist() == [3.0, 2.0]
    for key in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(states[0][key], states[1][key])


def test_each_copy_works_on_one_thread_and_the_setting_comes_back() -> None:
    torch.set_num_threads(2)
    try:
        with single_threads(2) as pool:
            replicas = Replicas(_model(), 2, pool)
            assert replicas.map(lambda *_: torch.get_num_threads(), [0, 1]) == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_an_error_in_a_copy_reaches_the_caller() -> None:
    with single_threads(2) as pool, pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Replicas(_model(), 2, pool).map(_backward, [torch.ones(2, 5), torch.ones(2, 4)])
