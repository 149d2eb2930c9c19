"""SIGKILL, SIGINT, a full disk, a damaged file: the same command goes on and ends bit-equal to an unbroken run."""

import importlib
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from multiprocessing import forkserver

import pytest
import torch
from commands import ROOT, call, good, summary
from comparing import same_runs

from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.runs.folder import RunFolder
from utils.system import files
from utils.training.loop import Step

COMMON = ("-dt", "digits", "-nq", 8, "--train-size", 64, "--batch-size", 16, "-ep", 3, "--device", "cpu",
          "--select", "last")  # an epoch has four steps
MARGIN = ("train", *COMMON, "--trigger-batch", 4, "--steps", 2)
STEAL = (*COMMON, "-tmt", "vgg11", "-dmt")
SOURCE = "digits_vgg11_margin_8_"
COMMANDS = {
    "train": ((*MARGIN, "-mt", "vgg11", "--width", 2), SOURCE),
    "distill": (("distill", *STEAL, "vgg11"), f"{SOURCE}/distillation"),
    "extraction": (("extraction", *STEAL, "vgg11", "-at", "soft"), f"{SOURCE}/extraction"),
    "wrk": (("extraction", *STEAL[:-1], "-at", "finetune", "--finetune", "wrk", "-admsg", "_wrk"),
            f"{SOURCE}/extraction_wrk"),
    "dropout": ((*MARGIN, "-mt", "own_networks:plain"), "digits_own_networks-plain_margin_8_"),
}
TRAIN, KILL, STOP = COMMANDS["train"][0], signal.SIGKILL, signal.SIGINT
SERVER = multiprocessing.get_context("forkserver")  # forks of this process could not train after others' threads
SERVER.set_forkserver_preload(["train", "distill", "extraction", "torch._dynamo", "matplotlib.figure"])


@pytest.fixture(scope="module", autouse=True)
def server():
    """Started where it finds the scripts: it does not search where this process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        forkserver.ensure_running()


def run_command(printed, command, where, number, death):
    """In a child: the command, which gets the signal `death` after so many steps or writes; it prints into a file.

    After an odd write a file is whole on the disk but not yet under its name, after an even one it is.
    """
    owner, name = {"step": (Step, "__call__"), "write": (files, "sync")}[where]
    counter, real = itertools.count(1), getattr(owner, name)

    def counted(*given):
        result = real(*given)
        if next(counter) == number:
            os.kill(os.getpid(), death)
        return result

    setattr(owner, name, counted)
    sys.stdout = sys.stderr = open(printed, "a", buffering=1)
    script, *flags = map(str, command)
    sys.argv = [f"{script}.py", *flags]
    importlib.import_module(script).main()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the unbroken runs."""
    folder = tmp_path_factory.mktemp("whole")
    for command, _ in COMMANDS.values():
        good(*command, "-d", folder)
    return folder


def copy_source(whole, folder):
    return shutil.copytree(whole / SOURCE, folder / SOURCE, ignore=shutil.ignore_patterns("dist*", "extr*"))


@pytest.mark.parametrize("name, deaths", [
    ("train", [("write", 13, KILL), ("step", 3, KILL), ("step", 6, STOP)]), ("distill", [("step", 6, KILL)]),
    ("extraction", [("write", 17, KILL)]), ("wrk", [("step", 3, STOP)]), ("dropout", [("step", 7, STOP)]),
])
def test_a_command_that_is_killed_or_stopped_ends_bit_equal(name, deaths, whole, tmp_path):
    (command, run), folder, printed = COMMANDS[name], tmp_path / "runs", tmp_path / "printed"
    if name != "train":
        copy_source(whole, folder)
    for where, number, death in deaths:
        child = SERVER.Process(target=run_command, args=(printed, (*command, "-d", folder), where, number, death))
        child.start()
        child.join()
        assert child.exitcode == (128 + STOP if death == STOP else -KILL), printed.read_text()
    if name == "train":  # the two checkpoints are of the same step
        last, clean = (load_checkpoint(find_checkpoint(folder / run, "last", kind)) for kind in ("paper", "clean"))
        weights, twin = last["model"]["state_dict"], clean["model"]["state_dict"]
        assert all(torch.equal(weights[name], twin[name]) for name in weights if "running" not in name)
        assert not torch.equal(weights["1.layers.1.running_mean"], twin["1.layers.1.running_mean"])
    again = good(*command, "-d", folder)
    if death == STOP:  # in the middle of an epoch
        assert "SIGINT: saved in epoch" in printed.read_text() and "continuing in epoch" in again
    same_runs(folder / run, whole / run)
    assert summary(folder / run)["log10_p"] == summary(whole / run)["log10_p"]


def test_a_run_with_a_damaged_latest_checkpoint_resumes_from_the_previous_one(whole, tmp_path):
    run = copy_source(whole, tmp_path)
    (run / "summary.json").unlink()
    latest = run / "checkpoints" / "checkpoint_latest.pt"
    latest.write_bytes(latest.read_bytes()[:-500])
    assert "going on from" in good(*TRAIN, "-d", tmp_path)
    same_runs(run, whole / SOURCE)


def test_a_full_disk_leaves_the_last_good_checkpoint_and_one_sentence(whole, tmp_path, monkeypatch):
    """A limit on the size of files stands for it: after two epochs checkpoints no longer fit."""
    real, count, before = RunFolder.write_rows, itertools.count(1), resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, rows):
        real(self, rows)
        if next(count) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))

    monkeypatch.setattr(RunFolder, "write_rows", full)
    try:
        done = call(*TRAIN, "-d", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    assert done.status == 2 and "a limit keeps files from growing" in done.err, done
    assert "again (--overwrite begins anew); the last checkpoint is intact" in done.err and done.err.count("\n") == 1
    folder = tmp_path / SOURCE
    assert load_checkpoint(folder / "checkpoints" / "checkpoint_latest.pt")["training"]["epoch"] == 1
    assert not list(folder.rglob("*.partial"))
    good(*TRAIN, "-d", tmp_path)  # there is room again
    same_runs(folder, whole / SOURCE)
