"""The trainer against a slow, literal transcription of Algorithm 1, written from reproduction.md alone.

The oracle below shares no code with utils/ or with torch.nn: batch normalisation, its running averages,
cross-entropy, the ascent, both projections, the weighted sum and SGD are spelled out. It runs in float64.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.data.batches import Batches
from utils.data.images import Images
from utils.training.loop import fit
from utils.training.objective import Objective, PlainObjective
from utils.training.settings import TrainingSettings
from utils.watermark.ascent import ascend
from utils.watermark.objective import WatermarkObjective, effective_weight
from utils.watermark.running_statistics import RunningStatistics

CLASSES, BATCH, M, TRIGGERS, K = 5, 8, 6, 9, 3
LR, DECAY, ETA, EPS = 0.1, 1e-4, 0.02, 0.05  # eps < K * eta, so that the projection on the ball does something
WEIGHT = 0.3

# ---- the oracle ---------------------------------------------------------------------------------------------


def o_cross_entropy(logits, y):
    """Per-sample losses, one by one."""
    each = []
    for row, label in zip(logits, y):
        top = row.max().detach()
        each.append(top + torch.log(torch.exp(row - top).sum()) - row[label])
    return torch.stack(each)


def o_norm(x, weight, bias, running, use_running):
    """Batch normalisation, channel by channel; returns the output and this batch's own statistics."""
    out, means, variances = [], [], []
    n = x.shape[0] * x.shape[2] * x.shape[3]
    for c in range(x.shape[1]):
        values = x[:, c]
        mean = values.sum() / n
        var = ((values - mean) ** 2).sum() / n
        means.append(mean.detach())
        variances.append(var.detach() * n / (n - 1))
        if use_running:
            mean, var = running[0][c], running[1][c]
        out.append((values - mean) / torch.sqrt(var + 1e-5) * weight[c] + bias[c])
    return torch.stack(out, dim=1), torch.stack(means), torch.stack(variances)


def o_forward(w, x, running=None, use_running=False):
    """The tiny model by hand; the batch's statistics enter every set of averages in the list `running`."""
    first = running[0] if running else None
    h = F.conv2d(x - 0.5, w["1.0.weight"], padding=1, stride=2)
    h, *one = o_norm(h, w["1.1.weight"], w["1.1.bias"], first and first[0], use_running)
    h = torch.where(h > 0, h, torch.zeros_like(h))
    h = F.conv2d(h, w["1.3.weight"], padding=1, stride=2)
    h, *two = o_norm(h, w["1.4.weight"], w["1.4.bias"], first and first[1], use_running)
    h = torch.where(h > 0, h, torch.zeros_like(h)).mean(dim=(2, 3))
    if not use_running:
        for averages in running or []:
            for layer, (mean, var) in zip(averages, (one, two)):
                layer[0] = 0.9 * layer[0] + 0.1 * mean
                layer[1] = 0.9 * layer[1] + 0.1 * var
    return h @ w["1.8.weight"].T + w["1.8.bias"]


def o_ascent(w, x, y, steps, running, use_running):
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        loss = o_cross_entropy(o_forward(w, x + delta, running, use_running), y).sum() / len(y)
        gradient = torch.autograd.grad(loss, [delta, *w.values()])[0]
        moved = (delta + ETA * torch.sign(gradient)).detach()
        for i in range(len(x)):  # first the ball, then the cube
            ball = torch.clamp(moved[i], -EPS, EPS)
            moved[i] = torch.clamp(x[i] + ball, 0, 1) - x[i]
        delta = moved
    return (x + delta).detach()


def o_crop(image, row, column, flip):
    """Mirror, then a 32x32 window of the image in a zero border of 4."""
    if flip:
        image = image[:, :, list(range(31, -1, -1))]
    board = torch.zeros(3, 40, 40, dtype=torch.float64)
    board[:, 4:36, 4:36] = image
    return board[:, row : row + 32, column : column + 32]


