"""Randomised smoothing: noisy gradients, the objective, and the triggers."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparing import equal_parameters
from small_steps import small
from torch import nn

from utils.data.batches import Batches
from utils.data.sets import Data, Images, load_data
from utils.rivals.randomized_smoothing import (
    SmoothedObjective,
    append_triggers,
    draw_rs_triggers,
    noise_levels,
    noisy_gradient,
    robust_pass,
    short_epoch_warning,
)

# ---- noisy gradients ------------------------------------------------------------------------------------------------


def triggers(m=6):
    return torch.rand(m, 3, 32, 32), torch.randint(0, 5, (m,))


def test_noise_levels():
    assert len(noise_levels(1.0, 0.05)) == 21
    assert noise_levels(1.0, 0.05)[0] == 0 and noise_levels(1.0, 0.05)[-1] == pytest.approx(1)
    assert noise_levels(0.3, 0.1) == pytest.approx([0, 0.1, 0.2, 0.3])  # int(0.3 / 0.1) is 2
    assert noise_levels(0.0, 0.05) == [0]


class HalfSquare(nn.Module):
    """Cross-entropy with class 0 is theta^2 / 2."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        half = self.theta**2 / 2
        return torch.cat([-half, torch.log(-torch.expm1(-half))])[None]


def test_robust_passes_on_one_parameter_by_hand(monkeypatch):
    draws = iter([0.3, -1.0, 2.0])
    monkeypatch.setattr("utils.rivals.randomized_smoothing.gaussian_noise",
                        lambda parameters, _: [torch.full_like(parameters[0], next(draws))])
    model, trace = HalfSquare(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    robust_pass(model, optimizer, torch.zeros(1), torch.zeros(1, dtype=torch.long), [0, 0.5, 1], 1, None,
                after=lambda: trace.append(float(model.theta.detach())))
    assert trace == pytest.approx([0.983333, 0.975278, 0.925690], abs=1e-6)


def test_noisy_gradient_averages_its_draws(monkeypatch):
    noise = [0.5, -0.25, 1.0]
    draws = iter(noise)
    monkeypatch.setattr("utils.rivals.randomized_smoothing.gaussian_noise",
                        lambda parameters, _: [torch.full_like(parameters[0], next(draws))])
    (gradient,) = noisy_gradient(HalfSquare(), torch.zeros(1), torch.zeros(1, dtype=torch.long), 2.0, 3, None)
    assert float(gradient) == pytest.approx(np.mean([1 + 2 * n for n in noise]))


def test_noise_enters_every_parameter_and_is_taken_out_again():
    model, (x, y) = small(), triggers()
    before, seen = copy.deepcopy(model), {}
    for name, module in model.named_modules():
        own = [f"{name}.{k}" for k, _ in module.named_parameters(recurse=False)]
        if own:
            module.register_forward_pre_hook(lambda m, _, own=own: seen.update(
                {k: getattr(m, k.rsplit(".", 1)[1]).detach().clone() for k in own}))
    generator = torch.Generator().manual_seed(0)
    gradient = noisy_gradient(model, x, y, 0.5, 1, generator)
    clean = dict(before.named_parameters())
    assert equal_parameters(model, before) and all(p.grad is None for p in model.parameters())
    assert set(seen) == set(clean) and "1.layers.1.bias" in seen
    noise = torch.cat([(seen[name] - clean[name].detach()).flatten() for name in clean]) / 0.5
    assert not (noise == 0).any() and abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert [g.shape for g in gradient] == [p.shape for p in model.parameters()]
    # the running statistics follow the noisy passes, as in the official code, and carry no noise themselves
    assert not torch.equal(model[1].layers[1].running_mean, before[1].layers[1].running_mean)
    assert (model[1].layers[1].running_var > 0).all()


def test_without_noise_a_robust_pass_is_a_plain_step():
    model, (x, y) = small(), triggers()
    plain = copy.deepcopy(model)
    one, two = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for m in (model, plain))
    for _ in range(2):
        robust_pass(model, one, x, y, [0.0], 1, torch.Generator().manual_seed(0))
        two.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        two.step()
    assert equal_parameters(model, plain) and not equal_parameters(model, small())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers()))


# ---- the objective --------------------------------------------------------------------------------------------------


def objective(m=6, **more):
    numbers = {"sigmas": [0.0, 0.5], "draws": 1, "warmup": 0, "batch": 4}
    return SmoothedObjective(*triggers(m), **numbers | more)


def test_learning_rates_are_those_of_the_authors():
    rates = [objective().rate(0.05, epoch, 100) for epoch in range(100)]
    assert [e for e in range(1, 100) if rates[e] != rates[e - 1]] == [31, 61, 91]
    assert rates[0] == 0.05 and rates[99] == pytest.approx(5e-5)
    scaled = [objective().rate(1.0, epoch, 14) for epoch in range(14)]
    assert [e for e in range(1, 14) if scaled[e] != scaled[e - 1]] == [5, 9, 13]


