"""Entangled watermarks: the order of steps, the making of triggers, and the objective."""

import copy

import pytest
import torch
import torch.nn.functional as F

import models
from utils.data.batches import Batches
from utils.data.sets import Images
from utils.rivals.ewe import (
    LAST_PUSHES,
    PUSHES,
    EntangledObjective,
    entanglement,
    make_triggers,
    observe_features,
    patch_position,
    patch_size,
    phase3_schedule,
    snnl,
    watermark_batches,
)
from utils.training.loop import Step
from utils.watermark.triggers import TriggerSet

# ---- the order of steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, members, w_epochs, ratio, n_w, passes, steps", [
    (50_000, 5000, 6, 4, 78, 30, 11_700), (50_000, 500, 8, 15, 6, 520, 49_920), (49_000, 4900, 6, 4, 76, 30, 11_400)])
def test_step_counts_of_phase_3(n, members, w_epochs, ratio, n_w, passes, steps):
    labels = (torch.arange(n) >= members).long()
    assert watermark_batches(labels, 0, 128, w_epochs) == n_w
    kinds = phase3_schedule(n // 128, n_w, ratio, w_epochs)
    assert len(kinds) == steps and sum(kinds) == passes * n_w
    assert kinds == ([False] * ratio + [True]) * sum(kinds)


def test_schedule_with_a_fractional_ratio():
    kinds = phase3_schedule(10, 10, 1.2, 1)
    before = [len(part) for part in "".join("w" if k else "n" for k in kinds).split("w")]
    assert before == [1] * 5 + [2] + [1] * 4 + [0]
    kinds = phase3_schedule(10, 10, 0.5, 1)
    assert sum(kinds) == 10 and len(kinds) == 15


# ---- triggers -------------------------------------------------------------------------------------------------------


def test_position_of_the_patch():
    gradient = torch.zeros(3, 5, 5)
    gradient[1, 0:3, 2:5] = -1
    assert patch_position(gradient) == (0, 2)
    assert [patch_size(size) for size in (16, 32, 64, 224)] == [2, 3, 6, 21]


def small(name="res18", width=4):
    torch.manual_seed(0)
    return models.build(name, 4, (0.5,) * 3, (0.25,) * 3, width)


def pictures(*shape):
    return torch.rand(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def make(model, source, partners, **change):
    numbers = {"steps": 3, "step_size": 0.01, "threshold": 0.1} | change
    return make_triggers(model, source, partners, label=0, temperatures=torch.ones(3), **numbers)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_triggers_stay_within_pixel_range_and_near_their_source(threshold):
    model, source, partners = small().eval(), pictures(5), pictures(2, 4)
    with torch.no_grad():
        model[1].linear.bias[0] += 100  # everything within reach is class 0
    before = copy.deepcopy(model.state_dict())
    made = make(model, source, partners, threshold=threshold)
    drift = (made - source).abs().flatten(1).amax(1)
    pushes = PUSHES if threshold == 0 else 0
    assert 0 <= made.min() and made.max() <= 1
    assert (drift > 0.005).all() and (drift <= 0.01 * (3 + pushes + LAST_PUSHES) + 1e-5).all()
    assert (drift.max() > 0.2) == (threshold == 0)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_steps_entangle_and_the_last_ones_lead_away_from_the_target_class(monkeypatch):
    model, source, partners = small().eval(), pictures(4), pictures(1, 4)
    features = lambda x: observe_features(model, model, torch.cat([x, partners[0]]))[1]
    mixed = lambda x: entanglement(features(x), torch.arange(8) < 4, torch.ones(3)).sum()
    away = make(model, source, partners, steps=0)
    assert (model(away)[:, 0] < model(source)[:, 0]).all()
    monkeypatch.setattr("utils.rivals.ewe.LAST_PUSHES", 0)
    assert mixed(make(model, source, partners, threshold=1.0)) > mixed(source)


def test_patch_is_one_window_of_the_first_channel():
    source = pictures(5) * 0.9
    made = make(small().eval(), source, pictures(2, 4), step_size=0.0, patch=True)
    changed = (made != source).nonzero()
    assert len(changed) == 5 * 9 and (made[made != source] == 1).all() and (changed[:, 1] == 0).all()
    assert len(changed[:, 2].unique()) == len(changed[:, 3].unique()) == 3


@pytest.mark.parametrize("name, shapes", [
    ("res18", [(2, 32), (2, 32, 4, 4), (2, 16, 8, 8)]), ("res34", [(2, 32), (2, 32, 4, 4), (2, 32, 4, 4)]),
    ("vgg11", [(2, 32), (2, 32, 2, 2), (2, 32, 4, 4)])])
def test_observed_features(name, shapes):
    model, x = small(name).eval(), pictures(2)
    logits, features = observe_features(model, model, x)
    assert [tuple(f.shape) for f in features] == shapes and torch.equal(logits, model(x))
    assert torch.equal(model[1].linear(features[0]), logits)
    if name == "res34":
        assert torch.equal(model[1].layer4[1](features[2]), features[1])
        assert torch.equal(model[1].layer4[2](features[1]).mean((2, 3)), features[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- the objective --------------------------------------------------------------------------------------------------

B, M = 8, 3


def setting(made=True, **change):
    """(model, batches, objective) on 48 images of 4 classes, with 3 triggers."""
    torch.manual_seed(5)
    images = Images(torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8), torch.arange(48) % 4, torch.arange(48))
    batches, model = Batches(images, B, True), small().train()
    pixels, labels = torch.randint(0, 256, (M, 3, 32, 32), dtype=torch.uint8), [0, 0, 0] if made else [1, 2, 3]
    triggers = TriggerSet(pixels, torch.tensor(labels), torch.zeros(M, 0), torch.zeros(M, 0))
    numbers = {"target": 0, "made": made, "patch": False, "epochs": 1, "w_epochs": 1.0, "ratio": 2.0, "factor": 1e3,
               "temperature": 1.0, "temperature_lr": 0.1, "bn_stats": "paper",
               "making": {"steps": 1, "step_size": 0.01, "threshold": 0.1}} | change
    return model, batches, EntangledObjective(model, batches, triggers, **numbers)


def watermark_step(model, batches, objective):
    """Make the triggers; returns the inputs of the first watermark step."""
    generator = torch.Generator().manual_seed(0)
    plan = objective.plan(batches, 1, generator)
    objective.begin(model, None, 1, generator)
    row = next(row for row in zip(*plan) if len(row[3]))
    return *batches.batch(*row[:3]), row[3]


def test_without_watermark_batches_it_is_plain_adam_bit_for_bit():
    """Phase 1 alone is Adam on summed cross-entropy with the usual plan, whatever the factor."""
    model, batches, objective = setting(w_epochs=0, factor=1e9, epochs=2, bn_stats="clean")
    assert objective.more == 0 and objective.rate(1e-3, 1, 2) == 1e-3
    plain = copy.deepcopy(model)
    step = Step(model, objective, batches, lr=1e-3, weight_decay=0.0)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-5, fused=True)
    for epoch in range(2):
        for row in zip(*objective.plan(batches, epoch, torch.Generator().manual_seed(epoch))):
            step(row)
        for order, shift, flip in zip(*batches.plan(torch.Generator().manual_seed(epoch))):
            x, y = batches.batch(order, shift, flip)
            adam.zero_grad()
            F.cross_entropy(plain(x), y, reduction="sum").backward()
            adam.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize("factor", [0.0, 1e3])
@pytest.mark.parametrize("made", [True, False])
def test_gradient_and_temperature_after_a_watermark_batch(factor, made):
    """The gradient is that of CE - factor * SNNL, exactly that of CE where the factor is 0; T descends too."""
    model, batches, objective = setting(made, factor=factor)
    x, y, picks = watermark_step(model, batches, objective)
    assert len(picks) == M and sorted(picks.tolist()) == [0, 1, 2]  # fewer than half a batch: all of them, none twice
    other = copy.deepcopy(model)
    loss, stats = objective(model, x, y, picks)
    loss.backward()

    both = torch.cat([objective.triggers.images[picks] / 255, x[:M]])
    labels = torch.cat([objective.triggers.labels[picks], y[:M]])
    logits, features = observe_features(other, other, both)
    t, w = torch.ones(3, requires_grad=True), torch.arange(2 * M) < M
    mixed = torch.stack([snnl(f, w, 100 / t[i]) for i, f in enumerate(features)])
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
    assert (labels == 0).all() if made else labels[:M].tolist() == (picks + 1).tolist()


def test_clean_images_of_a_watermark_batch_are_not_augmented():
    for made in (True, False):
        model, batches, objective = setting(made)
        plan = list(zip(*objective.plan(batches, 1, torch.Generator().manual_seed(0))))
        assert [len(row[3]) > 0 for row in plan] == objective.is_watermark[0]
        for order, shift, flip, picks in plan:
            if not len(picks):
                continue
            x, y = batches.batch(order, shift, flip)
            raw = batches.padded[order, 4:36, 4:36].permute(0, 3, 1, 2) / 255
            assert torch.equal(x, raw) and len(order.unique()) == B
            assert ((y == 0).all() or not made) and torch.equal(y, batches.labels[order])


@pytest.mark.parametrize("mode", ["paper", "clean"])
def test_watermark_batches_and_running_statistics(mode):
    model, batches, objective = setting(bn_stats=mode)
    x, y, picks = watermark_step(model, batches, objective)
    live, clean = model[1].bn1.running_mean.clone(), objective.statistics.state()
    objective(model, x, y, picks)
    assert torch.equal(model[1].bn1.running_mean, live) == (mode == "clean")
    assert all(torch.equal(t, clean[n]) for n, t in objective.statistics.state().items())
    objective(model, x, y, picks[:0])
    assert not torch.equal(model[1].bn1.running_mean, live)
    assert mode == "clean" or not torch.equal(objective.statistics.state()["1.bn1.running_mean"],
                                              clean["1.bn1.running_mean"])


def test_shared_statistics_pass_a_normal_batch_with_each_watermark_batch():
    model, batches, objective = setting(bn_stats="shared")
    x, y, picks = watermark_step(model, batches, objective)
    assert len(x) == M + B and (y[:M] == 0).all() and len(y[M:].unique()) > 1  # clean ones of the target class first
    other = copy.deepcopy(model)
    loss, _ = objective(model, x, y, picks)
    loss.backward()

    labels = torch.cat([objective.triggers.labels[picks], y])
    logits, features = observe_features(other, other, torch.cat([objective.triggers.images[picks] / 255, x]))
    w = torch.arange(2 * M) < M
    mixed = torch.stack([snnl(f[: 2 * M], w, 100.0) for f in features])
    (F.cross_entropy(logits, labels, reduction="sum") - 1e3 * mixed.sum()).backward()
    for one, two in zip(model.parameters(), other.parameters()):
        assert torch.allclose(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(model[1].bn1.running_mean, other[1].bn1.running_mean)
