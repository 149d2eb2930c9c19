"""The three scripts as a user types them: real commands, small digits, bad input.

Where the exit status and the words suffice, `main` is called inside this process: importing torch takes seconds.
"""

import contextlib
import importlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT, run
from test_data import damage, photos
from test_run import official, same_runs

from utils.analyze import main as analyze_main
from utils.data.sets import load_data
from utils.ownership.suspects import finished_surrogates
from utils.runs.checkpoints import load_checkpoint
from utils.system.files import sha256_of_file
from utils.watermark.trigger_files import unpack_source

DATA = ("-dt", "digits", "-nq", 10, "--train-size", 256, "--batch-size", 64, "--width", 4, "--device", "cpu")
TRAIN = (*DATA, "-mt", "res18", "--trigger-batch", 4, "--steps", 2, "-ep", 1)
STEAL = (*DATA, "-tmt", "res18", "-dmt", "res18", "-ep", 1)
SOURCE, BENIGN = "digits_res18_margin_10_", "digits_res18_none_10_"


class Done(NamedTuple):
    status: int
    out: str
    err: str


def call(script, *flags) -> Done:
    """Run a script's main in this process."""
    main, out, err = importlib.import_module(script).main, io.StringIO(), io.StringIO()
    argv, sys.argv, status = sys.argv, [f"{script}.py", *map(str, flags)], 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = argv
    return Done(status, out.getvalue(), err.getvalue())


