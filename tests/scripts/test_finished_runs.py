"""What train.py, extraction.py and distill.py leave when they have finished, and what they say where it is damaged."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import ROOT, call, good, refused, summary, tree
from small_runs import BASE, BENIGN, SOURCE, STEAL, TRAIN

from utils.answers.answers import Classes
from utils.answers.ask import answers_of_onnx
from utils.data.sets import load_data
from utils.ownership.results import finished_surrogates
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model
from utils.system.files import sha256_of_file
from utils.training.metrics import predict
from utils.watermark.trigger_files import read_triggers

RUNS = {  # of `world`: folder -> role, and a key of its summary with its value
    BENIGN: ("benign", "objective", "none"), BASE: ("source", "objective", "base"),
    SOURCE: ("source", "objective", "margin"), f"{SOURCE}/extraction": ("surrogate", "attack", "soft"),
    f"{SOURCE}/extraction_hard": ("surrogate", "attack", "hard"),
    f"{SOURCE}/extraction_reg": ("surrogate", "attack", "reg"),
    f"{SOURCE}/distillation": ("surrogate", "attack", "distill"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A benign model, an ERM and a margin source, and the surrogates of the last."""
    folder = tmp_path_factory.mktemp("world")
    good("train", "-d", folder, "-tt", "margin", *TRAIN, "-ep", 2)
    good("train", "-d", folder, "-tt", "none", *TRAIN)
    good("train", "-d", folder, "-tt", "base", *TRAIN)
    (folder / "soft.txt").write_text(
        good("extraction", "-e", folder, *STEAL, "-at", "soft", "--benign", folder / BENIGN))
    good("extraction", "-e", folder, *STEAL, "-at", "hard", "-admsg", "_hard", "--teacher-bn", "clean")
    good("extraction", "-e", folder, *STEAL, "-at", "reg", "-admsg", "_reg", "-dmt", "res18")
    good("distill", "-e", folder, *STEAL, "-tt", "margin")
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_run_folder_holds_settings_log_rows_checkpoints_and_summary(world, name):
    role, key, value = RUNS[name]
    s = summary(world / name)
    assert s["role"] == role and s[key] == value
    assert s["dataset"] == "digits" and s["width"] == 2 and s["seed"] == 0
    assert s["model"] == ("res18" if name.endswith("_reg") else "vgg11")
    assert s["epochs"] == (2 if name == SOURCE else 1) and 1 <= s["chosen_epoch"] <= s["epochs"]
    keeps_clean = role == "source"
    assert (s["clean"] is not None) == keeps_clean
    for figures in [s] + ([s["clean"]] if keeps_clean else []):
        assert 0 <= figures["test_accuracy"] <= 1
        assert 0 <= figures["trigger_hits"] <= figures["trigger_size"] == 10
        assert {"T1", "T1_conservative", "T3", "p_subset"} <= set(figures["log10_p"])
        assert all(p is None or p <= 0 for p in figures["log10_p"].values())
        assert figures["log10_p"]["T1"] is not None
    folder = world / name
    files = {"run.json", "metrics.jsonl", "output.log", "summary.json"}
    files |= set() if role == "surrogate" else {"trigger.png", "triggers.pt"}
    assert files <= {p.name for p in folder.iterdir()}
    wanted = {f"checkpoint_{n}.pt" for n in ("init", "latest", "nat_best", "query_best")}
    if role == "source":
        wanted |= {f"checkpoint_{n}_clean.pt" for n in ("latest", "nat_best", "query_best")}
    # after two epochs or more, the checkpoint before the latest stays too
    assert {p.name for p in (folder / "checkpoints").iterdir()} - {"checkpoint_previous.pt"} == wanted
    about = json.loads((folder / "run.json").read_text())
    assert {"settings", "command", "git_commit", "device", "device_name", "python", "torch", "numpy"} <= set(about)
    assert about["settings"]["width"] == 2
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


def test_saved_triggers_record_their_source_images(world):
    saved = load_checkpoint(world / SOURCE / "triggers.pt")
    assert {"images", "labels", "true_labels", "sources"} <= set(saved)
    digits = load_data("digits")
    position = {int(i): p for p, i in enumerate(digits.held_out.indices)}
    for i, (source,) in enumerate(saved["sources"].tolist()):
        assert torch.equal(saved["images"][i], digits.held_out.images[position[source]])
        assert saved["true_labels"][i, 0] == digits.held_out.labels[position[source]] != saved["labels"][i]


