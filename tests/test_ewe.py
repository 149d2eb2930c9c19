"""Entangled Watermark Embedding: the soft nearest neighbour loss, the triggers, the phases and the command."""

import copy
import json
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from test_data import photos
from test_run import same_runs
from test_scripts import call, good, refused, summary, tree

import models
from utils.command_line import train_flags
from utils.data.batches import Batches
from utils.data.images import Data, Images
from utils.data.sets import load_data
from utils.ownership.commitment import check_commitment, commit_to
from utils.rivals.ewe.objective import EntangledObjective, phase3_schedule, watermark_batches
from utils.rivals.ewe.snnl import LOWEST_TEMPERATURE, entanglement, observe_features, snnl, temperature_step
from utils.rivals.ewe.trigger_making import LAST_PUSHES, PUSHES, gather_images, make_triggers, patch_position
from utils.runs.checkpoints import load_checkpoint
from utils.system.refusals import Refusal
from utils.training.step import Step
from utils.watermark.triggers import TriggerSet

POINTS, W = torch.tensor([[1.0, 0], [1, 1], [0, 1], [1, 2]]), torch.tensor([1, 1, 0, 0])
APART, HALVES = torch.eye(2).repeat_interleave(64, 0), torch.arange(128) < 64

# ---- the loss: figures computed by hand --------------------------------------------------------------------------


@pytest.mark.parametrize("metric, t, value", [("cosine", 100, 1.096756), ("cosine", 1, 0.949993),
                                              ("euclidean", 100, 1.095294), ("euclidean", 1, 1.087004)])
def test_snnl_of_four_points(metric, t, value):
    assert float(snnl(POINTS, W, t, metric)) == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("n, value", [(4, 1.098586), (128, 0.701032)])
def test_snnl_of_one_point_and_of_dead_features(metric, n, value):
    w = torch.arange(n) < n // 2
    assert float(snnl(torch.ones(n, 3), w, 100, metric)) == pytest.approx(value, abs=2e-6)
    dead = (-torch.rand(n, 3)).requires_grad_()
    loss = snnl(dead, w, 100, metric)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(value, abs=2e-6) and dead.grad.isfinite().all()


@pytest.mark.parametrize("temperature, value", [(1, 0.696006), (100, 0.317508), (1000, 0.000036)])
def test_snnl_of_two_groups_apart(temperature, value):
    (loss,) = entanglement([APART], HALVES, torch.tensor([float(temperature)]))
    assert float(loss) == pytest.approx(value, rel=0, abs=1e-6)


def test_temperature_descends():
    for features, w, slope in ((APART, HALVES, -0.005014), (POINTS, W, -0.001826)):
        t = torch.ones(1, requires_grad=True)
        (gradient,) = torch.autograd.grad(entanglement([features], w, t).sum(), t)
        assert float(gradient) == pytest.approx(slope, abs=2e-6)
        if w is HALVES:
            assert float(temperature_step(t.detach(), gradient, 0.1)) == pytest.approx(1.000501, abs=1e-6)
    assert temperature_step(torch.ones(1), torch.tensor([1e9]), 0.1) == torch.tensor([LOWEST_TEMPERATURE])
    values = [float(snnl(APART.double(), HALVES, 100 / t)) for t in (0.01, 1, 10, 100, 1000)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]


def test_snnl_does_not_depend_on_order_scale_or_names():
    x, w = torch.rand(12, 5, dtype=torch.double), torch.arange(12) % 3 == 0
    order = torch.randperm(12)
    for metric in ("cosine", "euclidean"):
        value = float(snnl(x, w, 2.0, metric))
        assert float(snnl(x[order], w[order], 2.0, metric)) == pytest.approx(value, abs=1e-12)
        assert float(snnl(x, ~w, 2.0, metric)) == pytest.approx(value, abs=1e-12)
        assert value >= -math.log1p(1e-5)
    assert float(snnl(7 * x, w, 2.0)) == pytest.approx(float(snnl(x, w, 2.0)), abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_gradient_of_snnl_is_that_of_finite_differences(metric):
    x = torch.rand(6, 4, dtype=torch.double).add(0.1).requires_grad_()
    t = torch.tensor(0.7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: snnl(x, torch.arange(6) < 3, t, metric), (x, t))


# ---- the order of steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, members, w_epochs, ratio, n_w, passes, steps", [
    (50_000, 5000, 6, 4, 78, 30, 11_700), (50_000, 500, 8, 15, 6, 520, 49_920), (49_000, 4900, 6, 4, 76, 30, 11_400)])
