"""SIGKILL at random moments of training, distillation and extraction: the same command resumes and ends bit-equal.

`KILLS=25 python -m pytest tests/scripts/test_kills.py -s` kills 25 times; by default it is three times. Children are
forks of a server that has imported the scripts, which saves each of them the import of torch.
"""

import importlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
from commands import ROOT
from comparing import same_runs

from utils.runs.checkpoints import load_checkpoint
from utils.runs.folder import RunFolder

KILLS = int(os.environ.get("KILLS", "3"))
COMMON = "-dt digits -nq 8 --width 2 --train-size 160 --batch-size 16 -ep 4 --device cpu --select last"
SOURCE = "digits_vgg11_margin_8_"
COMMANDS = {
    "train": ("train", f"{COMMON} -mt vgg11 --trigger-batch 4 --steps 2", SOURCE),
    "distill": ("distill", f"{COMMON} -tmt vgg11 -dmt vgg11", f"{SOURCE}/distillation"),
    "extraction": ("extraction", f"{COMMON} -tmt vgg11 -dmt vgg11 -at soft", f"{SOURCE}/extraction"),
}


SERVER = multiprocessing.get_context("forkserver")  # forks of this process could not train after others' threads
SERVER.set_forkserver_preload(["train", "distill", "extraction"])


@pytest.fixture(scope="module", autouse=True)
def server():
    """Started where it finds the scripts: it does not search where this process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        forkserver.ensure_running()


def run_command(script, flags, said, prepare=None):
    """In a child: the command, after `prepare()`; what it prints goes into the file `said`."""
    file = open(said, "a", buffering=1)
    sys.stdout = sys.stderr = file
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    sys.argv = [f"{script}.py", *flags]
    if prepare:
        prepare()
    importlib.import_module(script).main()


def start(name, folder, prepare=None):
    """A process that runs the command in `folder`."""
    script, flags, _ = COMMANDS[name]
    arguments = (script, ["-d", str(folder), *flags.split()], said(folder), prepare)
    process = SERVER.Process(target=run_command, args=arguments)
    process.start()
    return process


def said(folder):
    """The file into which commands in `folder` print."""
    return Path(folder).parent / "said" if os.access(Path(folder).parent, os.W_OK) else Path(os.devnull)


def finish(name, folder) -> None:
    """Run the command to its end."""
    process = start(name, folder)
    process.join()
    assert process.exitcode == 0, said(folder).read_text()[-2000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder of the unbroken runs, {command: seconds that it takes})."""
    folder, lasts = tmp_path_factory.mktemp("kills") / "whole", {}
    for name in COMMANDS:
        began = time.perf_counter()
        finish(name, folder)
        lasts[name] = time.perf_counter() - began
    return folder, lasts


def test_every_command_killed_at_random_moments_ends_bit_equal(whole, tmp_path):
    (whole, lasts), rng = whole, random.Random(5)
    share = {name: KILLS // 3 + (i < KILLS % 3) for i, name in enumerate(("extraction", "distill", "train"))}
    counts, ends = dict.fromkeys(COMMANDS, 0), 0
    for name, (_, _, run) in COMMANDS.items():
        while counts[name] < share[name]:
            folder = tmp_path / "killed"
            shutil.rmtree(folder, ignore_errors=True)
            if name != "train":  # the same source for both
                shutil.copytree(whole / SOURCE, folder / SOURCE, ignore=shutil.ignore_patterns("dist*", "extr*"))
            for _ in range(min(4, share[name] - counts[name])):
                child = start(name, folder)
                time.sleep(rng.uniform(0, lasts[name]))
                child.kill()
                child.join()
                ended = child.exitcode
                assert ended in (0, -signal.SIGKILL), ended
                counts[name] += ended != 0
                if ended == 0:
                    break
            finish(name, folder)
            ends += 1
            same_runs(folder / run, whole / run)
    print(f"\nsurvived {counts} kills; {ends} runs ended bit-equal")


def test_a_run_with_a_damaged_latest_checkpoint_resumes_from_the_previous_one(whole, tmp_path):
    run = tmp_path / "hurt" / SOURCE
    shutil.copytree(whole[0] / SOURCE, run, ignore=shutil.ignore_patterns("dist*", "extr*"))
    (run / "summary.json").unlink()
    latest = run / "checkpoints" / "checkpoint_latest.pt"
    latest.write_bytes(latest.read_bytes()[:-500])
    finish("train", tmp_path / "hurt")
    assert "going on from" in (run / "output.log").read_text()
    same_runs(run, whole[0] / SOURCE)


def refused(prepare, folder, tmp_path) -> str:
    """The one sentence with which train.py, run after `prepare`, ends at status 2."""
    printed = tmp_path / "refused"
    process = SERVER.Process(target=run_command, args=(
        "train", ["-d", str(folder), *COMMANDS["train"][1].split()], printed, prepare))
    process.start()
    process.join()
    *_, last = lines = printed.read_text().splitlines()
    assert process.exitcode == 2 and not any("Traceback" in line for line in lines), lines
    return last


def fill_the_disk(limit=30_000):
    """A limit on the size of files stands for the full disk: after three epochs checkpoints no longer fit."""
    real, count = RunFolder.write_rows, [0]

    def full(self, rows):
        real(self, rows)
        count[0] += 1
        if count[0] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    RunFolder.write_rows = full


def remove_the_folder():
    """The run folder disappears after the first epoch."""
    real = RunFolder.write_rows

    def remove(self, rows):
        shutil.rmtree(self.path)
        real(self, rows)

    RunFolder.write_rows = remove


def test_a_full_disk_leaves_the_last_good_checkpoint_and_one_sentence(tmp_path):
    sentence = refused(fill_the_disk, tmp_path / "runs", tmp_path)
    assert "a limit keeps files from growing" in sentence and "the last checkpoint is intact" in sentence
    folder = tmp_path / "runs" / SOURCE
    assert load_checkpoint(folder / "checkpoints" / "checkpoint_latest.pt")["training"]["epoch"] == 2
    assert not list(folder.rglob("*.partial"))
    finish("train", tmp_path / "runs")  # there is room again


def test_a_folder_that_disappears_or_is_read_only_is_refused_in_one_sentence(tmp_path):
    assert "No such file" in refused(remove_the_folder, tmp_path / "runs", tmp_path)
    shutil.rmtree(tmp_path / "runs")
    if os.path.isdir("/sys/kernel"):  # where not even root may make a folder
        assert "no permission" in refused(None, "/sys/runs", tmp_path)
