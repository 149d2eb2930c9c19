"""The training loop: its checkpoints, and that it resumes bit-equal after a signal, a kill or a bad loss."""

import contextlib
import math
import os
import signal
import time
from functools import partial

import pytest
import torch
from commands import rows_of
from comparing import same_runs
from tiny_fit import EPOCHS, STEPS, Death, tiny_fit

from utils.runs.checkpoints import load_checkpoint, save_checkpoint
from utils.system.files import write_atomically
from utils.system.refusals import Interrupted, Refusal
from utils.training.loop import Step, fit, seed_of_epoch
from utils.watermark.margin import WatermarkObjective

pytestmark = pytest.mark.usefixtures("quick")


def test_checkpoints_of_the_best_epochs_are_kept_and_of_equals_the_later_one(unbroken_run):
    best = max(rows_of(unbroken_run), key=lambda row: (row["val_accuracy"], row["epoch"]))
    assert best["epoch"] < 3  # else the last one would do
    epochs = {"init": -1, "nat_best": best["epoch"] - 1, "query_best": 2}  # on triggers all three epochs are equal
    for name, epoch in epochs.items():
        assert load_checkpoint(unbroken_run / "checkpoints" / f"checkpoint_{name}.pt")["epoch"] == epoch


def test_each_epochs_clean_figures_are_not_those_of_the_polluted_model(unbroken_run):
    assert all(row["clean_val_accuracy"] != row["val_accuracy"] for row in rows_of(unbroken_run))


def test_each_seed_and_epoch_has_its_own_rows_crops_flips_and_triggers(tmp_path, monkeypatch):
    """2^31 is a thief's, of --seed 0; torch's generator takes the lower 32 bits of a seed alone."""
    plans, plan = [], WatermarkObjective.plan
    monkeypatch.setattr(WatermarkObjective, "plan", lambda *given: plans.append(plan(*given)) or plans[-1])
    for seed in (0, 1, 2**31, 2**31 + 1):
        tiny_fit(tmp_path / str(seed), seed=seed, epochs=2)
    for part in zip(*plans):
        assert len({tuple(of.flatten().tolist()) for of in part}) == 4 * 2
    assert len({seed_of_epoch(seed, epoch) for seed in range(100) for epoch in range(200)}) == 100 * 200


def test_a_run_of_an_older_version_is_not_gone_on_with_where_it_drew_other_numbers(tmp_path):
    for seed in (0, 1):
        tiny_fit(tmp_path / str(seed), seed=seed, epochs=2)
        latest = tmp_path / str(seed) / "checkpoints" / "checkpoint_latest.pt"
        checkpoint = load_checkpoint(latest)
        del checkpoint["training"]["number"]
        save_checkpoint(latest, checkpoint)
    tiny_fit(tmp_path / "0", epochs=3)  # seed 0 drew what it draws now
    with pytest.raises(Refusal, match="older version, which drew other random numbers: pass --overwrite"):
        tiny_fit(tmp_path / "1", seed=1, epochs=3)
    tiny_fit(tmp_path / "1", seed=1, epochs=2)  # it is finished


def test_every_twentieth_checkpoint_is_kept(tmp_path):
    tiny_fit(tmp_path / "run", epochs=41, batch=16)
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("checkpoint_[0-9]*.pt"))
    assert kept == [f"checkpoint_{n}.pt" for n in ("20", "20_clean", "40", "40_clean")]
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "checkpoint_20.pt")["epoch"] == 19


def test_a_run_killed_at_any_write_resumes_bit_equal(unbroken_run, tmp_path, monkeypatch):
    """Before each write, which is after the one before it, and half way through: a truncated file stays behind."""
    fatal, writes = -1, []

    def write(target, content, private=False):
        writes.append(target)
        if len(writes) - 1 == fatal:
            target.with_name(f".{target.name}.partial").write_bytes(bytes(content)[: len(content) // 2])
            raise Death
        write_atomically(target, content, private)

    for module in ("utils.system.files", "utils.runs.checkpoints", "utils.runs.folder"):
        monkeypatch.setattr(f"{module}.write_atomically", write)
    tiny_fit(tmp_path / "counted")
    assert len(writes) > 15
    for fatal in range(len(writes)):
        writes.clear()
        with pytest.raises(Death) as death:
            tiny_fit(tmp_path / f"killed {fatal}")
        del death  # its traceback holds the run, and so the lock
        tiny_fit(tmp_path / f"killed {fatal}")
        same_runs(tmp_path / f"killed {fatal}", unbroken_run)


def test_a_run_whose_output_nobody_reads_any_more_keeps_the_epoch_and_resumes_bit_equal(unbroken_run, tmp_path,
                                                                                        monkeypatch):
    def gone(text, **more):
        if "epoch 2/" in text:
            raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(BrokenPipeError) as end:
        tiny_fit(tmp_path / "run")
    del end  # its traceback holds the run, and so the lock
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "checkpoint_latest.pt")["epoch"] == 1
    assert "epoch 2/3" in (tmp_path / "run" / "output.log").read_text()
    monkeypatch.undo()
    tiny_fit(tmp_path / "run")
    same_runs(tmp_path / "run", unbroken_run)


@pytest.mark.parametrize("at, number", [(0, signal.SIGINT), (STEPS - 1, signal.SIGTERM),
                                        (EPOCHS * STEPS - 2, signal.SIGHUP)])
def test_a_signal_ends_the_run_after_the_step_and_it_resumes_bit_equal(at, number, unbroken_run, heard, tmp_path):
    steps = []

    def hook(step):
        steps.append(step)
        if step == at:
            for _ in range(1 + (number == signal.SIGHUP)):  # which the terminal's shell sends once more
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="same command") as stop:
        tiny_fit(tmp_path / "run", hook)
    assert stop.value.signum == number
    del stop  # its traceback holds the run, and so the lock
    assert steps[-1] == at and signal.getsignal(number) is before  # this step was still taken
    again = []
    tiny_fit(tmp_path / "run", again.append)
    assert len(again) == EPOCHS * STEPS - 1 - at  # no step is repeated
    same_runs(tmp_path / "run", unbroken_run)


