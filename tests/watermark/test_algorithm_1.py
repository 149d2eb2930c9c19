"""Training with the watermark objective equals Algorithm 1, written out step by step."""

import itertools
from functools import partial

import pytest
import torch
from algorithm_1 import BATCH, CLASSES, DECAY, EPS, ETA, LR, TRIGGERS, WEIGHT, K, M, o_crop, oracle
from torch import nn

from utils.data.batches import Batches
from utils.data.sets import Images
from utils.runs.folder import RunFolder
from utils.training.loop import Objective, fit
from utils.watermark.batchnorm import BN_MODES
from utils.watermark.margin import WatermarkObjective, ascend

pytestmark = pytest.mark.usefixtures("quick")
STEPS = 6
ERM = [("joint", "paper", 0), ("sum", "paper", 0)]  # without an ascent


class Shift(nn.Module):
    def forward(self, x):
        return x - 0.5


def tiny():
    """Two convolutions with BatchNorm, which is not a new layer's, and a linear layer, in fp64."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES),
    )
    for layer in (network[1], network[4]):
        for tensor, (low, high) in ((layer.weight, (0.5, 1.5)), (layer.bias, (-0.5, 0.5)),
                                    (layer.running_mean, (-0.2, 0.2)), (layer.running_var, (0.5, 1.5))):
            nn.init.uniform_(tensor, low, high)
    return nn.Sequential(Shift(), network).double()


class Spy(Objective):
    """An objective that remembers what it planned, (order, shift, flip, triggers) of each epoch, and its losses."""

    def __init__(self, objective):
        self.objective, self.losses, self.plans, self.statistics = objective, [], [], objective.statistics

    def plan(self, batches, epoch, generator):
        self.plans.append(self.objective.plan(batches, epoch, generator))
        return self.plans[-1]

    def __call__(self, *inputs):
        loss, stats = self.objective(*inputs)
        self.losses.append(loss.item())
        return loss, stats


def data(steps):
    """(training images for so many steps, trigger images, their labels)."""
    g = torch.Generator().manual_seed(11)
    n = steps * BATCH + 3  # the last partial batch is dropped
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (n,), generator=g)
    triggers = torch.randint(0, 256, (TRIGGERS, 3, 32, 32), generator=g).clamp(20, 235)
    triggers = torch.where(triggers < 60, 0, torch.where(triggers > 200, 255, triggers))  # many at 0 or 255
    assigned = torch.randint(0, CLASSES, (TRIGGERS,), generator=g)
    return Images(images, labels, torch.arange(n)), triggers.double() / 255, assigned


def train(folder, steps, reduction="joint", bn_stats="paper", ascent_steps=K, epochs=1):
    """Train the tiny model with `fit`; returns (run, model, spy, the inputs of each step)."""
    model, run = tiny(), RunFolder(folder, {}, "another -msg").open(torch.device("cpu"), overwrite=False)
    images, x_q, y_q = data(steps)
    ascent = partial(ascend, steps=ascent_steps, step_size=ETA, eps=EPS) if ascent_steps else None
    spy = Spy(WatermarkObjective(model, x_q, y_q, weight=WEIGHT, reduction=reduction, batch=M, bn_stats=bn_stats,
                                 ascent=ascent))
    snapshot = lambda model, epoch, row: {"model": {"state_dict": model.state_dict()}}
    fit(run, model, spy, Batches(images, BATCH, True, dtype=torch.float64), lambda m: {"val_accuracy": 0.5}, snapshot,
        epochs=epochs, lr=LR, weight_decay=DECAY, seed=5)
    steps_data = []
    for order, shift, flip, picks in (step for plan in spy.plans for step in zip(*plan)):
        x = torch.stack([o_crop(images.images[i].double() / 255, int(s[0]), int(s[1]), bool(f))
                         for i, s, f in zip(order, shift, flip)])
        steps_data.append((x, images.labels[order], x_q[picks], y_q[picks]))
    return run, model, spy, steps_data


def start():
    """The initial parameters of `tiny`, and the running averages of its two BatchNorm layers."""
    model = tiny()
    w = {name: p.detach().clone() for name, p in model.named_parameters()}
    return w, [[layer.running_mean.clone(), layer.running_var.clone()] for layer in (model[1][1], model[1][4])]


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reduction, bn_stats, ascent_steps", [
    *itertools.product(("joint", "sum"), BN_MODES, (K,)), *ERM])
def test_trainer_equals_algorithm_1(reduction, bn_stats, ascent_steps, tmp_path):
    run, model, spy, steps_data = train(tmp_path, STEPS, reduction, bn_stats, ascent_steps)
    w, running = start()
    losses, gradients, live, clean = oracle(w, running, steps_data, reduction=reduction, bn_stats=bn_stats,
                                            ascent_steps=ascent_steps)
    assert spy.losses == pytest.approx(losses, abs=1e-10, rel=0) and len(losses) == STEPS
    assert run.rows()[0]["loss"] == pytest.approx(sum(losses) / STEPS, abs=1e-10)
    for name, p in model.named_parameters():
        assert close(p.grad, gradients[name]), name
        assert close(p, w[name]), name
        assert not torch.equal(p, start()[0][name]), f"{name} never moved"
    keeps_clean = bn_stats in ("paper", "eval")
    checkpoints = {"latest": live, "latest_clean": clean} if keeps_clean else {"latest": live}
    for checkpoint, averages in checkpoints.items():
        saved = run.load(checkpoint)["model"]["state_dict"]
        for layer, (mean, var) in zip(("1.1", "1.4"), averages):
            assert close(saved[f"{layer}.running_mean"], mean) and close(saved[f"{layer}.running_var"], var)
    assert [run.load(name) is not None for name in ("nat_best_clean", "latest_clean")] == [keeps_clean] * 2
    resumed = run.load("latest")["training"]["clean"]  # from which a continued run goes on
    assert resumed.keys() == ({n for n in saved if "running" in n} if keeps_clean else set())
    assert all(torch.equal(resumed[name], saved[name]) for name in resumed)


def test_learning_rate_falls_at_half_and_three_quarters(tmp_path):
    run, model, _, steps_data = train(tmp_path, 2, epochs=4)
    w, running = start()
    for epoch, rate in enumerate((0.1, 0.1, 0.01, 0.001)):
        *_, live, _ = oracle(w, running, steps_data[2 * epoch : 2 * epoch + 2], reduction="joint", bn_stats="paper",
                             ascent_steps=K, rate=rate)
        running = live
        assert run.rows()[epoch]["lr"] == pytest.approx(rate, rel=1e-12)
    assert all(close(p, w[name]) for name, p in model.named_parameters())