def oracle(w, running, steps_data, *, reduction, bn_stats, ascent_steps, rate=LR):
    """Train for the given steps; changes `w` and returns losses, last gradients, and both sets of averages."""
    live = [[r.clone() for r in layer] for layer in running]
    clean = [[r.clone() for r in layer] for layer in running]
    losses, gradients = [], None
    for x, y, x_q, y_q in steps_data:
        for p in w.values():
            p.requires_grad_()
        if bn_stats == "shared":
            x_q = o_ascent(w, x_q, y_q, ascent_steps, [live], use_running=True)
            logits = o_forward(w, torch.cat([x, x_q]), [live])
            l_obj, l_wat = o_cross_entropy(logits[: len(x)], y), o_cross_entropy(logits[len(x) :], y_q)
        else:
            # triggers come after the clean batch: only so 90 % of the averages are theirs (reproduction.md, row 2)
            l_obj = o_cross_entropy(o_forward(w, x, [live, clean]), y)
            seen = [live] if bn_stats == "paper" else []
            x_q = o_ascent(w, x_q, y_q, ascent_steps, seen, use_running=False)
            l_wat = o_cross_entropy(o_forward(w, x_q, seen), y_q)
        if reduction == "joint":
            total = 0
            for one in l_obj:
                total = total + one
            for one in l_wat:
                total = total + WEIGHT * one
            loss = total / (len(l_obj) + len(l_wat))
        else:
            loss = l_obj.sum() / len(l_obj) + WEIGHT * l_wat.sum() / len(l_wat)
        gradients = dict(zip(w, torch.autograd.grad(loss, list(w.values()))))
        for name in w:
            w[name] = (w[name] - rate * (gradients[name] + DECAY * w[name])).detach()
        losses.append(loss.item())
    return losses, gradients, live, clean


# ---- the trainer, driven as the scripts drive it --------------------------------------------------------------


class Shift(nn.Module):
    def forward(self, x):
        return x - 0.5


def tiny():
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES),
    )
    for layer in (network[1], network[4]):  # not the values a fresh layer has
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.uniform_(layer.bias, -0.5, 0.5)
        nn.init.uniform_(layer.running_mean, -0.2, 0.2)
        nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return nn.Sequential(Shift(), network).double()


class FakeRun:
    """A run folder in memory."""

    def __init__(self):
        self.saved, self.written = {}, []

    def load(self, name):
        return None

    def save(self, name, checkpoint):
        self.saved[name] = checkpoint

    def rows(self):
        return []

    def write_rows(self, rows):
        self.written = list(rows)

    def log(self, text):
        pass


class Spy(Objective):
    """An objective that remembers what it was asked and what it said."""

    def __init__(self, objective):
        self.objective, self.losses, self.picks, self.statistics = objective, [], [], objective.statistics

    def sample(self, steps, generator):
        picks = self.objective.sample(steps, generator)
        self.picks.append(picks)
        return picks

    def __call__(self, *inputs):
        loss, stats = self.objective(*inputs)
        self.losses.append(loss.item())
        return loss, stats


def data(steps):
    g = torch.Generator().manual_seed(11)
    n = steps * BATCH + 3  # the last partial batch is dropped
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (n,), generator=g)
    triggers = torch.randint(0, 256, (TRIGGERS, 3, 32, 32), generator=g).clamp(20, 235)
    triggers = torch.where(triggers < 60, 0, torch.where(triggers > 200, 255, triggers))  # many at the cube's faces
    assigned = torch.randint(0, CLASSES, (TRIGGERS,), generator=g)
    return Images(images, labels, torch.arange(n)), triggers.double() / 255, assigned


def train(steps, reduction="joint", bn_stats="paper", ascent_steps=K, epochs=1):
    """utils.fit.fit on the tiny model; everything a test may want to know about it."""
    model = tiny()
    images, x_q, y_q = data(steps)
    batches = Batches(images, BATCH, True, dtype=torch.float64)
    plans, draw = [], batches.plan

    def plan(generator):
        plans.append(draw(generator))
        return plans[-1]

    batches.plan = plan
    spy = Spy(WatermarkObjective(model, x_q, y_q, weight=WEIGHT, reduction=reduction, batch=M, steps=ascent_steps,
                        step_size=ETA, eps=EPS, bn_stats=bn_stats))
    run = FakeRun()

    def snapshot(model, epoch, row):
        return {"model": {"state_dict": {n: t.detach().clone() for n, t in model.state_dict().items()}}}

    fit(run, model, spy, batches, lambda m: {"val_accuracy": 0.5}, snapshot,
        TrainingSettings(epochs, LR, DECAY, seed=5))
    steps_data = []
    for plan, picks in zip(plans, spy.picks):
        for step in range(steps):
            x = torch.stack([
                o_crop(images.images[i].double() / 255, int(s[0]), int(s[1]), bool(f))
                for i, s, f in zip(plan.order[step], plan.shift[step], plan.flip[step])
            ])
            steps_data.append((x, images.labels[plan.order[step]], x_q[picks[step]], y_q[picks[step]]))
    return run, model, spy, steps_data