def test_nohup_is_left_alone(unbroken_run, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        tiny_fit(tmp_path / "run", lambda step: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    same_runs(tmp_path / "run", unbroken_run)


def test_a_second_signal_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(tmp_path / "run", lambda step: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])


@pytest.mark.parametrize("bn_stats", ["clean", "shared"])
def test_clean_and_shared_statistics_resume_bit_equal_too(bn_stats, tmp_path):
    def hook(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    tiny_fit(tmp_path / "whole", bn_stats=bn_stats)
    with contextlib.suppress(Interrupted):
        tiny_fit(tmp_path / "broken", hook, bn_stats=bn_stats)
    tiny_fit(tmp_path / "broken", bn_stats=bn_stats)
    same_runs(tmp_path / "broken", tmp_path / "whole")
    assert not list((tmp_path / "whole" / "checkpoints").glob("*_clean.pt"))


@pytest.mark.parametrize("step, signalled", [  # no loss of the epoch shows the weights after its last step
    (1, None), (STEPS - 1, None), (1, STEPS + 2)])
def test_a_loss_that_is_not_finite_in_a_later_epoch_keeps_the_earlier_ones(step, signalled, unbroken_run, tmp_path):
    """Nor does a signal save what is not finite."""
    def hook(at, model):
        if at == STEPS + step:
            model[5].weight.register_hook(lambda gradient: gradient * math.nan)
        if at == signalled:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Refusal, match="not finite in epoch 2.*--lr"):
        tiny_fit(tmp_path / "run", hook, with_model=True)
    latest = load_checkpoint(tmp_path / "run" / "checkpoints" / "checkpoint_latest.pt")
    assert latest["training"]["epoch"] == 1 and latest["epoch"] == 0
    assert all(t.isfinite().all() for t in latest["model"]["state_dict"].values())
    tiny_fit(tmp_path / "run")  # resumes on a repaired machine
    same_runs(tmp_path / "run", unbroken_run)


@pytest.mark.parametrize("name, value", [
    ("utils.watermark.margin.WatermarkObjective.random_steps", True), ("models.is_own", lambda model: False)])
def test_each_step_of_each_seed_and_epoch_draws_other_random_numbers(name, value, tmp_path, monkeypatch):
    """For the classes of WRK, and for dropout; that a continued run draws the same ones again: tests/scripts."""
    drawn = []
    monkeypatch.setattr(name, value)
    for seed in (0, 1):
        tiny_fit(tmp_path / str(seed), lambda step: drawn.append(float(torch.rand(1))), seed=seed, epochs=2)
    assert len(set(drawn)) == len(drawn) == 2 * 2 * STEPS


def test_the_seconds_of_an_epoch_count_those_before_an_interruption(tmp_path):
    def hook(step):
        if step == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

    with contextlib.suppress(Interrupted):
        tiny_fit(tmp_path / "run", hook)
    tiny_fit(tmp_path / "run")
    assert rows_of(tmp_path / "run")[0]["seconds"] >= 0.5


@pytest.mark.parametrize("own, static, random_steps, recorded", [
    (True, True, False, True), (False, True, False, False), (True, False, False, False), (True, True, True, False)])
def test_only_steps_without_random_numbers_that_are_all_alike_are_recorded(own, static, random_steps, recorded,
                                                                           tmp_path, monkeypatch):
    """A recording would replay one dropout mask for ever; `graph` is what --no-graph turns off."""
    asked = []
    step = lambda *given, graph, **more: asked.append(graph) or Step(*given, graph=False, **more)
    monkeypatch.setattr("utils.training.loop.Step", step)
    monkeypatch.setattr("tiny_fit.fit", partial(fit, graph=True))
    monkeypatch.setattr("models.is_own", lambda model: own)
    monkeypatch.setattr(WatermarkObjective, "static", static)
    monkeypatch.setattr(WatermarkObjective, "random_steps", random_steps)
    tiny_fit(tmp_path / "run", epochs=1)
    assert asked == [recorded]


def test_epochs_that_know_no_trigger_yet_give_no_best_checkpoint(tmp_path, monkeypatch):
    """As EWE's first phase, whose model is the more accurate one, and no source."""
    monkeypatch.setattr(WatermarkObjective, "first_best", 2)
    for epochs, there in ((2, False), (3, True)):
        tiny_fit(tmp_path / "run", epochs=epochs)
        for name in ("nat_best", "query_best"):
            path = tmp_path / "run" / "checkpoints" / f"checkpoint_{name}.pt"
            assert path.exists() == there and (not there or load_checkpoint(path)["epoch"] == 2)