def good(script, *flags) -> str:
    done = call(script, *flags)
    assert done.status == 0, done.err
    return done.out


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def tree(folder) -> set:
    return set(folder.rglob("*"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One of everything: benign, ERM and margin sources, and the surrogates of the last."""
    folder = tmp_path_factory.mktemp("world")
    run("train.py", "-d", folder, "-tt", "margin", *TRAIN, "-ep", 2, timeout=600)
    good("train", "-d", folder, "-tt", "none", *TRAIN)
    good("train", "-d", folder, "-tt", "base", *TRAIN)
    done = run("extraction.py", "-e", folder, *STEAL, "-at", "soft", "--benign", folder / BENIGN, timeout=600)
    (folder / "soft.txt").write_text(done.stdout)
    good("extraction", "-e", folder, *STEAL, "-at", "hard", "-admsg", "_hard", "--teacher-bn", "clean")
    good("extraction", "-e", folder, *STEAL, "-at", "reg", "-admsg", "_reg", "-dmt", "vgg11")
    run("distill.py", "-e", folder, *STEAL, "-tt", "margin", timeout=600)
    return folder


# ---- what exists at the end ------------------------------------------------------------------------------------

RUNS = {
    BENIGN: ("benign", "objective", "none"), "digits_res18_base_10_": ("source", "objective", "base"),
    SOURCE: ("source", "objective", "margin"), f"{SOURCE}/extraction": ("surrogate", "attack", "soft"),
    f"{SOURCE}/extraction_hard": ("surrogate", "attack", "hard"),
    f"{SOURCE}/extraction_reg": ("surrogate", "attack", "reg"),
    f"{SOURCE}/distillation": ("surrogate", "attack", "distill"),
}


@pytest.mark.parametrize("name", RUNS)
def test_summary(world, name):
    role, key, value = RUNS[name]
    s = summary(world / name)
    assert s["role"] == role and s[key] == value
    assert s["dataset"] == "digits" and s["width"] == 4 and s["seed"] == 0
    assert s["model"] == ("vgg11" if name.endswith("_reg") else "res18")
    assert s["epochs"] == (2 if name == SOURCE else 1) and 1 <= s["chosen_epoch"] <= s["epochs"]
    keeps_clean = role == "source"
    assert (s["clean"] is not None) == keeps_clean
    for figures in [s] + ([s["clean"]] if keeps_clean else []):
        assert 0 <= figures["test_accuracy"] <= 1
        assert 0 <= figures["trigger_hits"] <= figures["trigger_size"] == 10
        assert {"T1", "T1_conservative", "T3", "p_subset"} <= set(figures["log10_p"])
        assert all(p is None or p <= 0 for p in figures["log10_p"].values())
        assert figures["log10_p"]["T1"] is not None


@pytest.mark.parametrize("name", RUNS)
def test_run_folder_explains_itself(world, name):
    folder = world / name
    role = RUNS[name][0]
    files = {"run.json", "metrics.jsonl", "output.log", "summary.json"}
    files |= set() if role == "surrogate" else {"trigger.png", "triggers.pt"}
    assert files <= {p.name for p in folder.iterdir()}
    wanted = {f"checkpoint_{n}.pt" for n in ("init", "latest", "nat_best", "query_best")}
    if role == "source":
        wanted |= {f"checkpoint_{n}_clean.pt" for n in ("latest", "nat_best", "query_best")}
    # of two epochs and more, the latest checkpoint but one stays too
    assert {p.name for p in (folder / "checkpoints").iterdir()} - {"checkpoint_previous.pt"} == wanted
    about = json.loads((folder / "run.json").read_text())
    assert {"settings", "command", "git_commit", "device", "device_name", "python", "torch", "numpy"} <= set(about)
    assert about["settings"]["width"] == 4
    assert " ".join(about["command"]) in (folder / "output.log").read_text()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, summary(folder)["epochs"] + 1))
    for row in rows:
        assert all(0 <= v <= 1 for k, v in row.items() if "accuracy" in k or k == "agreement")
        assert {"loss", "lr", "val_accuracy", "trigger_accuracy", "seconds", "images_per_second"} <= set(row)
        assert ("clean_val_accuracy" in row) == (role == "source")
    checkpoint = load_checkpoint(folder / "checkpoints" / "checkpoint_nat_best.pt")
    assert checkpoint["about"]["classes"] == [str(i) for i in range(10)]
    assert ("query_model" in checkpoint) == (role != "surrogate")  # the thief has no trigger set
    for path in (folder / "checkpoints").iterdir():
        torch.load(path, weights_only=True)


def test_saved_triggers_say_where_they_come_from(world):
    saved = load_checkpoint(world / SOURCE / "triggers.pt")
    assert {"images", "labels", "true_labels", "sources"} <= set(saved)

    digits = load_data("digits")
    position = {int(i): p for p, i in enumerate(digits.held_out.indices)}
    for i, (source,) in enumerate(saved["sources"].tolist()):
        assert torch.equal(saved["images"][i], digits.held_out.images[position[source]])
        assert saved["true_labels"][i, 0] == digits.held_out.labels[position[source]] != saved["labels"][i]


def test_the_table(world):
    lines = (world / "soft.txt").read_text().splitlines()
    for name in ("source margin", "source margin, clean statistics", "surrogate soft", f"benign {BENIGN}"):
        assert sum(line.startswith(name) for line in lines) >= 1, name
    assert any("/10" in line for line in lines)
    s = summary(world / SOURCE / "extraction")
    assert s["log10_p"]["T3"] is not None and s["log10_p"]["p_subset"] is not None  # a benign model was named
    assert [row["model"].split()[0] for row in s["rows"]] == ["source", "source", "surrogate", "benign"]
    assert s["rows"][-1]["log10_p"]["T3"] is None  # it would be compared with itself
    last = summary(world / SOURCE / "distillation")["rows"]
    assert len([row for row in last if row["model"].startswith("surrogate")]) == 4  # all four thefts so far


def test_source_figures_of_the_table_are_those_of_its_summary(world):
    source, rows = summary(world / SOURCE), summary(world / SOURCE / "extraction")["rows"]
    for figures, row in zip((source, source["clean"]), rows):
        assert all(row[k] == figures[k] for k in ("test_accuracy", "trigger_hits", "trigger_size"))
        assert row["log10_p"]["T1"] == figures["log10_p"]["T1"]


def test_a_surrogate_does_not_start_from_the_source(world):
    source = load_checkpoint(world / SOURCE / "checkpoints" / "checkpoint_nat_best.pt")["model"]["state_dict"]
    start = load_checkpoint(world / SOURCE / "extraction" / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    assert not torch.equal(source["1.conv1.weight"], start["1.conv1.weight"])


def test_teacher_bn_chooses_the_checkpoint_that_is_stolen(world):

    for name, twin in (("extraction", ""), ("extraction_hard", "_clean")):
        settings = json.loads((world / SOURCE / name / "run.json").read_text())["settings"]
        assert settings["source_sha256"] == sha256_of_file(world / SOURCE / f"checkpoints/checkpoint_nat_best{twin}.pt")


def test_a_finished_run_says_so(world):
    before = {p: p.stat().st_mtime_ns for p in (world / SOURCE / "checkpoints").iterdir()}
    out = good("train", "-d", world, "-tt", "margin", *TRAIN, "-ep", 2)
    assert "is finished" in out and "source margin" in out
    assert before == {p: p.stat().st_mtime_ns for p in (world / SOURCE / "checkpoints").iterdir()}
    out = good("extraction", "-e", world, *STEAL, "-at", "hard", "-admsg", "_hard", "--teacher-bn", "clean")
    assert "is finished" in out and "surrogate hard" in out


def test_surrogates_of_another_source_are_not_listed(world):

    source = world / SOURCE
    assert source / "extraction" in finished_surrogates(source)
    summary_path = source / "extraction" / "summary.json"
    kept = summary_path.read_text()
    try:
        summary_path.write_text(kept.replace(json.loads(kept)["source_sha256"], "0" * 64))
        assert source / "extraction" not in finished_surrogates(source)
    finally:
        summary_path.write_text(kept)


def test_the_same_flags_on_other_images_are_another_run(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        photos(tmp_path / name, seed=seed)
    flags = ("-d", tmp_path / "runs", "-dt", "folder", "-nq", 2, "-mt", "res18", "--width", 4, "-ep", 1,
             "--batch-size", 8, "-tt", "none")
    good("train", *flags, "--data-dir", tmp_path / "one")
    done = call("train", *flags, "--data-dir", tmp_path / "two")
    assert done.status == 2 and "data-sha256" in done.err and "-msg" in done.err


def test_paper_and_clean_give_the_same_weights_through_the_command(world):
    good("train", "-d", world, "-tt", "margin", *TRAIN, "-ep", 2, "--bn-stats", "clean", "-msg", "clean")
    paper, twin, clean = (load_checkpoint(world / name)["model"]["state_dict"] for name in (
        f"{SOURCE}/checkpoints/checkpoint_latest.pt", f"{SOURCE}/checkpoints/checkpoint_latest_clean.pt",
        f"{SOURCE}clean/checkpoints/checkpoint_latest.pt"))
    for name in paper:
        if "running" in name:
            assert not torch.equal(paper[name], clean[name])
            assert torch.allclose(twin[name], clean[name], rtol=1e-4, atol=1e-6)
        elif "num_batches" not in name:
            assert torch.equal(paper[name], clean[name]) and torch.equal(twin[name], clean[name])


@pytest.mark.parametrize("strategy", ["highest", "lowest"])
def test_label_strategy(world, strategy):
    flags = ("-tt", "margin", "--label-strategy", strategy, "--label-model", world / BENIGN, "-msg", strategy)
    good("train", "-d", world, *TRAIN, *flags)
    saved = load_checkpoint(world / f"{SOURCE}{strategy}" / "triggers.pt")
    path = world / BENIGN / "checkpoints" / "checkpoint_nat_best.pt"
    model, _ = unpack_source(load_checkpoint(path), path)
    ranked = model(saved["images"].float() / 255).argsort(dim=1, descending=strategy == "highest")
    for row, label, (true,) in zip(ranked.tolist(), saved["labels"].tolist(), saved["true_labels"].tolist()):
        assert label == [c for c in row if c != true][0]
    assert summary(world / f"{SOURCE}{strategy}")["log10_p"]["T1"] is None  # labels were not drawn: no T1


def test_mixup_and_the_name_of_the_folder(world):
    good("train", "-d", world, "-tt", "base", *TRAIN, "-nm", 2, "-qt", "stochastic", "-nq", 5, "-msg", "A")
    folder = world / "digits_res18_stochastic_base_5_2_A"
    saved = load_checkpoint(folder / "triggers.pt")
    assert saved["true_labels"].shape == (5, 2) and not (saved["labels"][:, None] == saved["true_labels"]).any()
    assert summary(folder)["log10_p"]["T1"] is not None


def test_select_last(world):
    out = good("extraction", "-e", world, *STEAL, "-at", "soft", "-admsg", "_last", "--select", "last")
    assert "surrogate soft" in out
    assert summary(world / SOURCE / "extraction_last")["chosen_epoch"] == 1


def test_an_official_checkpoint_can_be_stolen_from(tmp_path):
    folder = tmp_path / "digits_res18_margin_6_"
    (folder / "checkpoints").mkdir(parents=True)
    official(folder / "checkpoints" / "checkpoint_nat_best.pt")
    out = good("extraction", "-e", tmp_path, *STEAL, "-nq", 6, "-at", "soft")
    assert "surrogate soft" in out and "/6" in out
    s = summary(folder / "extraction")
    assert s["trigger_size"] == 6 and s["log10_p"]["T1"] is not None


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """A run on a user's images, with one damaged picture among them."""
    folder = tmp_path_factory.mktemp("folder")
    data = damage(photos(folder / "pets", n=40))
    photos(folder / "cars", parts=(".",), classes=("a", "b", "c"), n=20)
    photos(folder / "birds", parts=(".",), classes=("a", "b", "c"), n=40)
    flags = ("-dt", "folder", "--data-dir", data, "-nq", 3, "--batch-size", 16, "--width", 4, "--device", "cpu")
    flags += ("-ep", 1)
    bad = call("train", "-d", folder / "runs", *flags, "-mt", "res18", "-tt", "margin", "--trigger-batch", 4)
    assert bad.status == 2 and not (folder / "runs").exists()
    assert "3 of 163 images" in bad.err and "train/cat/cut.jpg" in bad.err
    flags += ("--skip-bad-images",)
    out = good("train", "-d", folder / "runs", *flags, "-mt", "res18", "-tt", "margin", "--trigger-batch", 4)
    assert "skipped 3 unreadable images" in out
    return folder, flags


def test_folder_end_to_end(own_images):
    folder, flags = own_images
    source = folder / "runs" / "folder_res18_margin_3_"
    assert summary(source)["dataset"] == "folder" and summary(source)["train_size"] == 72
    assert load_checkpoint(source / "checkpoints/checkpoint_nat_best.pt")["about"]["classes"] == ["cat", "dog"]
    assert 0.0 in (summary(source)["log10_p"]["T1"], summary(source)["clean"]["log10_p"]["T1"])  # two classes
    steal = ("-e", folder / "runs", *flags, "-tmt", "res18", "-dmt", "res18")
    # another folder, smaller and with other classes: soft and hard need no labels
    good("extraction", *steal, "-at", "soft", "-dsrc", "folder", "--data-dir-source", folder / "cars")
    s = summary(source / "extraction")
    assert s["dataset"] == s["dataset_source"] == "folder" and s["trigger_size"] == 3
    assert load_checkpoint(source / "extraction/checkpoints/checkpoint_nat_best.pt")["model"]["state_dict"][
        "1.linear.bias"].shape == (2,)
    good("distill", *steal)


def test_labels_of_other_classes_are_refused_where_they_are_needed(own_images):
    folder, flags = own_images
    steal = ("-e", folder / "runs", *flags, "-tmt", "res18", "-dmt", "res18", "-admsg", "_none")
    before = tree(folder)
    for more in (("-dsrc", "folder", "--data-dir-source", folder / "cars"), ("-dsrc", "digits")):
        bad = refused("extraction", *steal, "-at", "reg", *more)
        assert "-dsrc" in bad and "soft or hard" in bad
    bad = refused("extraction", *steal, "--data-dir", folder / "birds")  # not the source's data
    assert "3 classes are not the source's 2" in bad
    bad = refused("distill", *steal, "--data-dir", folder / "birds")
    assert "classes" in bad
    assert {p for p in tree(folder) - before if ".decoded-" not in p.name} == set()


# ---- bad input: one sentence, status 2, no traceback, no folder left ---------------------------------------------


def refused(script, *flags) -> str:
    done = call(script, *flags)
    assert done.status == 2, (done.status, done.out, done.err)
    assert done.err.count("\n") == 1 and done.err.startswith(f"{script}.py: error: ") and done.out == ""
    assert "Traceback" not in done.err
    return done.err


BAD_TRAIN = {
    "more triggers than images": (("-nq", 143), ["-nq 143", "143 held-out", "-nq 142"]),
    "more mixed images than there are": (("-nq", 72, "-nm", 2), ["-nq", "-nm 2"]),
    "mixup of all classes": (("-nm", 10), ["-nm 10", "10 classes"]),
    "no triggers": (("-nq", 0), ["-nq", "at least 1"]),
    "no number": (("-ep", "many"), ["-ep", "whole number"]),
    "rate of zero": (("--lr", 0), ["--lr"]),
    "rate that is none": (("--lr", "nan"), ["--lr"]),
    "rate beyond float32": (("--lr", "1e300"), ["--lr"]),
    "unknown data set": (("-dt", "mnist"), ["mnist", "digits"]),
    "unknown model": (("-mt", "res19"), ["res19", "res18"]),
    "unknown flag": (("--num-triggers", 5), ["--num-triggers"]),
    "shortened flag": (("--reduct", "sum"), ["--reduct"]),
    "batch too large": (("--batch-size", 257), ["--batch-size 257", "256"]),
    "more images than there are": (("--train-size", 1296), ["--train-size 1296", "1295"]),
    "message with a slash": (("-msg", "a/b"), ["'/'"]),
    "labels without a model": (("--label-strategy", "highest"), ["--label-model"]),
    "a model without need": (("--label-model", "somewhere"), ["--label-strategy"]),
    "label model that does not exist": (("--label-strategy", "lowest", "--label-model", "/no/run"), ["/no/run"]),
    "benign model that does not exist": (("--benign", "/no/run"), ["/no/run"]),
    "no folder of images": (("-dt", "folder", "--data-dir", "/no/images"), ["/no/images"]),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_bad_flags_of_train(case, tmp_path):
    flags, words = BAD_TRAIN[case]
    said = refused("train", "-d", tmp_path / "runs", "-tt", "margin", *TRAIN, *flags)
    assert all(word in said for word in words), said
    assert tree(tmp_path) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script, flags", [("train", TRAIN), ("extraction", STEAL), ("distill", STEAL)])
def test_cuda_without_one(script, flags, tmp_path):
    assert "--device cuda" in refused(script, "-d", tmp_path / "runs", *flags, "--device", "cuda")
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("script, flags", [("train", TRAIN), ("extraction", STEAL)])
def test_a_folder_that_cannot_be_made(script, flags, tmp_path):
    (tmp_path / "file").write_text("")
    for more in ((), ("--overwrite",)):
        said = refused(script, "-d", tmp_path / "file" / "runs", *flags, *more)
        assert str(tmp_path / "file") in said
    assert tree(tmp_path) == {tmp_path / "file"}


@pytest.mark.parametrize("make, words", [(lambda r: r.mkdir(), ["no class folders"]),
                                         (lambda r: photos(r, classes=("cat",)), ["only the class cat"]),
                                         (lambda r: [(r / c).mkdir(parents=True) for c in "ab"], ["holds no images"])])
def test_folders_that_are_no_data_set(make, words, tmp_path):
    make(tmp_path / "own")
    before = tree(tmp_path)
    said = refused("train", "-d", tmp_path / "runs", *TRAIN, "-dt", "folder", "--data-dir", tmp_path / "own")
    assert all(word in said for word in [*words, "--data-dir"])
    assert tree(tmp_path) == before


def test_missing_archive_without_a_network(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for dataset, archive in (("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz"),
                             ("svhn", "train_32x32.mat")):
        flags = (*TRAIN, "-dt", dataset, "--data-dir", tmp_path / "data")
        said = refused("train", "-d", tmp_path / "runs", *flags)
        assert archive in said and str(tmp_path / "data") in said and "place it in that folder" in said
        assert tree(tmp_path) == set()


def test_attack_on_a_run_that_does_not_exist(tmp_path):
    for script in ("extraction", "distill"):
        said = refused(script, "-e", tmp_path / "runs", *STEAL, "-msg", "gone")
        assert f"{tmp_path}/runs/digits_res18_margin_10_gone" in said
    assert tree(tmp_path) == set()


def broken_source(tmp_path, content: bytes):
    path = tmp_path / SOURCE / "checkpoints" / "checkpoint_nat_best.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_bad_checkpoints_of_a_source(world, tmp_path):
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


def test_sources_that_are_not_what_the_flags_say(world, tmp_path):
    whole = (world / SOURCE / "checkpoints" / "checkpoint_nat_best.pt").read_bytes()
    for name, flags, words in (
        ("digits_res18_base_10_", ("-tt", "base"), ["-tt base", "-tt margin"]),
        ("digits_res34_margin_10_", ("-tmt", "res34"), ["-tmt res34", "-tmt res18"]),
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


def test_another_attacks_damage_costs_this_one_nothing(world, tmp_path):
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


def test_an_analysis_wants_the_runs_own_images(own_images, capsys):

    folder, other = own_images[0] / "runs" / "folder_res18_margin_3_", own_images[0] / "birds"
    with pytest.raises(SystemExit) as end:
        analyze_main(["energy", str(folder), "--data-dir", str(other)])
    assert end.value.code == 2 and f"--data-dir {other}: these are not the images" in capsys.readouterr().err
    assert not (folder / "energy.json").exists()


def test_other_settings_are_refused(world):
    before = tree(world)
    said = refused("train", "-d", world, "-tt", "margin", *TRAIN, "-ep", 2, "--lr", 0.05)
    assert "lr was 0.1, is 0.05" in said and "-msg" in said and "--overwrite" in said
    said = refused("extraction", "-e", world, *STEAL, "-at", "hard")
    assert "attack was 'soft', is 'hard'" in said and "-admsg" in said
    assert tree(world) == before


def test_models_with_other_classes_are_refused(world, own_images, tmp_path):
    pets = own_images[0] / "runs" / "folder_res18_margin_3_"
    said = refused("train", "-d", tmp_path / "r", *TRAIN, "--label-strategy", "highest", "--label-model", pets)
    assert "--label-model" in said and "2 classes" in said
    said = refused("train", "-d", tmp_path / "r", *TRAIN, "--benign", pets)
    assert f"--benign {pets} is no independent model but the result of 'margin'" in said
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_loss_that_is_not_finite(epochs, tmp_path):
    done = call("train", "-d", tmp_path, "-tt", "margin", *TRAIN, "-ep", epochs, "--lr", "1e30")
    assert done.status == 2 and done.err.count("\n") == 1 and "not finite" in done.err and "--lr" in done.err
    assert not (tmp_path / SOURCE / "summary.json").exists()
    for path in (tmp_path / SOURCE / "checkpoints").iterdir():
        weights = load_checkpoint(path)["model"]["state_dict"]
        assert all(t.isfinite().all() for t in weights.values())
    model, trigger = unpack_source(load_checkpoint(tmp_path / SOURCE / "checkpoints" / "checkpoint_init.pt"), "init")
    assert len(trigger) == 10


# ---- killed and continued ------------------------------------------------------------------------------------------

LONG = ("-tt", "margin", *TRAIN, "--train-size", 512, "-ep", 6)


def begin(folder):
    command = [str(c) for c in (sys.executable, ROOT / "train.py", "-d", folder, *LONG)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process, folder, n, delay):
    """Until the run has written n rows, and then a moment more."""
    path, deadline = folder / SOURCE / "metrics.jsonl", time.monotonic() + 300
    while len(path.read_text().splitlines() if path.exists() else []) < n:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    time.sleep(delay)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run("train.py", "-d", folder, *LONG, timeout=600)
    return folder / SOURCE


def test_killed_at_three_random_moments_a_run_ends_bit_equal(unbroken, tmp_path):
    moments = random.Random(20261122)
    for rows in (1, 2, 3):
        process = begin(tmp_path)
        wait_for_rows(process, tmp_path, rows, moments.uniform(0, 0.3))
        locked = call("train", "-d", tmp_path, *LONG) if rows == 2 else None  # a second process meanwhile
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if locked:
            assert locked.status == 2 and "in use by another process" in locked.err
    done = run("train.py", "-d", tmp_path, *LONG, timeout=600)
    assert "continuing in epoch" in done.stdout
    same_runs(tmp_path / SOURCE, unbroken)
    one, two = summary(tmp_path / SOURCE), summary(unbroken)
    assert one == two


def test_interrupted_inside_an_epoch_a_run_ends_bit_equal(unbroken, tmp_path):
    process = begin(tmp_path)
    wait_for_rows(process, tmp_path, 1, 0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.count("\n") == 1 and "the same command" in err
    assert "continuing in epoch" in good("train", "-d", tmp_path, *LONG)
    same_runs(tmp_path / SOURCE, unbroken)


def test_the_same_seed_twice_is_bit_equal(unbroken, tmp_path):
    good("train", "-d", tmp_path, *LONG)
    same_runs(tmp_path / SOURCE, unbroken)
    good("train", "-d", tmp_path, *LONG, "--seed", 1, "--overwrite", "-ep", 1)
    other = load_checkpoint(tmp_path / SOURCE / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    own = load_checkpoint(unbroken / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    assert not torch.equal(other["1.conv1.weight"], own["1.conv1.weight"])
    assert summary(tmp_path / SOURCE)["seed"] == 1


def test_help_names_every_flag_people_type():
    for script, flags in (
        ("train", "-d --dir -dt --dataset -tt --train-type -mt --model-type -nq --num-query -nm --num-mixup -qt "
         "--query-type -msg --message -ep --epoch -v --variable --device --seed"),
        ("distill", "-e --exp-name -d --dir -dt -dmt --model-type -tmt --teacher-model-type -tt -nq -nm -qt -msg "
         "-admsg --additional-message -a --alpha -t --temp -ep --device --seed"),
        ("extraction", "-e --exp-name -d --dir -dt -dsrc --dataset-source -at --attack -dmt -tmt -tt -nq -nm -qt -msg "
         "-admsg -a --alpha -ep --device --seed"),
    ):
        done = call(script, "--help")
        words = set(done.out.replace(",", " ").split())
        assert done.status == 0 and set(flags.split()) <= words, set(flags.split()) - words
