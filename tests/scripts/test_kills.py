"""SIGKILL at random moments of training, distillation and extraction: the same command resumes and ends bit-equal.

`KILLS=25 python -m pytest tests/scripts/test_kills.py -s` kills 25 times; by default it is four times. Children are
forked, which saves each of them the import of torch.
"""

import importlib
import os
import random
import shutil
import signal
import sys
import time
import traceback

import pytest
import torch
from comparing import same_runs

KILLS = int(os.environ.get("KILLS", "4"))
COMMON = "-dt digits -nq 8 --width 2 --train-size 320 --batch-size 16 -ep 5 --device cpu --select last"
SOURCE = "digits_vgg11_margin_8_"
COMMANDS = {
    "train": ("train", f"{COMMON} -mt vgg11 --trigger-batch 4 --steps 2", SOURCE),
    "distill": ("distill", f"{COMMON} -tmt vgg11 -dmt vgg11", f"{SOURCE}/distillation"),
    "extraction": ("extraction", f"{COMMON} -tmt vgg11 -dmt vgg11 -at soft", f"{SOURCE}/extraction"),
}


def start(name, folder) -> int:
    """Fork a child that runs the command in `folder`; returns its process id."""
    script, flags, _ = COMMANDS[name]
    main = importlib.import_module(script).main
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        said = os.open(folder.parent / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = [f"{script}.py", "-d", str(folder), *flags.split()]
        main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish(name, folder) -> None:
    """Run the command to its end."""
    status = os.waitstatus_to_exitcode(os.waitpid(start(name, folder), 0)[1])
    assert status == 0, (folder.parent / "said").read_text()[-2000:]


def test_every_command_killed_at_random_moments_ends_bit_equal(tmp_path):
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # forked children have no other threads
    rng, whole = random.Random(5), tmp_path / "whole"
    importlib.import_module("extraction"), importlib.import_module("distill")
    share = {name: KILLS // 3 + (i < KILLS % 3) for i, name in enumerate(("extraction", "distill", "train"))}
    counts, ends = dict.fromkeys(COMMANDS, 0), 0
    for name, (_, _, run) in COMMANDS.items():
        began = time.perf_counter()
        finish(name, whole)
        lasts = time.perf_counter() - began
        while counts[name] < share[name]:
            folder = tmp_path / "killed"
            shutil.rmtree(folder, ignore_errors=True)
            if name != "train":  # the same source for both
                shutil.copytree(whole / SOURCE, folder / SOURCE, ignore=shutil.ignore_patterns("dist*", "extr*"))
            for _ in range(min(4, share[name] - counts[name])):
                child = start(name, folder)
                time.sleep(rng.uniform(0, lasts))
                os.kill(child, signal.SIGKILL)
                ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert ended in (0, -signal.SIGKILL), ended
                counts[name] += ended != 0
                if ended == 0:
                    break
            finish(name, folder)
            ends += 1
            same_runs(folder / run, whole / run)
    print(f"\nsurvived {counts} kills; {ends} runs ended bit-equal")


def test_a_run_with_a_damaged_latest_checkpoint_resumes_from_the_previous_one(tmp_path):
    finish("train", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
    run = tmp_path / "hurt" / SOURCE
    (run / "summary.json").unlink()
    latest = run / "checkpoints" / "checkpoint_latest.pt"
    latest.write_bytes(latest.read_bytes()[:-500])
    finish("train", tmp_path / "hurt")
    assert "going on from" in (run / "output.log").read_text()
    same_runs(run, tmp_path / "whole" / SOURCE)


def refused(prepare, folder, flags, capfd) -> str:
    """The one sentence with which train.py, run in a fork after `prepare`, ends at status 2."""
    child = os.fork()
    if not child:
        try:
            sys.argv = ["train.py", "-d", str(folder), *flags.split()]
            prepare()
            importlib.import_module("train").main()
            os._exit(0)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code)
        finally:
            os._exit(77)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    err = capfd.readouterr().err
    assert status == 2 and err.count("\n") == 1, (status, err)
    return err


@pytest.mark.parametrize("limit", [30_000])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_one_sentence(limit, tmp_path, capfd):
    """A limit on the size of files stands for the full disk: checkpoints no longer fit."""
    import resource

    from utils.runs.checkpoints import load_checkpoint
    from utils.runs.folder import RunFolder

    _, flags, run = COMMANDS["train"]

    def fill():
        real, count = RunFolder.write_rows, [0]

        def full(self, rows):
            real(self, rows)
            count[0] += 1
            if count[0] == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        RunFolder.write_rows = full

    err = refused(fill, tmp_path, flags, capfd)
    assert "a limit keeps files from growing" in err and "the last checkpoint is intact" in err
    folder = tmp_path / run
    assert load_checkpoint(folder / "checkpoints" / "checkpoint_latest.pt")["training"]["epoch"] == 2
    assert not list(folder.rglob("*.partial"))
    finish("train", tmp_path)  # there is room again


def test_a_folder_that_disappears_or_is_read_only_is_refused_in_one_sentence(tmp_path, capfd):
    _, flags, _ = COMMANDS["train"]

    def gone():
        from utils.runs.folder import RunFolder

        real = RunFolder.write_rows

        def remove(self, rows):
            shutil.rmtree(self.path)
            real(self, rows)

        RunFolder.write_rows = remove

    assert "No such file" in refused(gone, tmp_path / "runs", flags, capfd)
    shutil.rmtree(tmp_path / "runs")
    if os.path.isdir("/sys/kernel"):  # where not even root may make a folder
        assert "no permission" in refused(lambda: None, "/sys/runs", flags, capfd)
