"""Entangled watermarks: the soft nearest neighbour loss, against numbers computed by hand."""


import pytest
import torch

from utils.rivals.ewe import LOWEST_TEMPERATURE, entanglement, snnl, temperature_step

POINTS, W = torch.tensor([[1.0, 0], [1, 1], [0, 1], [1, 2]]), torch.tensor([1, 1, 0, 0])
APART, FIRST_HALF = torch.eye(2).repeat_interleave(64, 0), torch.arange(128) < 64


@pytest.mark.parametrize("t, value", [(100, 1.096756), (1, 0.949993)])
def test_snnl_of_four_points(t, value):
    assert float(snnl(POINTS, W, t)) == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("n, value", [(4, 1.098586), (128, 0.701032)])
def test_snnl_of_identical_points_and_of_features_that_are_zero_after_relu(n, value):
    w = torch.arange(n) < n // 2
    assert float(snnl(torch.ones(n, 3), w, 100)) == pytest.approx(value, abs=2e-6)
    dead = (-torch.rand(n, 3)).requires_grad_()
    loss = snnl(dead, w, 100)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, abs=2e-6) and dead.grad.isfinite().all()


@pytest.mark.parametrize("temperature, value", [(1, 0.696006), (100, 0.317508), (1000, 0.000036)])
def test_snnl_of_two_separate_groups(temperature, value):
    (loss,) = entanglement([APART], FIRST_HALF, torch.tensor([float(temperature)]))
    assert float(loss) == pytest.approx(value, rel=0, abs=1e-6)


def test_temperature_step_descends_the_loss():
    for features, w, slope in ((APART, FIRST_HALF, -0.005014), (POINTS, W, -0.001826)):
        t = torch.ones(1, requires_grad=True)
        (gradient,) = torch.autograd.grad(entanglement([features], w, t).sum(), t)
        assert float(gradient) == pytest.approx(slope, abs=2e-6)
        if w is FIRST_HALF:
            assert float(temperature_step(t.detach(), gradient, 0.1)) == pytest.approx(1.000501, abs=1e-6)
    assert temperature_step(torch.ones(1), torch.tensor([1e9]), 0.1) == torch.tensor([LOWEST_TEMPERATURE])
    values = [float(snnl(APART.double(), FIRST_HALF, 100 / t)) for t in (0.01, 1, 10, 100, 1000)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]


def test_snnl_gradient_equals_finite_differences():
    x = torch.rand(6, 4, dtype=torch.double).add(0.1).requires_grad_()
    t = torch.tensor(0.7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: snnl(x, torch.arange(6) < 3, t), (x, t))