def start():
    model = tiny()
    w = {name: p.detach().clone() for name, p in model.named_parameters()}
    layers = (model[1][1], model[1][4])
    return w, [[layer.running_mean.clone(), layer.running_var.clone()] for layer in layers]


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("bn_stats", ["paper", "clean", "shared"])
@pytest.mark.parametrize("reduction", ["joint", "sum"])
def test_trainer_equals_algorithm_1(reduction, bn_stats, steps):
    run, model, spy, steps_data = train(steps, reduction, bn_stats)
    w, running = start()
    losses, gradients, live, clean = oracle(w, running, steps_data, reduction=reduction, bn_stats=bn_stats,
                                            ascent_steps=K)
    assert spy.losses == pytest.approx(losses, abs=1e-10, rel=0) and len(losses) == steps
    assert run.written[0]["loss"] == pytest.approx(sum(losses) / steps, abs=1e-10)
    for name, p in model.named_parameters():
        assert close(p.grad, gradients[name]), name
        assert close(p, w[name]), name
        assert not torch.equal(p, start()[0][name]), f"{name} never moved"
    for layer, (mean, var) in zip((model[1][1], model[1][4]), live):
        assert close(layer.running_mean, mean) and close(layer.running_var, var)
    if bn_stats == "paper":
        kept = spy.statistics.state()
        assert len(kept) == 4
        for layer, (mean, var) in zip(("1.1", "1.4"), clean):
            assert close(kept[f"{layer}.running_mean"], mean) and close(kept[f"{layer}.running_var"], var)
    else:
        assert spy.statistics.state() == {}


@pytest.mark.parametrize("reduction", ["joint", "sum"])
def test_erm_watermark_is_the_same_without_ascent(reduction):
    _, model, spy, steps_data = train(4, reduction, ascent_steps=0)
    w, running = start()
    losses, *_ = oracle(w, running, steps_data, reduction=reduction, bn_stats="paper", ascent_steps=0)
    assert spy.losses == pytest.approx(losses, abs=1e-10, rel=0)
    assert all(close(p, w[name]) for name, p in model.named_parameters())


