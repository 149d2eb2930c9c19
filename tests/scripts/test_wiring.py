"""What flags reach: the objective, the images, the seeds; most of it without a training."""

from argparse import Namespace
from functools import partial

import pytest
import torch
from commands import good
from official_checkpoint import trigger_set
from small_runs import SOURCE, STEAL, TRAIN
from small_steps import setting

import extraction
import train
from utils.data.sets import Images, load_data
from utils.flags import distill_flags, extraction_flags, train_flags
from utils.rivals import randomized_smoothing
from utils.runs.checkpoints import load_checkpoint
from utils.training.loop import PlainObjective
from utils.watermark.triggers import draw_triggers

pytestmark = pytest.mark.usefixtures("quick")


def objective(*flags, triggers=None):
    """(what train.py trains by these flags, what it logs)."""
    model, batches, said = setting()[0], setting()[1], []
    made = train.objective_of_flags(train_flags(list(map(str, flags))), model, triggers or trigger_set(10), batches,
                                    said.append)
    return made, said


def test_flags_of_train_reach_equation_4():
    made, _ = objective("-v", 0.3, "--reduction", "sum", "--trigger-batch", 7, "--steps", 4, "--step-size", 2,
                        "--bn-stats", "eval")
    assert (made.weight, made.reduction, made.batch, made.statistics.mode) == (0.3, "sum", 7, "eval")
    assert made.ascent.func is train.ascend
    assert made.ascent.keywords == {"steps": 4, "step_size": 2 / 255, "eps": 8 / 255}
    made, said = objective()  # the official code's numbers
    assert (made.weight, made.reduction, made.batch, made.statistics.mode) == (0.1, "joint", 25, "paper")
    assert made.ascent.keywords == {"steps": 5, "step_size": 1 / 255, "eps": 5 / 255} and "Eq. 4: 0.0195" in said[0]
    assert objective("-tt", "base")[0].ascent is None and type(objective("-tt", "none")[0]) is PlainObjective


def test_flags_of_the_attacks_reach_equations_5_to_7(monkeypatch):
    assert (distill_flags([]).alpha, distill_flags([]).temp, extraction_flags([]).alpha) == (0.7, 1, 0.3)
    for attack, is_robust in (("margin", False), ("adversarial", True)):
        flags = extraction_flags(["-at", attack, "--steps", "2", "--step-size", "3"])
        made = extraction.objective_of_flags(flags, None)
        assert made.ascent.keywords == {"steps": 2, "step_size": 3 / 255, "eps": 6 / 255}
        assert made.robust == is_robust and made.ascent.func is extraction.ascend
    assert extraction.objective_of_flags(extraction_flags(["-at", "soft"]), None).ascent is None


def test_runners_up_are_trained_on_views_over_their_candidates():
    logits, noise = torch.rand(40, 5), torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    images = Images(noise, torch.arange(40) % 5, torch.arange(40))
    triggers = draw_triggers(images, 10, 1, 5, 0, "runners-up", predict=lambda x: logits[: len(x)])
    made, said = objective("--label-strategy", "runners-up", "--label-model", "x", triggers=triggers)
    assert made.candidates is not None and len(made.candidates) == len(made.x_q) > 10 and "views of each" in said[-1]


def test_images_that_are_trained_on_beside_the_triggers():
    data = load_data("digits", train_size=30)
    text = randomized_smoothing.draw_triggers(Namespace(num_query=6, rs_label=2, seed=0), data)
    of = partial(train.training_images, data=data, clean=None, log=print)
    images = of(Namespace(train_type="rs"), triggers=text)
    assert images.labels[-6:].tolist() == [2] * 6 and len(images.labels) == 36
    images = of(Namespace(train_type="margin", label_strategy="random", carriers=None), triggers=text)
    assert images is data.train


def test_digits_are_never_mirrored_and_others_unless_told_so():
    data = load_data("digits", train_size=30)
    mirrors = lambda: [data.mirrors(Namespace(no_flip=no, no_crop=False), print) for no in (False, True)]
    assert mirrors() == [False, False]
    data.flip = True
    assert mirrors() == [True, False]


def test_a_seed_draws_other_weights_batches_and_triggers_of_sources_and_of_copies(tmp_path):
    for seed in (0, 1):
        good("train", "-d", tmp_path, *TRAIN, "-tt", "margin", "--seed", seed, "-msg", seed)
        good("extraction", "-e", tmp_path, *STEAL, "-msg", 0, "--seed", seed, "-admsg", seed)
    of = lambda run, name: load_checkpoint(tmp_path / run / f"checkpoints/checkpoint_{name}.pt")
    for pair in ((f"{SOURCE}0", f"{SOURCE}1"), (f"{SOURCE}0/extraction0", f"{SOURCE}0/extraction1")):
        assert len({of(run, "latest")["training"]["number"] for run in pair}) == 2
        assert not torch.equal(*(of(run, "init")["model"]["state_dict"]["1.layers.0.weight"] for run in pair))
    assert not torch.equal(*(load_checkpoint(tmp_path / f"{SOURCE}{seed}/triggers.pt")["sources"] for seed in (0, 1)))


def test_numbers_of_a_training_reach_the_loop(tmp_path, monkeypatch):
    """EWE's own are a rate of 0.001 and no weight decay."""
    given = []
    monkeypatch.setattr(train, "fit", lambda *args, **more: given.append(more))
    monkeypatch.setattr(train, "report_source", lambda *args: None)
    monkeypatch.setattr(train, "read_triggers", lambda *args: trigger_set(10))  # which EWE makes in its training
    flags = ("--seed", 3, "-ep", 4, "--stop-after", 2, "--lr", 0.02, "--weight-decay", 0.5)
    good("train", "-d", tmp_path, *TRAIN, *flags)
    good("train", "-d", tmp_path, *TRAIN, "-tt", "ewe", "--ewe-source", 9, "--batch-size", 14)
    wanted = {"epochs": 4, "stop_after": 2, "lr": 0.02, "weight_decay": 0.5, "seed": 3}
    assert given[0] | wanted == given[0] and (given[1]["lr"], given[1]["weight_decay"]) == (0.001, 0)
