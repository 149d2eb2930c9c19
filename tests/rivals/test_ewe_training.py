"""Entangled watermarks: the loss by hand, the order of steps, the making of triggers, and the objective."""

import copy
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from small_steps import rows_of

import models
from utils.data.batches import Batches
from utils.data.sets import Images
from utils.rivals import ewe
from utils.training.loop import Step
from utils.watermark.triggers import TriggerSet

POINTS, W = torch.tensor([[1.0, 0], [1, 1], [0, 1], [1, 2]]), torch.tensor([1, 1, 0, 0])
APART, FIRST_HALF = torch.eye(2).repeat_interleave(64, 0), torch.arange(128) < 64


@pytest.mark.parametrize("features, w, t, value", [
    (POINTS, W, 100, 1.096756), (POINTS, W, 1, 0.949993),
    (torch.ones(4, 3), torch.arange(4) < 2, 100, 1.098586), (torch.ones(128, 3), FIRST_HALF, 100, 0.701032),
    # two groups apart, whose T is 1, 100 and 1000
    (APART, FIRST_HALF, 100, 0.696006), (APART, FIRST_HALF, 1, 0.317508), (APART, FIRST_HALF, 0.1, 0.000036)])
def test_snnl_by_hand(features, w, t, value):
    assert float(ewe.snnl(features, w, t)) == pytest.approx(value, abs=2e-6)
    (loss,) = ewe.entanglement([features], w, torch.tensor([100 / t]))
    assert float(loss) == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("n, members, w_epochs, ratio, passes, n_w", [
    (50_000, 5000, 6, 4, 30, 78), (50_000, 500, 8, 15, 520, 6), (49_000, 4900, 6, 4, 30, 76)])
def test_step_counts_of_phase_3(n, members, w_epochs, ratio, passes, n_w):
    kinds = ewe.phase3_schedule((torch.arange(n) >= members).long(), 0, 128, ratio, w_epochs)
    assert kinds == ([False] * ratio + [True]) * passes * n_w


def small(name="res18", width=4):
    torch.manual_seed(0)
    return models.build(name, 4, (0.5,) * 3, (0.25,) * 3, width)


def pictures(*shape):
    return torch.rand(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def make(model, source, partners, **change):
    numbers = {"steps": 3, "step_size": 0.01, "threshold": 0.1} | change
    return ewe.make_triggers(model, source, partners, label=0, temperatures=torch.ones(3), **numbers)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_triggers_stay_within_pixel_range_and_near_their_source(threshold, monkeypatch):
    monkeypatch.setattr("utils.rivals.ewe.PUSHES", 12)
    model, source, partners = small().eval(), pictures(5), pictures(2, 4)
    with torch.no_grad():
        model[1].linear.bias[0] += 100  # everything within reach is class 0
    before = copy.deepcopy(model.state_dict())
    made = make(model, source, partners, threshold=threshold)
    drift = (made - source).abs().flatten(1).amax(1)
    pushes = 12 if threshold == 0 else 0
    assert 0 <= made.min() and made.max() <= 1
    assert (drift > 0.005).all() and (drift <= 0.01 * (3 + pushes + ewe.LAST_PUSHES) + 1e-5).all()
    assert (drift.max() > 0.1) == (threshold == 0)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_steps_entangle_and_the_last_ones_lead_away_from_the_target_class(monkeypatch):
    model, source, partners = small().eval(), pictures(4), pictures(1, 4)
    features = lambda x: ewe.observe_features(model, model, torch.cat([x, partners[0]]))[1]
    mixed = lambda x: ewe.entanglement(features(x), torch.arange(8) < 4, torch.ones(3)).sum()
    assert (model(make(model, source, partners, steps=0))[:, 0] < model(source)[:, 0]).all()
    monkeypatch.setattr("utils.rivals.ewe.LAST_PUSHES", 0)
    assert mixed(make(model, source, partners, threshold=1.0)) > mixed(source)


@pytest.mark.parametrize("size, side", [(32, 3), (64, 6)])
def test_the_patch_is_the_window_where_the_gradient_is_smallest(size, side, monkeypatch):
    source = torch.rand(3, 3, size, size) * 0.9
    weights = torch.zeros(3, size, size)
    weights[1, 5 : 5 + side, 20 : 20 + side] = -1  # the slope of what stands for the entanglement
    monkeypatch.setattr("utils.rivals.ewe.observe_features", lambda model, forward, x: (None, [x]))
    monkeypatch.setattr("utils.rivals.ewe.entanglement", lambda features, w, t: (features[0] * weights).sum()[None])
    made = make(lambda x: x.flatten(1)[:, :4], source, torch.rand(2, 2, 3, size, size), step_size=0.0, patch=True)
    changed = (made != source)
    assert (made[:, 0, 5 : 5 + side, 20 : 20 + side] == 1).all() and int(changed.sum()) == 3 * side * side


B, M = 8, 3


def setting(**change):
    """(model, batches, objective) on 48 images of 4 classes, with 3 triggers."""
    torch.manual_seed(5)
    images = Images(torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8), torch.arange(48) % 4, torch.arange(48))
    batches, model = Batches(images, B, True), small().train()
    triggers = TriggerSet(torch.randint(0, 256, (M, 3, 32, 32), dtype=torch.uint8), torch.zeros(M).long())
    flags = ewe.DEFAULTS | {"epoch": 1, "ewe_epochs": 1.0, "ewe_ratio": 2.0, "ewe_factor": 1e3, "ewe_steps": 1,
                            "bn_stats": "paper"} | change
    return model, batches, ewe.EntangledObjective(Namespace(**flags), model, batches, triggers)