def test_rate_falls_at_half_and_three_quarters():
    run, model, _, steps_data = train(2, epochs=4)
    w, running = start()
    for epoch, rate in enumerate((0.1, 0.1, 0.01, 0.001)):
        *_, live, _ = oracle(w, running, steps_data[2 * epoch : 2 * epoch + 2], reduction="joint", bn_stats="paper",
                             ascent_steps=K, rate=rate)
        running = live
        assert run.written[epoch]["lr"] == pytest.approx(rate, rel=1e-12)
    assert all(close(p, w[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("reduction", ["joint", "sum"])
def test_paper_and_clean_share_weights_and_differ_in_statistics(reduction):
    run, paper, spy, _ = train(10, reduction, "paper")
    _, clean, _, _ = train(10, reduction, "clean")
    for (name, a), b in zip(paper.named_parameters(), clean.parameters()):
        assert torch.equal(a, b), name
    for i in (1, 4):
        for kind in ("running_mean", "running_var"):
            a, b = getattr(paper[1][i], kind), getattr(clean[1][i], kind)
            assert (a - b).abs().max() > 1e-4
            assert close(spy.statistics.state()[f"1.{i}.{kind}"], b)
            # and this is what the checkpoints beside hold
            assert close(run.saved["latest_clean"]["model"]["state_dict"][f"1.{i}.{kind}"], b)
            assert torch.equal(run.saved["latest"]["model"]["state_dict"][f"1.{i}.{kind}"], a)
            resumed = run.saved["latest"]["training"]["clean"][f"1.{i}.{kind}"]
            assert torch.equal(resumed, spy.statistics.state()[f"1.{i}.{kind}"])


def test_share_of_trigger_statistics_is_the_published_one():
    """With K = 5, one clean and six trigger passes leave 0.9**6 of every tenth: 10 % clean, 90 % triggers."""
    layer = nn.BatchNorm2d(1).double()
    nn.init.zeros_(layer.running_mean)
    statistics = RunningStatistics(nn.Sequential(layer), "paper")
    layer.train()
    for _ in range(60):
        with statistics.clean_batch():
            layer(torch.ones(4, 1, 2, 2, dtype=torch.float64) + 1e-9 * torch.randn(4, 1, 2, 2, dtype=torch.float64))
        for _ in range(6):
            with statistics.trigger_batch():
                layer(1e-9 * torch.randn(4, 1, 2, 2, dtype=torch.float64))
    assert layer.running_mean.item() == pytest.approx(0.1 * 0.9**6 / (1 - 0.9**7), abs=1e-6)
    assert layer.running_mean.item() == pytest.approx(0.10, abs=0.005)
    assert statistics.state()["0.running_mean"].item() == pytest.approx(1 - 0.9**60, abs=1e-6)


@pytest.mark.parametrize("bn_stats", ["paper", "clean", "shared"])
def test_modes_leave_the_layers_as_they_were(bn_stats):
    _, model, _, _ = train(2, "sum", bn_stats)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.momentum == 0.1 and layer.track_running_stats and layer.training


# ---- the parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.05, 0.3])
def test_ascend_raises_the_loss_in_ball_and_cube(eps):
    model = tiny().eval()
    _, x, y = data(1)
    preset = torch.full_like(model[1][0].weight, 7.0)
    model[1][0].weight.grad = preset.clone()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    inner = x.clone()
    out = ascend(model, x, y, steps=5, step_size=0.02, eps=eps)
    assert torch.equal(x, inner) and not out.requires_grad
    assert (out - x).abs().max() <= eps + 1e-12 and out.min() >= 0 and out.max() <= 1
    if eps:
        assert (out - x).abs().max() > 0.9 * min(eps, 0.1)
        assert F.cross_entropy(model(out), y) > F.cross_entropy(model(x), y) + 1e-3
    else:
        assert torch.equal(out, x)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(model[1][0].weight.grad, preset)
    assert all(p.grad is None for n, p in model.named_parameters() if n != "1.0.weight")
    assert all(p.requires_grad for p in model.parameters())


def test_ascend_by_hand_on_a_linear_model():
    """Two classes, logits (w.x, 0), label 0: the loss rises against w, one sign step after the other."""
    w = torch.tensor([2.0, -1.0, 0.5]).view(3, 1, 1)
    forward = lambda x: torch.stack([(x * w).sum(dim=(1, 2, 3)), torch.zeros(len(x))], 1)
    x = torch.tensor([0.5, 0.5, 0.05]).view(1, 3, 1, 1)
    out = ascend(forward, x, torch.tensor([0]), steps=3, step_size=0.1, eps=0.25)
    assert out.flatten().tolist() == pytest.approx([0.25, 0.75, 0.0])  # ball, ball, cube
    out = ascend(forward, x, torch.tensor([0]), steps=2, step_size=0.1, eps=0.25)
    assert out.flatten().tolist() == pytest.approx([0.3, 0.7, 0.0])


def by_hand(reduction):
    """Clean losses ln 2 (two samples), trigger losses ln 4 and 0 beside weight 0.5."""
    model = nn.Sequential(nn.Identity())
    answers = {0: [0.0, 0.0], 1: [math.log(3.0), 0.0], 2: [0.0, 100.0]}
    forward = lambda x: torch.stack([torch.tensor(answers[int(i)], dtype=torch.float64) for i in x.flatten(1)[:, 0]])
    x_q = torch.stack([torch.full((3, 1, 1), 1.0), torch.full((3, 1, 1), 2.0)]).double()
    watermark = WatermarkObjective(model, x_q, torch.tensor([1, 1]), weight=0.5, reduction=reduction, batch=2, steps=0,
                          step_size=0, eps=0, bn_stats="paper")
    x = torch.zeros(3, 3, 1, 1, dtype=torch.float64)
    return watermark(forward, x, torch.tensor([0, 1, 0]), torch.tensor([0, 1]))


def test_reductions_by_hand():
    ln2, ln4 = math.log(2), math.log(4)
    loss, stats = by_hand("joint")
    assert loss.item() == pytest.approx((3 * ln2 + 0.5 * (ln4 + 0)) / 5, abs=1e-12)
    assert stats["loss_obj"].item() == pytest.approx(ln2) and stats["loss_wat"].item() == pytest.approx(ln4 / 2)
    assert stats["trigger_batch_accuracy"].item() == 0.5
    loss, _ = by_hand("sum")
    assert loss.item() == pytest.approx(ln2 + 0.5 * (ln4 + 0) / 2, abs=1e-12)


def test_effective_weight_is_the_published_one():
    assert effective_weight(0.1, "joint", 128, 25) == pytest.approx(0.0195, abs=5e-5)
    assert effective_weight(0.1, "sum", 128, 25) == 0.1
    assert 128 / (128 + 25) == pytest.approx(0.837, abs=5e-4)  # what `joint` scales L_obj by


def test_triggers_of_a_step_are_uniform_with_replacement():
    watermark = WatermarkObjective(tiny(), torch.zeros(TRIGGERS, 3, 32, 32), torch.zeros(TRIGGERS).long(), weight=1,
                          reduction="sum", batch=25, steps=0, step_size=0, eps=0, bn_stats="clean")
    picks = watermark.sample(400, torch.Generator().manual_seed(0))
    assert picks.shape == (400, 25)
    counts = torch.bincount(picks.flatten(), minlength=TRIGGERS).double()
    expected = 10_000 / TRIGGERS
    assert ((counts - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees, p = 0.001
    assert any(len(set(row)) < TRIGGERS for row in picks.tolist())


def test_plain_is_cross_entropy():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    loss, stats = PlainObjective()(lambda x: logits, torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]), None)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert stats["train_accuracy"].item() == 0.5
