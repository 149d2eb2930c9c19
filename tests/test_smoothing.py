"""Certified watermarks by randomised smoothing: noisy gradients, the certificate, and both commands end to end."""

import copy
import json
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_run import same_runs
from test_scripts import call, good, summary, tree
from torch import nn

import models
from utils.command_line import extraction_flags, train_flags
from utils.data.batches import Batches
from utils.data.images import Data, Images
from utils.data.sets import load_data
from utils.rivals.randomized_smoothing.certificate import certified_radius, certify, order_index, smoothed_accuracies
from utils.rivals.randomized_smoothing.noise import noise_levels, noisy_gradient
from utils.rivals.randomized_smoothing.objective import SmoothedObjective, robust_pass, short_epoch_warning
from utils.rivals.randomized_smoothing.trigger_drawing import draw_rs_triggers, with_triggers
from utils.runs.checkpoints import load_checkpoint
from utils.system.signals import agree_on_signal
from utils.verify import main as verify_main

DIGITS = ("-dt", "digits", "-nq", 8, "--train-size", 128, "--batch-size", 64, "--width", 4, "--device", "cpu")
RS = ("-tt", "rs", *DIGITS, "-mt", "vgg11", "--rs-draws", 2, "--rs-sigma-step", 0.5, "--rs-warmup", 0, "-ep", 3,
      "--select", "last")
RUN = "digits_vgg11_rs_8_"


def small():
    torch.manual_seed(1)
    return models.build("res18", 5, (0.5,) * 3, (0.25,) * 3, 4).train()


def triggers(m=6):
    return torch.rand(m, 3, 32, 32), torch.randint(0, 5, (m,))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


# ---- noisy gradients ---------------------------------------------------------------------------------------------


def test_levels():
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


def test_scalar_trace(monkeypatch):
    draws = iter([0.3, -1.0, 2.0])
    monkeypatch.setattr("utils.rivals.randomized_smoothing.noise.gaussian_noise",
                        lambda parameters, _: [torch.full_like(parameters[0], next(draws))])
    model, trace = HalfSquare(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    robust_pass(model, optimizer, torch.zeros(1), torch.zeros(1, dtype=torch.long), [0, 0.5, 1], 1, None,
                          after=lambda: trace.append(float(model.theta.detach())))
    assert trace == pytest.approx([0.983333, 0.975278, 0.925690], abs=1e-6)


def test_draws_are_averaged(monkeypatch):
    noise = [0.5, -0.25, 1.0]
    draws = iter(noise)
    monkeypatch.setattr("utils.rivals.randomized_smoothing.noise.gaussian_noise",
                        lambda parameters, _: [torch.full_like(parameters[0], next(draws))])
    (gradient,) = noisy_gradient(HalfSquare(), torch.zeros(1), torch.zeros(1, dtype=torch.long), 2.0, 3, None)
    assert float(gradient) == pytest.approx(np.mean([1 + 2 * n for n in noise]))


def test_every_parameter_is_noisy_and_none_is_touched():
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
    assert equal(model, before) and all(p.grad is None for p in model.parameters())
    assert set(seen) == set(clean) and "1.bn1.bias" in seen
    noise = torch.cat([(seen[name] - clean[name].detach()).flatten() for name in clean]) / 0.5
    assert not (noise == 0).any() and abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert [g.shape for g in gradient] == [p.shape for p in model.parameters()]
    # the running statistics follow the noisy passes, as officially, and are not noise
    assert not torch.equal(model[1].bn1.running_mean, before[1].bn1.running_mean)
    assert (model[1].bn1.running_var > 0).all()


def test_without_a_rate_the_weights_stay_bit_identical():
    model, (x, y) = small(), triggers()
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.0), momentum=0.9, weight_decay=1e-4, fused=True)
    robust_pass(model, optimizer, x, y, [0, 0.5, 1], 2, torch.Generator().manual_seed(0))
    assert equal(model, before)


def test_without_noise_it_is_a_plain_step():
    model, (x, y) = small(), triggers()
    plain = copy.deepcopy(model)
    one, two = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for m in (model, plain))
    for _ in range(2):
        robust_pass(model, one, x, y, [0.0], 1, torch.Generator().manual_seed(0))
        two.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        two.step()
    assert equal(model, plain) and not equal(model, small())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers()))


