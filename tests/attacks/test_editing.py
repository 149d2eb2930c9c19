"""Attacks on a stolen checkpoint through `extraction.py` and `distill.py`."""

import json
import shutil

import pytest
import torch
from commands import good, refused, rows_of, summary, tree
from small_runs import BENIGN, SOURCE, STEAL, TRAIN

from utils.attacks.editing import BoundaryObjective, fine_tune, push_over, shift_weights
from utils.attacks.stealing import hard_loss
from utils.data.sets import load_data
from utils.runs.checkpoints import load_checkpoint, read_model
from utils.training.loop import PlainObjective

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A source, its soft extraction, and a benign model."""
    folder = tmp_path_factory.mktemp("edit")
    good("train", "-d", folder, *TRAIN)
    good("train", "-d", folder, *TRAIN, "-tt", "none")
    good("extraction", "-d", folder, *STEAL, "-at", "soft")
    return folder


def weights(world, attack="", name="latest"):
    return load_checkpoint(world / SOURCE / attack / f"checkpoints/checkpoint_{name}.pt")["model"]["state_dict"]


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


def test_finetune_command_changes_the_layers_that_it_names(world):
    good("extraction", "-d", world, *STEAL, "-at", "finetune", "--finetune", "ftll", "-admsg", "_ftll")
    before, after = weights(world, name="nat_best"), weights(world, "extraction_ftll")
    assert {n for n, t in after.items() if not torch.equal(t, before[n])} == {"1.linear.weight", "1.linear.bias"}
    assert summary(world / SOURCE / "extraction_ftll")["attack"] == "finetune ftll"
    good("extraction", "-d", world, *STEAL, "-at", "finetune", "--on", "extraction", "-admsg", "_ftal")
    start, after = weights(world, "extraction", "nat_best"), weights(world, "extraction_ftal")
    assert equal(weights(world, "extraction_ftal", "init"), start)
    good("extraction", "-d", world, *STEAL, "-at", "finetune", "--on", "extraction_ftal", "-admsg", "_again")
    generations = ("", "extraction", "extraction_ftal", "extraction_again")
    numbers = {load_checkpoint(world / SOURCE / run / "checkpoints/checkpoint_latest.pt")["training"]["number"]
               for run in generations}
    assert len(numbers) == 4  # batches of its own, at the same --seed
    assert [summary(world / SOURCE / run)["generation"] for run in generations[1:]] == [1, 2, 3]
    assert not torch.equal(after["1.layers.0.weight"], start["1.layers.0.weight"])
    mean = next(name for name in start if name.endswith("running_mean"))
    assert not torch.equal(after[mean], start[mean])  # it trains in train mode


def test_an_attack_does_not_write_over_the_copy_that_it_begins_with(world):
    before = tree(world / SOURCE)
    for more in ((), ("--overwrite",)):
        said = refused("extraction", "-d", world, *STEAL, "-at", "finetune", "--on", "extraction", *more)
        assert "--on" in said and "lies in the folder that this run writes: pass another -admsg" in said
    assert tree(world / SOURCE) == before


def test_that_the_source_is_not_finished_is_said(world, tmp_path):
    run = shutil.copytree(world / SOURCE, tmp_path / SOURCE)
    (run / "summary.json").unlink()
    said = good("extraction", "-d", tmp_path, *STEAL, "-at", "quantize", "--bits", 8, "-admsg", "_q")
    assert "warning: the source is not finished; its chosen epoch so far is 1" in said


def test_an_edit_without_training_asks_for_no_batches_and_records_the_width(world):
    flags = ("-dt", "digits", "-nq", 10, "--train-size", 20, "--device", "cpu", "-tmt", "vgg11")
    good("extraction", "-d", world, *flags, "-at", "quantize", "--bits", 8, "-admsg", "_few")
    assert summary(world / SOURCE / "extraction_few")["width"] == 2
    assert "--batch-size 128" in refused("extraction", "-d", world, *flags, "-at", "finetune", "-admsg", "_no")


@pytest.mark.parametrize("finetune, is_new", [("ftal", False), ("rtal", True), ("ftll", False), ("rtll", True)])
def test_the_last_layer_is_kept_or_initialised_anew(world, finetune, is_new):
    source = read_model(world / SOURCE)
    model, _ = fine_tune(source, finetune, {})
    assert torch.equal(model[1].linear.weight, source[1].linear.weight) == (not is_new)


def test_margin_at_eps_zero_and_distillation_at_alpha_one_are_soft_extraction(world):
    steal = ("-d", world, *STEAL)
    soft_weights = weights(world, "extraction")
    good("extraction", *steal, "-at", "margin", "--eps", 0, "-admsg", "_still")
    assert equal(weights(world, "extraction_still"), soft_weights)
    good("distill", *steal, "-a", 1)
    assert equal(weights(world, "distillation"), soft_weights)
    good("extraction", *steal, "-at", "margin", "--steps", 2, "-admsg", "_ball")
    assert not equal(weights(world, "extraction_ball"), soft_weights)


@pytest.mark.parametrize("attack, more", [("smooth", ()), ("adversarial", ("--steps", 1)), ("soft", ("--adam", 0.002)),
                                          ("hard", ("--amp", "--no-crop", "--no-flip"))])
def test_smoothed_labels_adversarial_images_and_adam_make_other_copies(world, attack, more):
    good("extraction", "-d", world, *STEAL, "-at", attack, *more, "-admsg", f"_other_{attack}")
    run = world / SOURCE / f"extraction_other_{attack}"
    assert summary(run)["attack"] == attack and rows_of(run)[0]["lr"] == (0.002 if more[:1] == ("--adam",) else 0.1)
    assert not equal(weights(world, run.name), weights(world, "extraction"))


def test_weights_are_shifted_by_the_mean_filter_and_noise_of_their_own_size(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(2, 2))
    model[0].weight.data, head = torch.tensor([3.0, 1.0]).view(2, 1, 1, 1), model[2].weight.clone()
    monkeypatch.setattr(torch, "randn_like", lambda w: torch.ones_like(w))
    shift_weights(model)  # mean 2, deviation sqrt(2): w - 3 - sqrt(2)
    assert model[0].weight.flatten().tolist() == pytest.approx([-1.414214, -3.414214], abs=1e-5)
    assert torch.equal(model[2].weight, head)


def test_images_are_pushed_towards_a_class():
    forward = torch.nn.Linear(2, 2, bias=False)  # class 0: up in both, class 1: down in both
    forward.weight.data = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    moved, classes = push_over(forward, torch.tensor([[0.5, 0.95]]))
    assert classes == 2 and [round(v, 4) for v in moved[0].tolist()] in ([0.65, 1.0], [0.35, 0.8])


@pytest.mark.parametrize("kind", ["shift", "wrk"])
def test_a_run_with_shifted_weights_or_pushed_images_is_made_and_is_no_plain_fine_tuning(world, kind):
    good("extraction", "-d", world, *STEAL, "-at", "finetune", "--finetune", kind, "-admsg", f"_{kind}")
    assert summary(world / SOURCE / f"extraction_{kind}")["attack"] == f"finetune {kind}"
    start, source = weights(world, f"extraction_{kind}", "init"), weights(world, name="nat_best")
    assert equal(start, source) == (kind == "wrk") and not equal(start, weights(world, f"extraction_{kind}"))


def test_prune_and_quantize_report_a_row_for_each_strength(world):
    flags = ("-d", world, *STEAL, "--benign", world / BENIGN)
    good("extraction", *flags, "-at", "prune", "--ratios", 1, 0, 0.5, "-admsg", "_prune")
    s = summary(world / SOURCE / "extraction_prune")
    assert s["role"] == "edited" and [r["ratio"] for r in s["rows"][:3]] == [1, 0, 0.5]
    dead, same, _, before, benign = s["rows"]
    figures = ("test_accuracy", "trigger_hits", "log10_p")
    assert all(same[k] == before[k] == s[k] for k in figures) and before["model"] == "source"
    assert benign["model"].startswith("benign")
    # pruned whole, a network gives every image one label: its accuracy is that class's share of the test images
    share = load_data("digits").test.labels.bincount().double() / 359
    assert min(abs(share - dead["test_accuracy"])) < 1e-9
    good("extraction", *flags[:-2], "-at", "quantize", "--bits", 16, 2, "--on", "extraction", "-admsg", "_bits")
    s = summary(world / SOURCE / "extraction_bits")
    assert [r.get("bits") for r in s["rows"]] == [16, 2, None] and s["on"] == "extraction"
    surrogate = summary(world / SOURCE / "extraction")
    assert s["test_accuracy"] == surrogate["test_accuracy"] and s["trigger_hits"] == surrogate["trigger_hits"]
    assert not list((world / SOURCE / "extraction_bits/checkpoints").iterdir())  # nothing was trained


def test_fineprune_trains_only_the_weights_that_pruning_left(world):
    flags = ("-at", "fineprune", "--ratio", 0.5, "--criterion", "magnitude", "-admsg", "_fp")
    good("extraction", "-d", world, *STEAL, *flags)
    start, after = weights(world, "extraction_fp", "init"), weights(world, "extraction_fp")
    pruned = {n: t == 0 for n, t in start.items() if n.endswith("weight") and t.dim() > 1}
    share = sum(int(m.sum()) for m in pruned.values()) / sum(m.numel() for m in pruned.values())
    assert share == pytest.approx(0.5, abs=1e-3)
    assert all(bool((after[n][m] == 0).all()) for n, m in pruned.items())
    assert not torch.equal(after["1.layers.0.weight"], start["1.layers.0.weight"])


def test_a_copy_of_an_earlier_training_of_the_source_is_not_gone_on_from(world):
    made = summary(world / SOURCE / "extraction")
    copy = shutil.copytree(world / SOURCE / "extraction", world / SOURCE / "extraction_old")
    for words, changed in (("of an earlier training", made | {"source_sha256": "00" * 32}), ("is not finished", None),
                           ("is damaged", made | {"generation": "2"})):
        (copy / "summary.json").unlink(missing_ok=True)
        if changed:
            (copy / "summary.json").write_text(json.dumps(changed))
        for attack in ("finetune", "prune"):
            said = refused("extraction", "-d", world, *STEAL, "-at", attack, "--on", "extraction_old", "-admsg", "_no")
            assert "--on extraction_old" in said and words in said
    shutil.rmtree(copy)


@pytest.mark.parametrize("flags, words", [
    (("-at", "soft", "--on", "extraction"), ["--on extraction", "-at soft"]),
    (("-at", "prune", "--on", "../x"), ["--on", "'/'"]), (("-at", "prune", "--ratios", 1.5), ["--ratios", "at most 1"]),
    (("-at", "finetune", "-dmt", "res18"), ["-dmt res18", "leave -dmt out"]),
    (("-at", "soft", "--finetune", "wrk"), ["--finetune: -at soft does not read it", "-at finetune or fineprune"]),
    (("-at", "prune", "--ratio", 0.7), ["--ratio: -at prune", "pass -at fineprune"]),
    (("-at", "fineprune", "--ratios", 0.7), ["--ratios: -at fineprune", "pass -at prune"]),
    (("-at", "hard", "--step-size", 3), ["--step-size: -at hard", "margin or adversarial"]),
    (("-at", "quantize", "--width", 3), ["--width 3", "keeps the width, 2; leave it out"]),
    (("-at", "finetune", "--on", "extraction", "--teacher-bn", "clean"), ["--teacher-bn clean: --on extraction"]),
    (("-at", "finetune", "--finetune", "wrk", "--batch-size", 9), ["--batch-size 9", "--batch-size 10 or more"]),
])
def test_contradictory_editing_flags_are_refused(world, flags, words):
    before = tree(world)
    said = refused("extraction", "-d", world, *STEAL, "-admsg", "_no", *flags)
    assert all(word in said for word in words) and tree(world) == before


def test_a_fifth_of_a_batch_is_trained_again_pushed_and_under_each_label_but_its_own(monkeypatch):
    seen, x, y = [], torch.rand(1000, 2), torch.arange(1000) % 5
    monkeypatch.setattr("utils.attacks.editing.push_over", lambda forward, x: (x + 2, 5))
    monkeypatch.setattr(PlainObjective, "__call__", lambda self, forward, x, y, picks: seen.extend((x, y)))
    BoundaryObjective(torch.nn.Linear(2, 5), last=False)(None, x, y, None)
    assert torch.equal(seen[0], torch.cat([x, x[:200] + 2])) and torch.equal(seen[1][:1000], y)
    assert ((seen[1][1000:] - y[:200]) % 5).unique().tolist() == [1, 2, 3, 4]


def test_a_shifted_copy_is_trained_on_the_labels_that_the_stolen_model_gives(world):
    source = read_model(world / SOURCE)
    model, objective = fine_tune(source, "shift", {})
    assert objective.source is source and objective.loss is hard_loss and not objective.needs_labels
    assert not equal(model.state_dict(), source.state_dict())
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in source.parameters())
