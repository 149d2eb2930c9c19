"""Randomised smoothing: noisy gradients, the objective, the triggers, and the certificate."""

import copy
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparing import equal_parameters
from scipy import stats
from small_steps import small
from torch import nn

from utils.data import files
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.rivals import randomized_smoothing as rs
from utils.watermark.triggers import TriggerSet, validation_images


def objective(m=6, **more):
    numbers = {"sigmas": [0.0, 0.5], "draws": 1, "warmup": 0, "batch": 4}
    return rs.SmoothedObjective(torch.rand(m, 3, 32, 32), torch.randint(0, 5, (m,)), **numbers | more)


@pytest.mark.parametrize("sigma, step, levels", [
    (1.0, 0.05, torch.linspace(0, 1, 21).tolist()), (0.0, 0.05, [0]),
    (0.3, 0.1, [0, 0.1, 0.2, 0.3])])  # int(0.3 / 0.1) is 2
def test_noise_levels(sigma, step, levels):
    flags = Namespace(**rs.DEFAULTS | {"rs_sigma": sigma, "rs_sigma_step": step, "amp": "none"})
    triggers = TriggerSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2).long())
    batches = Namespace(steps=98, device="cpu")
    made = rs.objective(flags, None, batches, triggers, data=None, run=None, commit=None)
    assert made.sigmas == pytest.approx(levels)