# ---- the objective -----------------------------------------------------------------------------------------------


def objective(m=6, **more):
    numbers = {"sigmas": [0.0, 0.5], "draws": 1, "warmup": 0, "batch": 4}
    return SmoothedObjective(*triggers(m), **numbers | more)


def test_rates_of_the_authors():
    rates = [objective().rate(0.05, epoch, 100) for epoch in range(100)]
    assert [e for e in range(1, 100) if rates[e] != rates[e - 1]] == [31, 61, 91]
    assert rates[0] == 0.05 and rates[99] == pytest.approx(5e-5)
    scaled = [objective().rate(1.0, epoch, 14) for epoch in range(14)]
    assert [e for e in range(1, 14) if scaled[e] != scaled[e - 1]] == [5, 9, 13]


@pytest.mark.parametrize("m, batch, picked", [(6, 4, [4]), (8, 4, [4, 4]), (3, 4, [3])])
def test_a_robust_pass_takes_whole_random_batches(monkeypatch, m, batch, picked):
    sizes, rows = [], set()
    monkeypatch.setattr("utils.rivals.randomized_smoothing.objective.robust_pass", lambda model, optimizer, x, y, *_: (
        sizes.append(len(y)), rows.add(tuple(y.tolist()))))
    rival = objective(m, batch=batch, warmup=5)
    rival.y_q = torch.arange(m)
    for epoch in range(12):
        rival.begin(None, None, None, epoch, torch.Generator().manual_seed(epoch))
        assert bool(sizes) == (epoch > 5)  # the first robust epoch of the official five is that of index 6
    assert sizes == picked * 6
    assert len({frozenset(row) for row in rows}) > 1 or m <= batch


@pytest.mark.parametrize("freeze", [False, True])
def test_the_noise_enters_the_running_statistics_unless_they_are_frozen(freeze):
    model, rival = small(), objective(freeze=freeze)
    before = copy.deepcopy(model)
    rival.begin(model, None, rival.optimizer(model.parameters(), 0.1, 0.0, False), 1, torch.Generator().manual_seed(0))
    assert not equal(model, before)
    same = [torch.equal(a, b) for a, b in zip(model[1].bn1.buffers(), before[1].bn1.buffers())]
    assert same == [freeze] * 3
    assert all(layer.track_running_stats for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def test_epochs_too_short_to_wash_the_noise_out_are_told_of():
    assert short_epoch_warning(98, False) is None and short_epoch_warning(3, True) is None
    assert "--rs-freeze-bn" in short_epoch_warning(3, False)


def test_triggers_are_trained_on_but_not_augmented():
    images = Images(torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8), torch.zeros(30).long(), torch.arange(30))
    held_out = Images(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), torch.ones(20).long(),
                      torch.arange(20))
    data = Data("x", images, held_out, held_out, ["a", "b", "c"], (), ())
    trigger, _ = draw_rs_triggers(data, 6, 2, "text", 0)
    batches = Batches(with_triggers(images, trigger), 6, True)
    rival = SmoothedObjective(trigger.images / 255, trigger.labels, sigmas=[0.0], draws=1, warmup=0, batch=4)
    seen, moved = {}, 0
    for row in zip(*rival.plan(batches, 0, torch.Generator().manual_seed(0))):
        x, y = batches.batch(*row[:3])
        for i, image, label in zip(row[0].tolist(), x, y.tolist()):
            if i >= 30:
                seen[i - 30] = label
                assert torch.equal(image, trigger.images[i - 30] / 255)
            else:
                moved += not torch.equal(image, images.images[i] / 255)
    assert seen == dict.fromkeys(range(6), 2) and moved > 20


