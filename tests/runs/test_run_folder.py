"""Run folders: other settings, overwriting, damage, links, and two processes."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from comparing import same_runs
from tiny_fit import EPOCHS, Death, tiny_fit

from utils.ownership.results import hashes_of_source
from utils.runs.folder import RunFolder
from utils.system.files import sha256_of_file
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")


def test_other_settings_are_refused_before_anything_is_changed(unbroken_run, tmp_path):
    run = RunFolder(unbroken_run, {"seed": 1, "lr": 0.1}, "another -msg")
    with pytest.raises(Refusal, match="seed was 0, is 1.*another -msg or --overwrite"):
        run.check(False)
    run.check(True)
    # these say where a run is computed and written, not what it computes
    RunFolder(unbroken_run, {"seed": 0, "lr": 0.1, "device": "cuda", "dir": "elsewhere"}, "").check(False)
    later = RunFolder(unbroken_run, {"seed": 0, "lr": 0.1, "new": 0.0}, "")  # a flag of a later version, not passed
    later.check(False)
    assert later.settings == {"seed": 0, "lr": 0.1}  # the settings of a commitment stay what they were
    with pytest.raises(Refusal, match="new was None, is 0.1"):
        RunFolder(unbroken_run, {"seed": 0, "lr": 0.1, "new": 0.1}, "").check(False)


def test_a_run_killed_while_overwriting_never_continues_old_files(unbroken_run, tmp_path, monkeypatch):
    real = Path.unlink
    for fatal in range(11, 0, -1):
        path, count = tmp_path / str(fatal), [0]
        tiny_fit(path, lr=0.5)
        for name in ("summary.json", "di.json"):
            (path / name).write_text("{}")

        def unlink(self, missing_ok=False, count=count, fatal=fatal):
            count[0] += 1
            if count[0] > fatal:
                raise Death
            real(self, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
        with pytest.raises(Death) as death:
            tiny_fit(path, overwrite=True)
        del death
        monkeypatch.setattr(Path, "unlink", real)
        assert not (path / "summary.json").exists()
        with pytest.raises(Refusal, match="other settings"):
            tiny_fit(path)
    tiny_fit(path, overwrite=True)  # from scratch, although nearly all old files are there
    assert not (path / "di.json").exists()
    tiny_fit(path)  # the settings are the new ones
    same_runs(path, unbroken_run)


def test_what_is_no_run_of_ours_or_damaged_is_refused_and_overwrite_helps(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"model": {}}, run / "checkpoints" / "checkpoint_latest.pt")
    for words in ("without a run.json, as of another program", "damaged"):
        with pytest.raises(Refusal, match=f"{words}.*--overwrite"):
            tiny_fit(run)
        tiny_fit(run, overwrite=True)
        (run / "run.json").write_text('{"settings": ')


def test_a_second_process_is_refused_and_the_lock_ends_with_its_holder(tmp_path):
    def hook(step):
        if step == 2:
            for overwrite in (False, True):  # nor may the folder be removed
                with pytest.raises(Refusal, match="in use by another process"):
                    tiny_fit(tmp_path / "run", overwrite=overwrite)

    run = tiny_fit(tmp_path / "run", hook)
    assert len(run.rows()) == EPOCHS
    del run
    tiny_fit(tmp_path / "run")


@pytest.mark.parametrize("number, mode, said", [
    (errno.EPERM, 0o755, True), (errno.EPERM, 0o700, False), (errno.ENOSYS, 0o755, True), (None, 0o755, True)])
def test_a_folder_that_cannot_be_closed_to_others_is_warned_of(number, mode, said, tmp_path, monkeypatch):
    """As on vfat, which refuses or ignores it."""
    def chmod(self, mode):
        if number:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "chmod", chmod)
    (tmp_path / "run").mkdir(mode=mode)
    tiny_fit(tmp_path / "run", epochs=1)
    warning = f"others may be able to read {tmp_path / 'run'}, which is to hold secrets"
    assert (warning in (tmp_path / "run" / "output.log").read_text()) == said
    monkeypatch.setattr(Path, "chmod", lambda self, mode: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    with pytest.raises(OSError, match="read-only"):
        tiny_fit(tmp_path / "run", epochs=1)


NAMES = (".lock", "output.log", "metrics.jsonl", "run.json", "summary.json", ".run.json.partial", "checkpoints",
         "checkpoints/checkpoint_latest.pt", "checkpoints/checkpoint_nat_best.pt",
         "checkpoints/.checkpoint_latest.pt.partial")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_through_no_link(name, overwrite, unbroken_run, tmp_path):
    folder, other = shutil.copytree(unbroken_run, tmp_path / "run"), tmp_path / "other"
    if name == "checkpoints":
        (folder / name).rename(other)
    else:
        (folder / name).unlink(missing_ok=True)
        other.write_bytes(b"mine")
    (folder / name).symlink_to(other)
    content = lambda: sorted((p.name, p.read_bytes()) for p in (other.iterdir() if other.is_dir() else [other]))
    before = content()
    run = RunFolder(folder, {"seed": 0, "lr": 0.1}, "another -msg")
    for call in (lambda: run.check(overwrite), lambda: run.open(torch.device("cpu"), overwrite)):
        with pytest.raises(Refusal, match=f"{re.escape(name)} is a symbolic link; .*remove it"):
            call()
    assert content() == before and (folder / name).is_symlink()


def test_a_folder_of_runs_or_a_run_may_be_a_link(unbroken_run, tmp_path):
    (tmp_path / "disk" / "other").mkdir(parents=True)
    (tmp_path / "experiments").symlink_to("disk")
    (tmp_path / "link").symlink_to("disk/other")
    for path in (tmp_path / "experiments" / "run", tmp_path / "link"):
        tiny_fit(path)
        same_runs(path, unbroken_run)


def test_a_run_keeps_what_it_says_of_the_program_that_trained_it(tmp_path, monkeypatch, capsys):
    """Also where another one goes on with it or reports it, which is said."""
    path, of = tmp_path / "run", lambda commit: lambda device: {"git_commit": commit}
    words = f"{path} was begun by commit old, this is new: its figures are not those of this program alone"
    for commit, epochs in (("old", 1), ("new", 2)):
        monkeypatch.setattr("utils.runs.folder.describe_process", of(commit))
        tiny_fit(path, epochs=epochs)
    assert json.loads((path / "run.json").read_text())["git_commit"] == "old"
    assert capsys.readouterr().out.count(words) == 1
    (path / "summary.json").write_text("{}")
    for commit, said in (("new", True), ("old", False), (None, False)):
        monkeypatch.setattr("utils.runs.folder.describe_process", of(commit))
        RunFolder(path, {"seed": 0, "lr": 0.1}, "").open(torch.device("cpu"), False)
        assert (words in capsys.readouterr().out) == said


def test_copies_of_the_chosen_and_the_last_checkpoint_and_of_their_clean_twins_are_the_sources(unbroken_run):
    """Not those of other epochs, which nobody can copy by a flag."""
    names = ("nat_best", "latest", "nat_best_clean", "latest_clean")
    wanted = {sha256_of_file(unbroken_run / "checkpoints" / f"checkpoint_{name}.pt") for name in names}
    assert set(hashes_of_source(unbroken_run)) == wanted and len(wanted) == 4
