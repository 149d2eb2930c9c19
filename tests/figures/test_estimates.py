"""How long runs take: ten measured steps, and what is said where they cannot be measured."""

import os
from pathlib import Path

import pytest
from photos import photos

from figures.paper import estimates
from figures.paper.commands import RunCommands, RunStep
from figures.paper.estimates import Estimates, measure_estimates
from figures.paper.ten_steps import training_images
from utils.data.sets import load_data

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_estimates_come_from_ten_steps_of_each_kind(tiny):
    runs = RunCommands("tiny", Path("runs"))
    margin, benign = runs.source(0), runs.source(0, "none")
    soft, energy = runs.named(margin)["soft"], runs.analysis(margin, "energy")
    elsewhere = soft._replace(command=f"{soft.command} --device mps")  # which no machine for these tests has
    steps = [margin, benign, soft, energy, runs.source(1), elsewhere]
    found = measure_estimates(steps, 600)
    assert set(found.runs) == {margin, benign, soft, runs.source(1)} and found.start_up > 0
    assert all(one.step > 0 and (one.steps, one.epochs) == (2, 8) for one in found.runs.values())
    assert found.runs[margin] == found.runs[runs.source(1)] != found.runs[soft] != found.runs[benign]
    assert found.notes == ["ten steps failed: Refusal: --device mps: this machine or this PyTorch has none; pass "
                           "--device auto or cpu: the runs of that kind are unknown"]
    assert found.remaining(energy) is None
    one = found.runs[soft]
    assert found.remaining(soft) == pytest.approx(one.start_up + 1.1 * 16 * one.step)
    soft.folder.mkdir(parents=True)
    (soft.folder / "metrics.jsonl").write_text('{"epoch": 1}\n' * 3)
    assert found.remaining(soft) == pytest.approx(one.start_up + 1.1 * 10 * one.step)


def test_a_failed_measurement_says_why_and_everything_is_unknown(monkeypatch):
    steps = [RunStep("python train.py", Path("a/summary.json"))]
    found = measure_estimates(steps, 0.01)
    assert found.runs == {} and found.notes == [
        "measuring was ended after 0 s: what had not been measured is unknown"]
    monkeypatch.setattr(estimates, "script_environment", lambda: {**os.environ, "PYTHONPATH": ""})
    found = measure_estimates(steps, 100)
    assert found.runs == {} and found.remaining(steps[0]) is None and found.start_up > 0
    assert len(found.notes) == 1 and "measuring ended with status 1" in found.notes[0] and "figures" in found.notes[0]
    assert measure_estimates([], 100) == Estimates({}, 0.0, [])


def test_training_images_are_counted_as_the_data_sets_load_them(tmp_path):
    of = lambda name, folder="data", train_size=None: dict(dataset=name, data_dir=folder, train_size=train_size)
    sets = [of("digits"), of("digits", train_size=99), of("folder", str(photos(tmp_path / "parts"))),
            of("folder", str(photos(tmp_path / "whole", parts=("",), n=33)))]
    (tmp_path / "parts/train/cat/.hidden.png").write_text("")
    for settings in sets:
        assert training_images(settings) == len(load_data(**settings).train.labels)
    assert training_images(of("cifar10")) == 49_000
