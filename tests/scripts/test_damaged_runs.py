"""Damaged run folders and sources: named in one sentence, and nothing is written."""

import io
import shutil

import torch
from commands import call, good, refused, summary, tree
from small_runs import BASE, SOURCE, STEAL, TRAIN


def broken_source(tmp_path, content: bytes):
    path = tmp_path / SOURCE / "checkpoints" / "checkpoint_nat_best.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_damaged_checkpoints_of_a_source_are_refused(world, tmp_path):
    whole = (world / SOURCE / "checkpoints" / "checkpoint_nat_best.pt").read_bytes()
    (tmp_path / SOURCE / "checkpoints").mkdir(parents=True)
    assert "checkpoint_nat_best.pt" in refused("extraction", "-e", tmp_path, *STEAL)  # missing
    (tmp_path / SOURCE / "checkpoints").rmdir()
    (tmp_path / SOURCE).rmdir()
    foreign = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, foreign)
    path = broken_source(tmp_path, b"")
    for content in (b"", whole[: len(whole) // 2], b"a text", foreign.getvalue()):
        path.write_bytes(content)
        before = tree(tmp_path)
        assert str(path) in refused("extraction", "-e", tmp_path, *STEAL)
        assert tree(tmp_path) == before
    path.write_bytes(whole)
    surrogate = (world / SOURCE / "extraction" / "checkpoints" / "checkpoint_nat_best.pt").read_bytes()
    path.write_bytes(surrogate)
    assert "no trigger set" in refused("extraction", "-e", tmp_path, *STEAL)


def test_sources_that_contradict_the_flags_are_refused(world, tmp_path):
    whole = (world / SOURCE / "checkpoints" / "checkpoint_nat_best.pt").read_bytes()
    for name, flags, words in (
        (BASE, ("-tt", "base"), ["-tt base", "-tt margin"]),
        ("digits_res18_margin_10_", ("-tmt", "res18"), ["-tmt res18", "-tmt vgg11"]),
    ):
        path = tmp_path / name / "checkpoints" / "checkpoint_nat_best.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(whole)
        before = tree(tmp_path)
        said = refused("extraction", "-e", tmp_path, *STEAL, *flags)
        assert all(word in said for word in words)
        assert tree(tmp_path) == before
    said = refused("extraction", "-e", world, *STEAL, "-tt", "none", "--teacher-bn", "clean", "-admsg", "_n")
    assert "checkpoint_nat_best_clean.pt" in said and "--bn-stats paper" in said


def test_a_damaged_summary_of_another_attack_does_no_harm(world, tmp_path):
    shutil.copytree(world / SOURCE, tmp_path / SOURCE)
    (tmp_path / SOURCE / "extraction" / "summary.json").write_text("")
    (tmp_path / SOURCE / "summary.json").write_text('{"role": "surrogate"}')
    said = good("extraction", "-e", tmp_path, *STEAL, "-at", "soft", "-admsg", "_beside")
    assert "left out of the table: " in said and "extraction/summary.json is damaged" in said
    assert summary(tmp_path / SOURCE / "extraction_beside")["role"] == "surrogate"


def test_damaged_run_files_are_named(world, tmp_path):
    train = ("-d", tmp_path, "-tt", "margin", *TRAIN, "-ep", 2)
    for name, content, word in (("run.json", b'{"settings": null}', "run.json is damaged"),
                                ("metrics.jsonl", b"\xff\xfe\0", "metrics.jsonl is damaged")):
        shutil.rmtree(tmp_path / SOURCE, ignore_errors=True)
        shutil.copytree(world / SOURCE, tmp_path / SOURCE)
        (tmp_path / SOURCE / "summary.json").unlink()
        (tmp_path / SOURCE / name).write_bytes(content)
        done = call("train", *train)
        assert done.status == 2 and word in done.err and done.err.count("\n") == 1
    shutil.rmtree(tmp_path / SOURCE)
    shutil.copytree(world / SOURCE, tmp_path / SOURCE)
    (tmp_path / SOURCE / "summary.json").unlink()
    folder = tmp_path / SOURCE / "checkpoints"
    shutil.copy(folder / "checkpoint_nat_best.pt", folder / "checkpoint_latest.pt")
    done = call("train", *train)
    assert done.status == 2 and "not this run's last checkpoint" in done.err and done.err.count("\n") == 1