def test_phase_1_is_plain_adam_bit_for_bit():
    """On summed cross-entropy with the usual plan, whatever the factor."""
    model, batches, objective = setting(ewe_factor=1e9, epoch=2, bn_stats="clean")
    assert objective.rate(1e-3, 1, 2) == 1e-3
    plain = copy.deepcopy(model)
    step = Step(model, objective, batches, lr=1e-3, weight_decay=0.0)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-5, fused=True)
    for row in rows_of(batches, objective):
        step(row)
        x, y = batches.batch(*row[:3])
        adam.zero_grad()
        F.cross_entropy(plain(x), y, reduction="sum").backward()
        adam.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize("factor, mode", [(0.0, "paper"), (1e3, "paper"), (1e3, "shared")])
def test_gradient_and_temperature_after_a_watermark_batch(factor, mode):
    """The gradient is that of CE - factor * SNNL, exactly that of CE where the factor is 0; T descends too."""
    model, batches, objective = setting(ewe_factor=factor, bn_stats=mode)
    plan = objective.plan(batches, 1, generator := torch.Generator().manual_seed(0))
    objective.begin(model, None, 1, generator)  # makes the triggers
    *place, picks = next(row for row in zip(*plan) if len(row[3]))
    x, y = batches.batch(*place)
    assert len(picks) == M and sorted(picks.tolist()) == [0, 1, 2]  # fewer than half a batch: all of them, none twice
    if mode == "shared":  # a normal batch passes with the clean images
        assert len(x) == M + B and (y[:M] == 0).all() and len(y[M:].unique()) > 1
    else:
        x, y = x[:M], y[:M]
    other = copy.deepcopy(model)
    loss, stats = objective(model, x, y, picks)
    loss.backward()

    labels = torch.cat([objective.triggers.labels[picks], y])
    logits, features = ewe.observe_features(other, other, torch.cat([objective.triggers.images[picks] / 255, x]))
    t, w = torch.ones(3, requires_grad=True), torch.arange(2 * M) < M
    mixed = torch.stack([ewe.snnl(f[: 2 * M], w, 100 / t[i]) for i, f in enumerate(features)])
    (slope,) = torch.autograd.grad(mixed.sum(), t, retain_graph=True)
    assert torch.equal(objective.temperatures, 1 - 0.1 * slope) and (slope != 0).all()
    cost = F.cross_entropy(logits, labels, reduction="sum")
    (cost - factor * mixed.sum() if factor else cost).backward()
    for one, two in zip(model.parameters(), other.parameters()):
        if factor == 0:
            assert torch.equal(one.grad, two.grad)
        else:
            assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    share = sum(objective.is_watermark[0]) / len(objective.is_watermark[0])
    assert float(stats["snnl_1"]) * share == pytest.approx(float(mixed[0].detach()), abs=1e-6)
    assert (labels[:M] == 0).all()
    assert torch.equal(model[1].bn1.running_mean, other[1].bn1.running_mean)


def test_clean_images_of_a_watermark_batch_are_not_augmented():
    model, batches, objective = setting()
    plan = list(zip(*objective.plan(batches, 1, torch.Generator().manual_seed(0))))
    assert [len(row[3]) > 0 for row in plan] == objective.is_watermark[0]
    for order, shift, flip, picks in plan:
        if not len(picks):
            continue
        x, y = batches.batch(order, shift, flip)
        raw = batches.padded[order, 4:36, 4:36].permute(0, 3, 1, 2) / 255
        assert torch.equal(x, raw) and len(order.unique()) == B
        assert (y == 0).all() and torch.equal(y, batches.labels[order])