class HalfSquare(nn.Module):
    """Cross-entropy with class 0 is theta^2 / 2."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        half = self.theta**2 / 2
        return torch.cat([-half, torch.log(-torch.expm1(-half))])[None]


def set_noise(monkeypatch, noise):
    draws = iter(noise)
    monkeypatch.setattr("utils.rivals.randomized_smoothing.gaussian_noise",
                        lambda parameters, _: [torch.full_like(parameters[0], next(draws))])


def test_robust_passes_on_one_parameter_by_hand(monkeypatch):
    set_noise(monkeypatch, [0.3, -1.0, 2.0])
    model, trace = HalfSquare(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer.register_step_post_hook(lambda *_: trace.append(float(model.theta.detach())))
    rival = rs.SmoothedObjective(torch.zeros(1), torch.zeros(1).long(), sigmas=[0, 0.5, 1], draws=1, warmup=0, batch=1)
    rival.begin(model, optimizer, 1, torch.Generator())
    assert trace == pytest.approx([0.983333, 0.975278, 0.925690], abs=1e-6)


def test_noisy_gradient_averages_its_draws(monkeypatch):
    noise = [0.5, -0.25, 1.0]
    set_noise(monkeypatch, noise)
    (gradient,) = rs.noisy_gradient(HalfSquare(), torch.zeros(1), torch.zeros(1, dtype=torch.long), 2.0, 3, None)
    assert float(gradient) == pytest.approx(np.mean([1 + 2 * n for n in noise]))


def test_without_noise_a_robust_pass_is_a_plain_step_and_leaves_the_parameters_clean():
    model, rival = small(), objective(4, sigmas=[0.0])
    plain = copy.deepcopy(model)
    one, two = (rival.optimizer(m.parameters(), 0.1, 1e-4, False) for m in (model, plain))
    for epoch in (1, 2):
        rival.begin(model, one, epoch, torch.Generator().manual_seed(epoch))
        order = torch.randperm(4, generator=torch.Generator().manual_seed(epoch))
        two.zero_grad()
        F.cross_entropy(plain(rival.x_q[order]), rival.y_q[order]).backward()
        two.step()
    assert equal_parameters(model, plain) and not equal_parameters(model, small())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers()))
    rs.noisy_gradient(model, rival.x_q, rival.y_q, 0.5, 1, torch.Generator().manual_seed(0))
    assert equal_parameters(model, plain)  # the noise is taken out again, bit for bit


def test_learning_rates_are_those_of_the_authors():
    rates = [objective().rate(0.05, epoch, 100) for epoch in range(100)]
    assert [e for e in range(1, 100) if rates[e] != rates[e - 1]] == [31, 61, 91]
    assert rates[0] == 0.05 and rates[99] == pytest.approx(5e-5)
    scaled = [objective().rate(1.0, epoch, 14) for epoch in range(14)]
    assert [e for e in range(1, 14) if scaled[e] != scaled[e - 1]] == [5, 9, 13]


@pytest.mark.parametrize("freeze", [False, True])
def test_the_noise_enters_the_running_statistics_unless_they_are_frozen(freeze):
    model, rival = small(), objective(freeze=freeze)
    before = copy.deepcopy(model)
    rival.begin(model, rival.optimizer(model.parameters(), 0.1, 0.0, False), 1, torch.Generator().manual_seed(0))
    assert not equal_parameters(model, before)
    same = [torch.equal(a, b) for a, b in zip(model[1].layers[1].buffers(), before[1].layers[1].buffers())]
    assert same == [freeze] * 3
    assert all(layer.track_running_stats for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def test_triggers_are_trained_on_but_not_augmented():
    data = load_data("digits", train_size=30)
    triggers = rs.draw_triggers(Namespace(num_query=6, rs_label=2, seed=0), data)
    batches = Batches(rs.append_triggers(data.train, triggers), 6, True)
    rival = rs.SmoothedObjective(*triggers.on("cpu"), sigmas=[0.0], draws=1, warmup=0, batch=4)
    images, seen, moved = torch.cat([data.train.images, triggers.images]) / 255, {}, {}
    for row in zip(*rival.plan(batches, 0, torch.Generator().manual_seed(0))):
        for i, image, label in zip(row[0].tolist(), *batches.batch(*row[:3])):
            seen[i], moved[i] = int(label), not torch.equal(image, images[i])
    assert [(seen[i], moved[i]) for i in range(30, 36)] == [(2, False)] * 6 and sum(moved.values()) > 20


def test_triggers_carry_one_word_and_one_label(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "IN_MEMORY", 1000)
    data = load_data("digits")
    draw = lambda seed: rs.draw_triggers(Namespace(num_query=20, rs_label=4, seed=seed), data)
    triggers = draw(3)
    held_out = data.held_out.indices.tolist()
    originals = data.held_out.pick([held_out.index(i) for i in triggers.sources[:, 0].tolist()])
    assert triggers.labels.tolist() == [4] * 20 and 4 not in triggers.true_labels
    assert torch.equal(originals.labels, triggers.true_labels[:, 0])
    left = validation_images(data, triggers).indices.tolist()
    assert sorted(left + triggers.sources[:, 0].tolist()) == sorted(held_out)
    pattern = (triggers.images != originals.images).any(1).any(0)  # the same place in all images
    assert 20 < int(pattern.sum()) < 400 and pattern.nonzero()[:, 0].max() < 16
    assert (triggers.images == 155).all(1).any(0)[pattern].any()  # grey, a few full pixels at least
    np.save(tmp_path / "held_out.npy", data.held_out.images.numpy())
    stored = files.StoredImages(tmp_path / "held_out.npy")  # as of a large data set
    data.held_out = data.held_out._replace(images=stored)
    again, other = draw(3), draw(4)
    assert torch.equal(again.images, triggers.images) and not torch.equal(other.images, triggers.images)


@pytest.mark.parametrize("n", [1000, 100])
def test_order_statistic(n):
    """Among accuracies 0, 1, 2, ... the bound is its own position, k - 1; k: the 1 % quantile of Bin(n, Phi(-eps))."""
    k = {eps: int(stats.binom.ppf(0.01, n, stats.norm.cdf(-eps))) for eps in (0.2, 0.6, 1.0, 1.6, 1.8, 2.5, 3)}
    assert rs.certify(np.arange(n), k, 1.0, 0.99) == {eps: k[eps] - 1 if k[eps] else None for eps in k}
    assert rs.certify(np.arange(n), [0.5], 0.5, 0.99)[0.5] == k[1.0] - 1
    assert rs.certify(np.arange(n), [1e5], 1.0, 0.99) == {1e5: None}


def test_smoothed_accuracy_is_of_noisy_copies():
    model = small().eval()
    before = copy.deepcopy(model)
    images, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 5, (6,))
    found, _ = rs.smoothed_accuracies(model, TriggerSet(images, labels), 1e-9, 3, 0)
    assert equal_parameters(model, before)
    assert found.tolist() == [int((model(images / 255).argmax(1) == labels).sum()) / 6] * 3
    found, most = rs.smoothed_accuracies(model, TriggerSet(images, labels), 1.0, 20, 0)
    assert found.tolist() == sorted(found.tolist())
    assert 0.8 < most <= 1  # an untrained network is nearly constant under such noise: the pitfall that this shows