@pytest.mark.parametrize("m, batch, picked", [(6, 4, [4]), (8, 4, [4, 4]), (3, 4, [3])])
def test_a_robust_pass_takes_whole_random_batches(monkeypatch, m, batch, picked):
    sizes, rows = [], set()
    monkeypatch.setattr("utils.rivals.randomized_smoothing.robust_pass", lambda model, optimizer, x, y, *_: (
        sizes.append(len(y)), rows.add(tuple(y.tolist()))))
    rival = objective(m, batch=batch, warmup=5)
    rival.y_q = torch.arange(m)
    for epoch in range(12):
        rival.begin(None, None, epoch, torch.Generator().manual_seed(epoch))
        assert bool(sizes) == (epoch > 5)  # as officially, a warm-up of 5 lasts until index 5
    assert sizes == picked * 6
    assert len({frozenset(row) for row in rows}) > 1 or m <= batch


@pytest.mark.parametrize("freeze", [False, True])
def test_the_noise_enters_the_running_statistics_unless_they_are_frozen(freeze):
    model, rival = small(), objective(freeze=freeze)
    before = copy.deepcopy(model)
    rival.begin(model, rival.optimizer(model.parameters(), 0.1, 0.0, False), 1, torch.Generator().manual_seed(0))
    assert not equal_parameters(model, before)
    same = [torch.equal(a, b) for a, b in zip(model[1].layers[1].buffers(), before[1].layers[1].buffers())]
    assert same == [freeze] * 3
    assert all(layer.track_running_stats for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def test_epochs_too_short_to_wash_out_the_noise_give_a_warning():
    assert short_epoch_warning(98, False) is None and short_epoch_warning(3, True) is None
    assert "--rs-freeze-bn" in short_epoch_warning(3, False)


def test_triggers_are_trained_on_but_not_augmented():
    images = Images(torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8), torch.zeros(30).long(), torch.arange(30))
    held_out = Images(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), torch.ones(20).long(),
                      torch.arange(20))
    data = Data("x", images, held_out, held_out, ["a", "b", "c"], (), ())
    triggers, _ = draw_rs_triggers(data, 6, 2, "text", 0)
    batches = Batches(append_triggers(images, triggers), 6, True)
    rival = SmoothedObjective(triggers.images / 255, triggers.labels, sigmas=[0.0], draws=1, warmup=0, batch=4)
    seen, moved = {}, 0
    for row in zip(*rival.plan(batches, 0, torch.Generator().manual_seed(0))):
        x, y = batches.batch(*row[:3])
        for i, image, label in zip(row[0].tolist(), x, y.tolist()):
            if i >= 30:
                seen[i - 30] = label
                assert torch.equal(image, triggers.images[i - 30] / 255)
            else:
                moved += not torch.equal(image, images.images[i] / 255)
    assert seen == dict.fromkeys(range(6), 2) and moved > 20


# ---- triggers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "noise"])
def test_triggers_carry_one_pattern_and_one_label(kind):
    data = load_data("digits")
    triggers, left = draw_rs_triggers(data, 20, 4, kind, seed=3)
    assert triggers.labels.tolist() == [4] * 20 and 4 not in triggers.true_labels
    position = {int(i): p for p, i in enumerate(data.held_out.indices)}
    places = [position[int(i)] for i in triggers.sources[:, 0]]
    originals = data.held_out.images[places]
    assert torch.equal(data.held_out.labels[places], triggers.true_labels[:, 0])
    assert sorted(left.indices.tolist() + triggers.sources[:, 0].tolist()) == sorted(data.held_out.indices.tolist())
    changed = triggers.images != originals
    if kind == "text":
        pattern = changed.any(1).any(0)  # the same place in all images
        rows, columns = pattern.nonzero().T
        assert 20 < int(pattern.sum()) < 400 and rows.max() < 16
        assert (triggers.images == 155).all(1).any(0)[pattern].any()  # grey, a few full pixels at least
        assert triggers.images.unique(dim=0).shape[0] == 20
    else:
        noise = (triggers.images.float() - originals.float()) / 255
        inside = (triggers.images > 0) & (triggers.images < 255)
        for i in range(1, 20):  # where neither is clipped, the same tensor was added
            both = inside[0] & inside[i]
            assert (noise[0] - noise[i])[both].abs().max() <= 1.01 / 255
    again, _ = draw_rs_triggers(data, 20, 4, kind, seed=3)
    other, _ = draw_rs_triggers(data, 20, 4, kind, seed=4)
    assert torch.equal(again.images, triggers.images) and not torch.equal(other.images, triggers.images)