def test_loop_counts(n, members, w_epochs, ratio, n_w, passes, steps):
    labels = (torch.arange(n) >= members).long()
    assert watermark_batches(labels, 0, 128, w_epochs) == n_w
    kinds = phase3_schedule(n // 128, n_w, ratio, w_epochs)
    assert len(kinds) == steps and sum(kinds) == passes * n_w
    assert kinds == ([False] * ratio + [True]) * sum(kinds)


def test_a_ratio_that_is_not_whole():
    kinds = phase3_schedule(10, 10, 1.2, 1)
    before = [len(part) for part in "".join("w" if k else "n" for k in kinds).split("w")]
    assert before == [1] * 5 + [2] + [1] * 4 + [0]
    kinds = phase3_schedule(10, 10, 0.5, 1)
    assert sum(kinds) == 10 and len(kinds) == 15


# ---- triggers ----------------------------------------------------------------------------------------------------


def test_position_of_the_patch():
    gradient = torch.zeros(3, 5, 5)
    gradient[1, 0:3, 2:5] = -1
    assert patch_position(gradient) == (0, 2)


def small(name="res18", width=4):
    torch.manual_seed(0)
    return models.build(name, 4, (0.5,) * 3, (0.25,) * 3, width)


def pictures(*shape):
    return torch.rand(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def make(model, source, partners, **change):
    numbers = {"steps": 3, "step_size": 0.01, "threshold": 0.1} | change
    return make_triggers(model, source, partners, label=0, temperatures=torch.ones(3), **numbers)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_triggers_stay_pictures_and_near_their_source(threshold):
    model, source, partners = small().eval(), pictures(5), pictures(2, 4)
    with torch.no_grad():
        model[1].linear.bias[0] += 100  # everything is class 0, as far as can be walked
    before = copy.deepcopy(model.state_dict())
    made = make(model, source, partners, threshold=threshold)
    drift = (made - source).abs().flatten(1).amax(1)
    pushes = PUSHES if threshold == 0 else 0
    assert 0 <= made.min() and made.max() <= 1
    assert (drift > 0.005).all() and (drift <= 0.01 * (3 + pushes + LAST_PUSHES) + 1e-5).all()
    assert (drift.max() > 0.2) == (threshold == 0)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_steps_entangle_and_the_last_ones_lead_away(monkeypatch):
    model, source, partners = small().eval(), pictures(4), pictures(1, 4)
    features = lambda x: observe_features(model, model, torch.cat([x, partners[0]]))[1]
    mixed = lambda x: entanglement(features(x), torch.arange(8) < 4, torch.ones(3)).sum()
    away = make(model, source, partners, steps=0)
    assert (model(away)[:, 0] < model(source)[:, 0]).all()
    monkeypatch.setattr("utils.rivals.ewe.trigger_making.LAST_PUSHES", 0)
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


# ---- the objective -----------------------------------------------------------------------------------------------

B, M = 8, 3


def setting(made=True, **change):
    """(model, batches, objective) on 48 images of 4 classes; triggers 3, passes of 2 watermark batches."""
    torch.manual_seed(5)
    images = Images(torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8), torch.arange(48) % 4, torch.arange(48))
    batches, model = Batches(images, B, True), small().train()
    trigger = TriggerSet(torch.randint(0, 256, (M, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 0, 0] if made else
                      [1, 2, 3]), torch.zeros(M, 0), torch.zeros(M, 0))
    numbers = {"target": 0, "made": made, "patch": False, "epochs": 1, "w_epochs": 1.0, "ratio": 2.0, "factor": 1e3,
               "temperature": 1.0, "temperature_lr": 0.1, "bn_stats": "paper",
               "making": {"steps": 1, "step_size": 0.01, "threshold": 0.1}} | change
    return model, batches, EntangledObjective(model, batches, trigger, **numbers)


def watermark_step(model, batches, objective):
    """The inputs of the first watermark step, triggers made."""
    generator = torch.Generator().manual_seed(0)
    plan = objective.plan(batches, 1, generator)
    objective.begin(model, model, None, 1, generator)
    row = next(row for row in zip(*plan) if row[3][0] >= 0)
    return *batches.batch(*row[:3]), row[3]


def test_without_watermark_it_is_plain_adam_bit_for_bit():
    """Phase 1 alone: Adam on summed cross-entropy, the plan of every other training, whatever the factor."""
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
def test_a_watermark_batch(factor, made):
    """Its gradient is that of CE - factor * SNNL, exactly that of CE where the factor is 0; T descends beside it."""
    model, batches, objective = setting(made, factor=factor)
    x, y, picks = watermark_step(model, batches, objective)
    assert len(picks) == M and sorted(picks.tolist()) == [0, 1, 2]  # fewer than half a batch: all, no one twice
    other = copy.deepcopy(model)
    loss, stats = objective(model, x, y, picks)
    loss.backward()

    both = torch.cat([objective.trigger.images[picks] / 255, x[:M]])
    labels = torch.cat([objective.trigger.labels[picks], y[:M]])
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
    share = float(objective.kinds[0].float().mean())
    assert float(stats["snnl_1"]) * share == pytest.approx(float(mixed[0].detach()), abs=1e-6)
    assert (labels == 0).all() if made else labels[:M].tolist() == (picks + 1).tolist()


def test_clean_images_of_a_watermark_batch_are_not_augmented():
    for made in (True, False):
        model, batches, objective = setting(made)
        plan = list(zip(*objective.plan(batches, 1, torch.Generator().manual_seed(0))))
        assert [int(row[3][0]) >= 0 for row in plan] == objective.kinds[0].tolist()
        for order, shift, flip, picks in plan:
            if picks[0] < 0:
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
    objective(model, x, y, torch.tensor([-1]))
    assert not torch.equal(model[1].bn1.running_mean, live)
    assert mode == "clean" or not torch.equal(objective.statistics.state()["1.bn1.running_mean"],
                                              clean["1.bn1.running_mean"])


# ---- the command -------------------------------------------------------------------------------------------------

DATA = ("-dt", "digits", "-nq", 6, "--train-size", 256, "--batch-size", 16, "--width", 2, "--device", "cpu")
TRAIN = (*DATA, "-mt", "vgg11", "-tt", "ewe", "-ep", 1, "--ewe-source", 8, "--ewe-epochs", 0.25, "--select", "last")
SOURCE = "digits_vgg11_ewe_6_"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ewe")
    good("train", "-d", folder, *TRAIN)
    return folder


def test_the_run_keeps_its_triggers_and_thieves_are_judged_by_them(unbroken):
    run = unbroken / SOURCE
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert ["trigger_accuracy" in row for row in rows] == [False, True, True]
    assert all(0.5 < row["snnl_1"] < 0.8 and row["temperature_1"] > 1 for row in rows[1:])
    best, first = (load_checkpoint(run / f"checkpoints/checkpoint_{name}.pt") for name in ("nat_best", "init"))
    assert best["epoch"] >= 1 and "query_model" not in first
    kept, held = load_checkpoint(run / "triggers.pt"), best["query_model"]["state_dict"]
    assert torch.equal(kept["images"], held["query"]) and kept["images"].dtype == torch.uint8
    assert (kept["labels"] == 0).all() and (kept["true_labels"] == 8).all()
    s = summary(run)
    assert s["objective"] == "ewe" and s["clean"] is not None and s["log10_p"]["T1"] is None
    assert s["epochs"] == s["chosen_epoch"] == len(rows)
    trigger = TriggerSet(*(kept[name] for name in TriggerSet._fields))
    assert check_commitment(run, trigger).state == "match"
    flags = ("-e", unbroken, *DATA, "-tmt", "vgg11", "-dmt", "vgg11", "-tt", "ewe", "-ep", 1)
    assert "surrogate soft" in good("extraction", *flags, "-at", "soft")
    assert summary(run / "extraction")["trigger_size"] == 6 and summary(run / "extraction")["log10_p"]["T1"] is None


@pytest.mark.parametrize("at", [5, 30, "commitment"])
def test_a_run_that_was_ended_goes_on_bit_equal(at, unbroken, tmp_path, monkeypatch):
    """SIGTERM in phase 1 and in phase 3, and an end between phase 2 and the next checkpoint."""
    if at == "commitment":
        whole = commit_to

        def end(*args):
            whole(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr("utils.ownership.commitment.commit_to", end)
    else:
        whole, calls = EntangledObjective.__call__, iter(range(10**6))

        def hooked(*args):
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*args)

        monkeypatch.setattr(EntangledObjective, "__call__", hooked)
    done = call("train", "-d", tmp_path, *TRAIN)
    assert done.status == (130 if at == "commitment" else 143), done.err
    monkeypatch.undo()
    good("train", "-d", tmp_path, *TRAIN)
    same_runs(tmp_path / SOURCE, unbroken / SOURCE)
    public = json.loads((tmp_path / SOURCE / "commitment.json").read_text())
    assert public["triggers"] == 6 and "finished" in good("train", "-d", tmp_path, *TRAIN)


def test_the_best_model_is_one_that_has_seen_the_triggers(tmp_path, monkeypatch):
    rates = iter([1.0, 1.0])  # on validation images in phase 1, with the paper's and with clean statistics
    monkeypatch.setattr("utils.watermark.evaluation.accuracy", lambda *args: next(rates, 0.5))
    good("train", "-d", tmp_path, *TRAIN)
    best = load_checkpoint(tmp_path / SOURCE / "checkpoints" / "checkpoint_nat_best.pt")
    assert best["epoch"] == 2 and best["figures"]["val_accuracy"] == 0.5 and "query_model" in best


def test_triggers_of_another_data_set(tmp_path):
    """scikit-learn's nines among photographs: of no class, so that no true label is claimed; then `shared`."""
    data = photos(tmp_path / "pets", n=40)
    flags = ("-dt", "folder", "--data-dir", data, "-nq", 3, "--batch-size", 16, "--width", 2, "--device", "cpu")
    train = ("-d", tmp_path / "runs", *flags, "-mt", "vgg11", "-tt", "ewe", "-ep", 1, "--ewe-epochs", 1)
    good("train", *train, "--ewe-source", "digits")
    run = tmp_path / "runs" / "folder_vgg11_ewe_3_"
    kept = load_checkpoint(run / "triggers.pt")
    assert kept["true_labels"].shape == kept["sources"].shape == (3, 0) and (kept["labels"] == 0).all()
    steal = ("-e", tmp_path / "runs", *flags, "-tmt", "vgg11", "-tt", "ewe")
    assert "pruned 0.5" in good("extraction", *steal, "-at", "prune", "--ratios", 0.5)
    good("train", *train, "--ewe-triggers", "shared", "-msg", "shared")
    good("train", "-d", tmp_path / "runs", *flags, "-mt", "vgg11", "-tt", "base", "-ep", 1, "--trigger-batch", 2)
    names = "ewe_3_shared", "base_3_"
    shared, base = (load_checkpoint(tmp_path / "runs" / f"folder_vgg11_{name}" / "triggers.pt") for name in names)
    assert all(torch.equal(shared[name], base[name]) for name in base)
    assert summary(tmp_path / "runs/folder_vgg11_ewe_3_shared")["log10_p"]["T1"] is not None
    said = refused("train", *train, "--ewe-source", "svhn:9", "-msg", "x")
    assert "--ewe-source svhn:9" in said and "--ewe-source digits" in said


BAD = {
    "no such target": (("--ewe-target", 10), ["--ewe-target 10", "0 to 9"]),
    "source and target are one": (("--ewe-source", 0), ["--ewe-source 0", "--ewe-target 0"]),
    "no such source": (("--ewe-source", 11), ["--ewe-source 11", "0 to 9"]),
    "no source at all": (("--ewe-source", "mnist"), ["--ewe-source", "svhn:DIGIT"]),
    "the data set itself": (("--ewe-source", "digits"), ["--ewe-source digits", "-dt digits"]),
    "more triggers than images": (("-nq", 60), ["-nq 60", "--ewe-source 8"]),
    "too few of the target": (("--batch-size", 64), ["--ewe-target 0", "--batch-size 64"]),
    "no half of a batch": (("--batch-size", 1), ["--batch-size 1"]),
    "phase 3 too short": (("--ewe-epochs", 0.01), ["--ewe-epochs 0.01", "pass"]),
    "no phase 3": (("--ewe-epochs", 0), ["--ewe-epochs"]),
    "shared statistics": (("--bn-stats", "shared"), ["--bn-stats shared"]),
    "compiled": (("--compile",), ["--compile"]),
    "mixup": (("-nm", 2), ["-nm", "--ewe-triggers shared"]),
    "another training": (("-tt", "margin"), ["-tt ewe"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags(case, tmp_path):
    flags, words = BAD[case]
    said = refused("train", "-d", tmp_path / "runs", *TRAIN, *flags)
    assert all(word in said for word in words), said
    assert tree(tmp_path) == set()


def test_triggers_come_from_one_digit_of_another_data_set(monkeypatch):
    other = load_data("digits")
    # in place of SVHN
    monkeypatch.setattr("utils.rivals.ewe.trigger_making.load_data", lambda name, root, flag: other)
    own = Images(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.arange(9) % 3, torch.arange(9))
    data = Data("cifar10", own, own, own, list("abc"), (), ())
    drawn, again, others = (gather_images("svhn:7", 2, 20, data, "data", seed) for seed in (0, 0, 1))
    sevens = {i.numpy().tobytes() for p in (other.train, other.held_out) for i in p.images[p.labels == 7]}
    assert {i.numpy().tobytes() for i in drawn.images} < sevens and len(drawn.images.flatten(1).unique(dim=0)) == 20
    assert torch.equal(drawn.images, again.images) and not torch.equal(drawn.images, others.images)
    assert (drawn.labels == 2).all() and drawn.true_labels.shape == (20, 0)
    own.images[4] = drawn.images[3]
    with pytest.raises(Refusal, match="--ewe-source svhn:7: 1 training images"):
        gather_images("svhn:7", 2, 20, data, "data", 0)


def test_triggers_that_are_training_images_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.rivals.ewe.objective.make_triggers", lambda model, source, *args, **more: source)
    done = call("train", "-d", tmp_path, *TRAIN, "-ep", 1)
    assert done.status == 2 and "6 training images" in done.err and "--ewe-source" in done.err
    assert not (tmp_path / SOURCE / "commitment.json").exists()


def test_what_is_not_typed_is_the_authors_and_other_settings_stay():
    authors, typed = train_flags(["-tt", "ewe"]), train_flags(["-tt", "ewe", "-ep", "200", "--lr", "0.1"])
    assert (authors.epoch, authors.lr, authors.weight_decay) == (50, 1e-3, 0)
    assert (typed.epoch, typed.lr) == (200, 0.1) and authors.label_strategy == "single"
    margin = train_flags([])
    assert (margin.epoch, margin.lr, margin.weight_decay) == (200, 0.1, 1e-4)
    assert not any(name.startswith("ewe") for name in vars(margin))