def test_the_table_has_a_row_for_each_model(world):
    lines = (world / "soft.txt").read_text().splitlines()
    for name in ("source margin", "source margin, clean statistics", "surrogate soft", f"benign {BENIGN}"):
        assert sum(line.startswith(name) for line in lines) >= 1, name
    assert any("/10" in line for line in lines)
    s = summary(world / SOURCE / "extraction")
    assert s["log10_p"]["T3"] is not None and s["log10_p"]["p_subset"] is not None  # a benign model was named
    assert [row["model"].split()[0] for row in s["rows"]] == ["source", "source", "surrogate", "benign"]
    assert s["rows"][-1]["log10_p"]["T3"] is None  # it would be compared with itself
    last = summary(world / SOURCE / "distillation")["rows"]
    assert len([row for row in last if row["model"].startswith("surrogate")]) == 4  # all four surrogates so far
    source = summary(world / SOURCE)
    for figures, row in zip((source, source["clean"]), s["rows"]):
        assert all(row[k] == figures[k] for k in ("test_accuracy", "trigger_hits", "trigger_size"))
        assert row["log10_p"]["T1"] == figures["log10_p"]["T1"]


def test_a_copy_starts_anew_and_steals_the_checkpoint_that_teacher_bn_names(world):
    source = load_checkpoint(world / SOURCE / "checkpoints" / "checkpoint_nat_best.pt")["model"]["state_dict"]
    start = load_checkpoint(world / SOURCE / "extraction" / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    assert not torch.equal(source["1.layers.0.weight"], start["1.layers.0.weight"])
    for name, twin in (("extraction", ""), ("extraction_hard", "_clean")):
        settings = json.loads((world / SOURCE / name / "run.json").read_text())["settings"]
        assert settings["source_sha256"] == sha256_of_file(world / SOURCE / f"checkpoints/checkpoint_nat_best{twin}.pt")


def test_a_finished_run_is_reported_and_not_repeated(world):
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


def test_the_recipe_that_ships_a_model_writes_the_one_that_was_reported(world, tmp_path):
    recipe = re.search(r"To ship a model.*?```\n(.*?)```", (ROOT / "docs/differences.md").read_text(), re.DOTALL)[1]
    subprocess.run([sys.executable, "-", world / SOURCE], input=recipe, text=True, cwd=tmp_path, check=True,
                   env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    triggers = read_triggers(world / SOURCE / "triggers.pt", 10)
    answers = answers_of_onnx(tmp_path / "model.onnx", triggers.images, Classes([str(i) for i in range(10)]))
    model = read_model(find_checkpoint(world / SOURCE))
    assert np.allclose(answers.probabilities, predict(model, triggers.images).softmax(1), atol=1e-4)
    assert (answers.labels == triggers.labels.numpy()).sum() == summary(world / SOURCE)["trigger_hits"]


# ---- damaged runs, and other flags ----------------------------------------------------------------------------------


def test_scripts_refuse_other_settings(world):
    before = tree(world)
    said = refused("train", "-d", world, "-tt", "margin", *TRAIN, "-ep", 2, "--lr", 0.05)
    assert "lr was 0.1, is 0.05" in said and "-msg" in said and "--overwrite" in said
    said = refused("extraction", "-e", world, *STEAL, "-at", "hard")
    assert "attack was 'soft', is 'hard'" in said and "-admsg" in said
    assert tree(world) == before


def test_damaged_checkpoints_of_a_source_are_refused(world, tmp_path):
    whole = (world / SOURCE / "checkpoints" / "checkpoint_nat_best.pt").read_bytes()
    (tmp_path / SOURCE / "checkpoints").mkdir(parents=True)
    assert "checkpoint_nat_best.pt" in refused("extraction", "-e", tmp_path, *STEAL)  # missing
    path = tmp_path / SOURCE / "checkpoints" / "checkpoint_nat_best.pt"
    for content in (b"", whole[: len(whole) // 2], b"a text"):
        path.write_bytes(content)
        before = tree(tmp_path)
        assert str(path) in refused("extraction", "-e", tmp_path, *STEAL)
        assert tree(tmp_path) == before
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


def test_a_copy_takes_the_width_of_its_source_and_a_missing_run_is_looked_for(world):
    narrow = [flag for flag in STEAL if flag not in ("--width", 2)]
    good("extraction", "-d", world, *narrow, "-at", "soft", "-admsg", "_width", "--no-flip")
    assert summary(world / SOURCE / "extraction_width")["width"] == 2
    refusal = call("extraction", "-d", world, *STEAL, "-tt", "base", "-nq", 11)
    assert refusal.status == 2 and "there are digits_vgg11_base_10_" in refusal.err
    (world / f"{SOURCE}seed7").mkdir()
    (world / f"{SOURCE}seed7" / "run.json").write_text("{}")
    (world / SOURCE).rename(world / "away")
    try:
        refusal = call("extraction", "-d", world, *STEAL)
    finally:
        (world / "away").rename(world / SOURCE)
    assert refusal.status == 2 and "pass -msg " in refusal.err and "seed7" in refusal.err
