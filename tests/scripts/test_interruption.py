"""SIGKILL, SIGINT, a full disk, a damaged file: the same command goes on and ends bit-equal to an unbroken run.

What dies are forks of a server that has imported the scripts, which saves each of them the import of torch.
"""

import importlib
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from multiprocessing import forkserver

import pytest
import torch
from commands import ROOT, call, good, refused
from comparing import same_runs

from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.runs.folder import RunFolder
from utils.system import files
from utils.training.loop import Step

COMMON = ("-dt", "digits", "-nq", 8, "--width", 2, "--train-size", 64, "--batch-size", 16, "-ep", 3, "--device", "cpu",
          "--select", "last")
STEAL = (*COMMON, "-tmt", "vgg11", "-dmt", "vgg11")
SOURCE = "digits_vgg11_margin_8_"
COMMANDS = {
    "train": (("train", *COMMON, "-mt", "vgg11", "--trigger-batch", 4, "--steps", 2), SOURCE),
    "distill": (("distill", *STEAL), f"{SOURCE}/distillation"),
    "extraction": (("extraction", *STEAL, "-at", "soft"), f"{SOURCE}/extraction"),
}
SERVER = multiprocessing.get_context("forkserver")  # forks of this process could not train after others' threads
SERVER.set_forkserver_preload(["train", "distill", "extraction", "torch._dynamo", "matplotlib.figure"])


@pytest.fixture(scope="module", autouse=True)
def server():
    """Started where it finds the scripts: it does not search where this process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        forkserver.ensure_running()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_go(folder):
    (folder / "there").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


def in_step(number, act, *arguments):
    counter, step = itertools.count(1), Step.__call__

    def stepping(self, row):
        if next(counter) == number:
            act(*arguments)
        return step(self, row)

    Step.__call__ = stepping


def in_write(number, act):
    """When a file is whole on the disk but not yet under its name (odd numbers), or just after that (even ones)."""
    counter, sync = itertools.count(1), files.sync
    files.sync = lambda descriptor: (sync(descriptor), act() if next(counter) == number else None)


def run_command(printed, command, prepare, *when):
    """In a child: the command, after `prepare(*when)`; what it prints goes into the file `printed`."""
    sys.stdout = sys.stderr = open(printed, "a", buffering=1)
    script, *flags = map(str, command)
    sys.argv = [f"{script}.py", *flags]
    prepare(*when)
    importlib.import_module(script).main()


def start(folder, name, prepare, *when):
    """A process that runs the command in `folder`."""
    command = (*COMMANDS[name][0], "-d", folder)
    process = SERVER.Process(target=run_command, args=(folder.parent / "printed", command, prepare, *when))
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the unbroken runs."""
    folder = tmp_path_factory.mktemp("whole")
    for command, _ in COMMANDS.values():
        good(*command, "-d", folder)
    return folder


def copy_source(whole, folder):
    return shutil.copytree(whole / SOURCE, folder / SOURCE, ignore=shutil.ignore_patterns("dist*", "extr*"))


@pytest.mark.parametrize("name, deaths", [  # an epoch has four steps
    ("train", [(in_write, 13), (in_step, 3), (in_write, 26)]), ("distill", [(in_step, 6)]),
    ("extraction", [(in_write, 17)]),
])
def test_a_command_that_is_killed_again_and_again_ends_bit_equal(name, deaths, whole, tmp_path):
    (command, run), folder = COMMANDS[name], tmp_path / "runs"
    if name != "train":
        copy_source(whole, folder)
    for death in deaths:
        child = start(folder, name, *death, die)
        child.join()
        assert child.exitcode == -signal.SIGKILL, (tmp_path / "printed").read_text()
    assert (folder / run / "run.json").exists()
    good(*command, "-d", folder)
    same_runs(folder / run, whole / run)


def test_a_run_in_use_is_refused_and_an_interrupted_one_ends_bit_equal(whole, tmp_path):
    folder, command = tmp_path / "runs", COMMANDS["train"][0]
    child = start(folder, "train", in_step, 6, wait_for_go, tmp_path)
    while not (tmp_path / "there").exists():
        assert child.is_alive(), (tmp_path / "printed").read_text()
        time.sleep(0.01)
    locked = call(*command, "-d", folder)
    assert locked.status == 2 and "in use by another process" in locked.err
    os.kill(child.pid, signal.SIGINT)
    (tmp_path / "go").touch()
    child.join()
    assert child.exitcode == 128 + signal.SIGINT
    assert "train.py: SIGINT: saved in epoch 2" in (tmp_path / "printed").read_text()
    last, clean = (load_checkpoint(find_checkpoint(folder / SOURCE, "last", kind)) for kind in ("paper", "clean"))
    weights, twin = last["model"]["state_dict"], clean["model"]["state_dict"]  # of the same step
    assert all(torch.equal(weights[name], twin[name]) for name in weights if "running" not in name)
    assert not torch.equal(weights["1.layers.1.running_mean"], twin["1.layers.1.running_mean"])
    assert "continuing in epoch" in good(*command, "-d", folder)
    same_runs(folder / SOURCE, whole / SOURCE)


def test_a_run_with_a_damaged_latest_checkpoint_resumes_from_the_previous_one(whole, tmp_path):
    run = copy_source(whole, tmp_path)
    (run / "summary.json").unlink()
    latest = run / "checkpoints" / "checkpoint_latest.pt"
    latest.write_bytes(latest.read_bytes()[:-500])
    assert "going on from" in good(*COMMANDS["train"][0], "-d", tmp_path)
    same_runs(run, whole / SOURCE)


def test_a_full_disk_leaves_the_last_good_checkpoint_and_one_sentence(whole, tmp_path):
    """A limit on the size of files stands for it: after two epochs checkpoints no longer fit."""
    command, real, count = COMMANDS["train"][0], RunFolder.write_rows, itertools.count(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, rows):
        real(self, rows)
        if next(count) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_rows", full)
        try:
            done = call(*command, "-d", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.status == 2 and "a limit keeps files from growing" in done.err, done
    assert "the last checkpoint is intact" in done.err and done.err.count("\n") == 1
    folder = tmp_path / SOURCE
    assert load_checkpoint(folder / "checkpoints" / "checkpoint_latest.pt")["training"]["epoch"] == 1
    assert not list(folder.rglob("*.partial"))
    good(*command, "-d", tmp_path)  # there is room again
    same_runs(folder, whole / SOURCE)


def test_a_folder_that_disappears_or_is_read_only_is_refused_in_one_sentence(tmp_path, monkeypatch):
    real = RunFolder.write_rows
    monkeypatch.setattr(RunFolder, "write_rows", lambda self, rows: shutil.rmtree(self.path) or real(self, rows))
    done = call(*COMMANDS["train"][0], "-d", tmp_path)
    assert done.status == 2 and "No such file" in done.err and done.err.count("\n") == 1
    if os.path.isdir("/sys/kernel"):  # where not even root may make a folder
        assert "no permission" in refused(*COMMANDS["train"][0], "-d", "/sys/runs")