class Stop:
    """A signal after `steps` steps."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self, received, device, step=0):
        self.left -= 1
        return signal.SIGTERM if self.left == 0 else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    good("train", "-d", folder, *RS, "--batch-size", 32)
    return folder / RUN


@pytest.mark.parametrize("steps", [2, 6])  # inside the first epoch, without a robust pass, and inside the second
def test_interrupted_inside_an_epoch_it_ends_bit_equal(whole, tmp_path, monkeypatch, steps):
    monkeypatch.setattr("utils.training.loop.agree_on_signal", Stop(steps))
    stopped = call("train", "-d", tmp_path, *RS, "--batch-size", 32)
    assert stopped.status == 128 + signal.SIGTERM, stopped.err
    saved = load_checkpoint(tmp_path / RUN / "checkpoints" / "checkpoint_latest.pt")["training"]
    assert saved["step"] == (steps if steps < 4 else steps - 5) and "momentum_buffer" in saved["optimizer"][0]
    monkeypatch.setattr("utils.training.loop.agree_on_signal", agree_on_signal)
    assert "continuing in epoch" in good("train", "-d", tmp_path, *RS, "--batch-size", 32)
    same_runs(tmp_path / RUN, whole)


# ---- triggers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "noise"])
def test_triggers_carry_one_pattern_and_one_label(kind):
    data = load_data("digits")
    trigger, left = draw_rs_triggers(data, 20, 4, kind, seed=3)
    assert trigger.labels.tolist() == [4] * 20 and 4 not in trigger.true_labels
    position = {int(i): p for p, i in enumerate(data.held_out.indices)}
    places = [position[int(i)] for i in trigger.sources[:, 0]]
    originals = data.held_out.images[places]
    assert torch.equal(data.held_out.labels[places], trigger.true_labels[:, 0])
    assert sorted(left.indices.tolist() + trigger.sources[:, 0].tolist()) == sorted(data.held_out.indices.tolist())
    changed = trigger.images != originals
    if kind == "text":
        pattern = changed.any(1).any(0)  # one place for all
        rows, columns = pattern.nonzero().T
        assert 20 < int(pattern.sum()) < 400 and rows.max() < 16
        assert (trigger.images == 155).all(1).any(0)[pattern].any()  # grey, a few full pixels at least
        assert trigger.images.unique(dim=0).shape[0] == 20
    else:
        noise = (trigger.images.float() - originals.float()) / 255
        inside = (trigger.images > 0) & (trigger.images < 255)
        for i in range(1, 20):  # where neither is clipped, the same tensor was added
            both = inside[0] & inside[i]
            assert (noise[0] - noise[i])[both].abs().max() <= 1.01 / 255
    again, _ = draw_rs_triggers(data, 20, 4, kind, seed=3)
    other, _ = draw_rs_triggers(data, 20, 4, kind, seed=4)
    assert torch.equal(again.images, trigger.images) and not torch.equal(other.images, trigger.images)


# ---- the certificate ---------------------------------------------------------------------------------------------

TABLE = {
    1000: {.2: 384, .4: 309, .6: 241, .8: 181, 1.0: 131, 1.2: 91, 1.4: 60, 1.6: 38, 1.8: 22, 2.0: 12, 2.5: 0, 3: None},
    100: {.2: 30, .4: 23, .6: 16, .8: 11, 1.0: 7, 1.2: 4, 1.4: 1, 1.6: 0, 1.8: None, 2.0: None},
}


@pytest.mark.parametrize("n", TABLE)
def test_order_statistic(n):
    assert {eps: order_index(n, eps, 1.0, 0.99) for eps in TABLE[n]} == TABLE[n]
    assert order_index(n, 0.5, 0.5, 0.99) == order_index(n, 1.0, 1.0, 0.99)
    assert order_index(n, 1e5, 1.0, 0.99) is None


def test_toy_certificate_is_tight():
    """a(theta) = 1[theta > 0] at theta = 1.5: the median of the smoothed truth flips at eps = 1.5."""
    rng, certified = np.random.default_rng(0), {}
    for n, grid in ((10_000, (1.4, 1.6)), (1000, (1.2, 1.4))):
        found = [certify(np.sort(rng.normal(1.5, 1, n) > 0), grid, 1.0, 0.99) for _ in range(200)]
        certified[n] = {eps: np.mean([f[eps] == 1 for f in found]) for eps in grid}
    assert certified[10_000] == {1.4: 1, 1.6: 0}
    assert certified[1000][1.2] == 1 and 0.1 < certified[1000][1.4] < 0.33


def test_bounds_fall_with_eps_stay_below_the_median_and_tighten_with_draws():
    rng = np.random.default_rng(1)
    grid = (0.0, 0.2, 0.5, 1.0, 1.5, 2.0)
    sample = lambda n: np.sort(rng.beta(8, 2, n))
    bounds = list(certify(sample(1000), grid, 1.0, 0.99).values())
    assert bounds == sorted(bounds, reverse=True) and bounds[0] <= np.median(sample(100_000)) + 0.01
    at_one = lambda accuracies: certify(accuracies, [1.0], 1.0, 0.99)[1.0]
    assert at_one(sample(10_000)) > at_one(sample(50)) and at_one([1.0] * 10) is None


def test_an_answer_that_is_not_finite_is_no_answer():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5))
    torch.nn.init.constant_(model[1].bias, torch.nan)
    images, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    found, shares = smoothed_accuracies(model, images, labels, 5, 1.0, 2, torch.Generator().manual_seed(0))
    assert found.tolist() == [0, 0] and not shares.any()  # not class 0, which argmax takes


def test_smoothed_accuracy_is_of_noisy_copies():
    model = small().eval()
    before = copy.deepcopy(model)
    images, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 5, (6,))
    found, shares = smoothed_accuracies(model, images, labels, 5, 1e-9, 3, torch.Generator().manual_seed(0))
    assert equal(model, before)
    assert found.tolist() == [int((model(images / 255).argmax(1) == labels).sum()) / 6] * 3
    found, shares = smoothed_accuracies(model, images, labels, 5, 1.0, 20, torch.Generator().manual_seed(0))
    assert found.tolist() == sorted(found.tolist()) and shares.sum(1) == pytest.approx(np.ones(20))
    # an untrained network is nearly constant under such noise: the pitfall that the histogram is there to show
    assert shares.max(1).mean() > 0.8 and len(np.unique(shares.argmax(1))) > 1


# ---- end to end --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rs")
    good("train", "-d", folder, *RS)
    good("train", "-d", folder, "-tt", "none", *DIGITS, "-mt", "vgg11", "-ep", 1)
    return folder


def test_source(world):
    s = summary(world / RUN)
    assert s["role"] == "source" and s["objective"] == "rs" and s["clean"] is None and s["train_size"] == 128
    assert s["log10_p"]["T1"] is None  # one label for all: not drawn at random
    settings = json.loads((world / RUN / "run.json").read_text())["settings"]
    assert settings["rs_draws"] == 2 and settings["lr"] == 0.05 and settings["label_strategy"] == "single"
    assert (load_checkpoint(world / RUN / "triggers.pt")["labels"] == 4).all()
    assert "is finished" in good("train", "-d", world, *RS)


def test_a_thief_needs_nothing_new(world):
    good("extraction", "-d", world, "-tt", "rs", *DIGITS, "-tmt", "vgg11", "-dmt", "vgg11", "-at", "soft", "-ep", 1)
    s = summary(world / RUN / "extraction")
    assert s["trigger_size"] == 8 and s["log10_p"]["T1"] is None


def test_shared_triggers_are_those_of_the_margin_method(tmp_path, capsys):
    good("train", "-d", tmp_path, *RS, "--rs-triggers", "shared", "-ep", 2)
    good("train", "-d", tmp_path, "-tt", "base", *DIGITS, "-mt", "vgg11", "-ep", 1)
    ours, rivals = (load_checkpoint(tmp_path / f"digits_vgg11_{tt}_8_" / "triggers.pt") for tt in ("base", "rs"))
    assert all(torch.equal(ours[k], rivals[k]) for k in ours)
    assert summary(tmp_path / RUN)["log10_p"]["T1"] is not None
    verify_main(["claim", str(tmp_path / RUN), "--suspect", str(tmp_path / RUN)])
    assert any(line.startswith("T1") and "log10 p" in line for line in capsys.readouterr().out.splitlines())


def test_the_radius_is_where_the_bound_beats_the_controls():
    bounds = {0.2: 0.9, 0.4: 0.5, 0.6: 0.1, 0.8: None}
    assert [certified_radius(bounds, bar) for bar in (0.0, 0.1, 0.5, 0.9)] == [0.6, 0.4, 0.2, None]


def ask_certify(*flags) -> int:
    return verify_main(["certify", *map(str, flags)])


def test_certify(world, tmp_path, capsys):
    command = (world / RUN, "--benign", world / "digits_vgg11_none_8_", "--draws", 40, "--device", "cpu", "--json",
               tmp_path / "c.json")
    assert ask_certify(*command) == 0
    out = capsys.readouterr().out
    assert "answers under noise" in out and "eps 2: none" in out and f"benign {world}" in out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["settings"] == {"draws": 40, "sigma": 1.0, "confidence": 0.99, "seed": 0}
    own, control = content["models"]
    assert own["trigger_accuracy"] == summary(world / RUN)["trigger_hits"] / 8
    assert control["role"] == "benign" and own != control
    for model in content["models"]:
        assert sum(model["histogram"]) == pytest.approx(1) and model["certified"]["2.0"] is None
        bounds = [b for b in model["certified"].values() if b is not None]
        assert bounds == sorted(bounds, reverse=True) and bounds[0] <= model["smoothed_median"]
    ask_certify(*command)
    assert json.loads((tmp_path / "c.json").read_text()) == content
    ask_certify(world / RUN, "--draws", 5, "--sigma", 1e-9, "--eps", 1e-12)
    assert f"under noise mean {100 * own['trigger_accuracy']:.2f}" in capsys.readouterr().out


# ---- flags -------------------------------------------------------------------------------------------------------


def test_defaults_are_the_authors_and_a_typed_flag_wins():
    rs = train_flags(["-tt", "rs"])
    assert (rs.epoch, rs.lr, rs.rs_sigma, rs.rs_sigma_step, rs.rs_draws, rs.rs_warmup, rs.rs_batch, rs.rs_label,
            rs.rs_triggers) == (100, 0.05, 1.0, 0.05, 100, 5, 64, 4, "text")
    typed = train_flags(["-tt", "rs", "-ep", "200", "--lr", "0.1", "--rs-draws", "10"])
    assert (typed.epoch, typed.lr, typed.rs_draws) == (200, 0.1, 10)
    for tt in ("none", "base", "margin"):  # recorded as ever, so that folders made before are continued
        args = train_flags(["-tt", tt])
        assert (args.epoch, args.lr) == (200, 0.1) and not any(name.startswith("rs_") for name in vars(args))
    thief = extraction_flags(["-tt", "rs"])
    assert (thief.epoch, thief.lr) == (200, 0.1)


@pytest.mark.parametrize("flags, words", [
    (("-tt", "margin", *DIGITS, "--rs-draws", 3), "--rs-draws is a flag of -tt rs"),
    (("-tt", "none", *DIGITS, "--rs-freeze-bn"), "--rs-freeze-bn is a flag of -tt rs"),
    ((*RS, "--rs-sigma-step", 0.3), "--rs-sigma 1 is no multiple of --rs-sigma-step 0.3"),
    ((*RS, "--rs-sigma-step", 0), "--rs-sigma-step"),
    ((*RS, "--rs-label", 10), "--rs-label 10: digits has 10 classes"),
    ((*RS, "-nq", 140), "-nq 140"),
    ((*RS, "-nm", 2), "--rs-triggers text"),
    ((*RS, "--rs-triggers", "word"), "--rs-triggers"),
])
def test_refused_before_anything_is_made(tmp_path, flags, words):
    done = call("train", "-d", tmp_path / "new", *flags)
    assert done.status == 2 and done.err.count("\n") == 1 and words in done.err
    assert not tree(tmp_path)


@pytest.mark.parametrize("flags, words", [
    (("RUN", "--sigma", 0), "--sigma"), (("RUN", "--confidence", 1), "--confidence"),
    (("RUN", "--draws", 0), "--draws"), (("RUN", "--json", "nowhere/c.json"), "there is no folder"),
    (("no run",), "there is no run in"), (("SURROGATE",), "holds no trigger set"),
])
def test_certify_refuses(world, tmp_path, capsys, flags, words):
    if "SURROGATE" in flags:
        checkpoint = load_checkpoint(world / RUN / "checkpoints" / "checkpoint_latest.pt")
        del checkpoint["query_model"]
        torch.save(checkpoint, tmp_path / "bare.pt")
    places = {"RUN": world / RUN, "SURROGATE": tmp_path / "bare.pt"}
    with pytest.raises(SystemExit) as end:
        ask_certify(*(places.get(f, f) for f in flags))
    err = capsys.readouterr().err
    assert end.value.code == 2 and words in err and "Traceback" not in err
