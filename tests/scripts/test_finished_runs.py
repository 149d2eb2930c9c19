"""What train.py, extraction.py and distill.py leave when they have finished, and what they say where it is damaged."""

import json
import re
import shutil
import sys

import pytest
import torch
from commands import ROOT, call, good, refused, rows_of, summary, tree
from small_runs import BASE, BENIGN, SOURCE, STEAL, TRAIN

from utils.data.sets import load_data
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model
from utils.system.files import sha256_of_file
from utils.training.metrics import accuracy
from utils.watermark.trigger_files import read_triggers

RUNS = {  # of `world`: folder -> role, and a key of its summary with its value
    BENIGN: ("benign", "objective", "none"), BASE: ("source", "objective", "base"),
    SOURCE: ("source", "objective", "margin"), f"{SOURCE}/extraction": ("surrogate", "attack", "soft"),
    f"{SOURCE}/extraction_hard": ("surrogate", "attack", "hard"),
    f"{SOURCE}/extraction_reg": ("surrogate", "attack", "reg"),
    f"{SOURCE}/distillation": ("surrogate", "attack", "distill"),
}
MARGIN = ("-tt", "margin", *TRAIN, "-ep", 2)
HARD = (*STEAL, "-at", "hard", "-admsg", "_hard", "--teacher-bn", "clean")
BEST, LATEST = "checkpoints/checkpoint_nat_best.pt", "checkpoints/checkpoint_latest.pt"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A benign model, an ERM and a margin source, and the surrogates of the last; nobody writes to it."""
    folder = tmp_path_factory.mktemp("world")
    good("train", "-d", folder, *MARGIN)
    good("train", "-d", folder, "-tt", "none", *TRAIN)
    good("train", "-d", folder, "-tt", "base", *TRAIN)
    (folder / "soft.txt").write_text(
        good("extraction", "-e", folder, *STEAL, "-at", "soft", "--benign", folder / BENIGN))
    good("extraction", "-e", folder, *HARD)
    good("extraction", "-e", folder, *STEAL, "-at", "reg", "-admsg", "_reg", "-dmt", "res18")
    good("distill", "-e", folder, *STEAL, "-tt", "margin")
    return folder


@pytest.fixture
def copied(world, tmp_path):
    """A copy of the margin source and its surrogates, to be damaged."""
    return shutil.copytree(world / SOURCE, tmp_path / SOURCE)


@pytest.mark.parametrize("name", RUNS)
def test_run_folder_holds_settings_log_rows_checkpoints_and_summary(world, name):
    (role, key, value), folder = RUNS[name], world / name
    s, epochs = summary(folder), 2 if name == SOURCE else 1
    wanted = {"role": role, key: value, "dataset": "digits", "width": 2, "seed": 0, "epochs": epochs,
              "trigger_size": 10, "model": "res18" if name.endswith("_reg") else "vgg11"}
    assert s | wanted == s and 1 <= s["chosen_epoch"] <= epochs
    assert (s["clean"] is not None) == (role == "source")
    for figures in filter(None, (s, s["clean"])):
        assert 0 <= figures["test_accuracy"] <= 1 and 0 <= figures["trigger_hits"] <= figures["trigger_size"]
        assert {"T1_conservative", "T3", "p_subset"} <= set(figures["log10_p"]) and figures["log10_p"]["T1"] <= 0
    files = {"run.json", "metrics.jsonl", "output.log", "summary.json"}
    files |= set() if role == "surrogate" else {"trigger.png", "triggers.pt"}
    assert files <= {p.name for p in folder.iterdir()}
    names = {"init", "latest", "nat_best", "query_best"}
    names |= {f"{name}_clean" for name in names - {"init"}} if role == "source" else set()
    # after two epochs or more, the checkpoint before the latest stays too
    assert {p.stem.removeprefix("checkpoint_") for p in (folder / "checkpoints").iterdir()} - {"previous"} == names
    about = json.loads((folder / "run.json").read_text())
    assert {"settings", "command", "git_commit", "device", "device_name", "python", "torch", "numpy"} <= set(about)
    assert about["settings"]["width"] == 2 and " ".join(about["command"]) in (folder / "output.log").read_text()
    assert [row["epoch"] for row in rows_of(folder)] == list(range(1, epochs + 1))
    for row in rows_of(folder):
        assert {"loss", "lr", "val_accuracy", "trigger_accuracy", "seconds", "images_per_second"} <= set(row)
        assert ("clean_val_accuracy" in row) == (role == "source")
    checkpoint = torch.load(folder / BEST, weights_only=True)
    assert checkpoint["about"]["classes"] == [str(i) for i in range(10)]
    assert ("query_model" in checkpoint) == (role != "surrogate")  # the thief has no trigger set


def test_the_table_has_a_row_for_each_model(world):
    lines = (world / "soft.txt").read_text().splitlines()
    for name in ("source margin", "source margin, clean statistics", "surrogate soft", f"benign {BENIGN}"):
        assert any(line.startswith(name) for line in lines), name
    assert any("/10" in line for line in lines)
    s, source = summary(world / SOURCE / "extraction"), summary(world / SOURCE)
    assert s["log10_p"]["T3"] is not None and s["log10_p"]["p_subset"] is not None  # a benign model was named
    assert [row["model"].split()[0] for row in s["rows"]] == ["source", "source", "surrogate", "benign"]
    assert s["rows"][-1]["log10_p"]["T3"] is None  # it would be compared with itself
    for figures, row in zip((source, source["clean"]), s["rows"]):
        assert all(row[k] == figures[k] for k in ("test_accuracy", "trigger_hits", "trigger_size"))
        assert row["log10_p"]["T1"] == figures["log10_p"]["T1"]
    last = summary(world / SOURCE / "distillation")["rows"]
    assert len([row for row in last if row["model"].startswith("surrogate")]) == 4  # all four surrogates so far


def test_accuracies_are_those_of_test_images_and_of_validation_images_without_triggers(world):
    data, triggers = load_data("digits"), read_triggers(world / SOURCE / "triggers.pt", 10)
    left = data.held_out.pick([i for i, k in enumerate(data.held_out.indices.tolist()) if k not in triggers.sources])
    right = lambda path, of: accuracy(read_model(path), of.images, of.labels)
    for name in (SOURCE, BENIGN):
        assert summary(world / name)["test_accuracy"] == right(world / name, data.test)
    twin = find_checkpoint(world / SOURCE, "val", "clean")
    assert summary(world / SOURCE)["clean"]["test_accuracy"] == right(twin, data.test)
    for run in (world / SOURCE, world / SOURCE / "extraction"):
        assert rows_of(run)[-1]["val_accuracy"] == right(run / LATEST, left) and len(left.labels) < 143


def test_select_last_copies_and_reports_the_last_checkpoints(copied):
    said = good("extraction", "-e", copied.parent, *STEAL, "--select", "last", "-ep", 2, "-admsg", "_last")
    assert "steals the checkpoint of --select last; the source's own figures are of val" in said
    s, settings = (json.loads((copied / "extraction_last" / f"{name}.json").read_text()) for name in ("summary", "run"))
    assert settings["settings"]["source_sha256"] == sha256_of_file(copied / LATEST) and s["chosen_epoch"] == 2


def test_a_copy_starts_anew_and_steals_the_checkpoint_that_teacher_bn_names(world):
    """Not from the weights that the source began with, though both have --seed 0: a thief does not know them."""
    weights = [load_checkpoint(world / SOURCE / folder / "checkpoints/checkpoint_init.pt")["model"]["state_dict"]
               for folder in ("", "extraction")]
    assert not torch.equal(*(of["1.layers.0.weight"] for of in weights))
    for name, twin in (("extraction", ""), ("extraction_hard", "_clean")):
        settings = json.loads((world / SOURCE / name / "run.json").read_text())["settings"]
        assert settings["source_sha256"] == sha256_of_file(world / SOURCE / f"checkpoints/checkpoint_nat_best{twin}.pt")


def test_a_finished_run_is_reported_and_not_repeated_and_one_of_other_settings_is_refused(world):
    before = {p: p.stat().st_mtime_ns for p in world.rglob("*.pt")}
    out = good("train", "-d", world, *MARGIN)
    assert "is finished" in out and "source margin" in out
    out = good("extraction", "-e", world, *HARD)
    assert "is finished" in out and "surrogate hard" in out
    said = refused("train", "-d", world, *MARGIN, "--lr", 0.05)
    assert "lr was 0.1, is 0.05" in said and "-msg" in said and "--overwrite" in said
    said = refused("extraction", "-e", world, *STEAL, "-at", "hard")
    assert "attack was 'soft', is 'hard'" in said and "-admsg" in said
    assert before == {p: p.stat().st_mtime_ns for p in world.rglob("*.pt")}


def test_the_recipe_that_ships_a_model_writes_the_one_that_was_reported(world, tmp_path, monkeypatch):
    recipe = re.search(r"To ship a model.*?```\n(.*?)```", (ROOT / "docs/differences.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["-", str(world / SOURCE)])
    exec(recipe, {})
    good("utils.verify", "claim", world / SOURCE, "--suspect", "model.onnx", "--trust-owner", "--json", "claim.json")
    report, s = json.loads((tmp_path / "claim.json").read_text()), summary(world / SOURCE)
    assert report["hits"] == s["trigger_hits"]
    assert report["tests"]["T1p"]["log10_p"] == pytest.approx(s["log10_p"]["T1p"], abs=1e-3)


def test_sources_that_are_damaged_or_contradict_the_flags_are_refused(world, tmp_path):
    whole = (world / SOURCE / BEST).read_bytes()
    for name, content, flags, words in (
        (SOURCE, None, (), [BEST]), (SOURCE, whole[: len(whole) // 2], (), [BEST]),
        (SOURCE, (world / SOURCE / "extraction" / BEST).read_bytes(), (), ["no trigger set"]),
        (BASE, whole, ("-tt", "base"), ["-tt base", "-tt margin"]),
        ("digits_res18_margin_10_", whole, ("-tmt", "res18"), ["-tmt res18", "-tmt vgg11"]),
    ):
        path = tmp_path / name / BEST
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
        before = tree(tmp_path)
        said = refused("extraction", "-e", tmp_path, *STEAL, *flags)
        assert all(word in said for word in words) and tree(tmp_path) == before
    said = refused("extraction", "-e", world, *STEAL, "-tt", "none", "--teacher-bn", "clean", "-admsg", "_n")
    assert "checkpoint_nat_best_clean.pt" in said and "--bn-stats paper" in said


@pytest.mark.parametrize("name, content, words", [
    ("run.json", b'{"settings": null}', "run.json is damaged"),
    ("metrics.jsonl", b"\xff\xfe\0", "or remove it, which loses its rows alone"),
    ("metrics.jsonl", b"{}", "is damaged"), (LATEST, None, "not this run's last checkpoint"),
    (LATEST, b"cut", "train your own again with --overwrite"), (LATEST, b"", "it is empty: restore it, name an")])
def test_damaged_files_of_an_unfinished_run_are_named(name, content, words, copied):
    (copied / "summary.json").unlink()
    (copied / "checkpoints/checkpoint_previous.pt").unlink()
    (copied / name).write_bytes((copied / BEST).read_bytes() if content is None else content)
    done = call("train", "-d", copied.parent, *MARGIN)
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1


def test_a_run_that_has_lost_rows_and_its_summary_is_reported_as_before(copied):
    before, metrics = summary(copied), copied / "metrics.jsonl"
    for rows in (metrics.read_text().splitlines(keepends=True)[-1:], []):
        (copied / "summary.json").unlink()
        metrics.write_text("".join(rows))
        good("train", "-d", copied.parent, *MARGIN)
        assert summary(copied) == before


def test_a_finished_run_whose_model_is_gone_is_trained_again_by_overwrite(copied):
    (copied / BEST).unlink()
    done = call("train", "-d", copied.parent, *MARGIN)
    assert done.status == 2 and "restore it, or train the run again with --overwrite" in done.err
    good("train", "-d", copied.parent, *MARGIN, "--overwrite")


def test_a_table_lists_the_surrogates_of_this_source_and_says_which_summary_is_damaged(copied):
    other = copied / "extraction_hard" / "summary.json"
    other.write_text(other.read_text().replace(summary(other.parent)["source_sha256"], "0" * 64))
    (copied / "extraction" / "summary.json").write_text("")
    odd = copied / "distillation" / "summary.json"
    odd.write_text(json.dumps(summary(odd.parent) | {"select": "best"}))
    narrow = [flag for flag in STEAL if flag not in ("--width", 2)]  # the width is the source's
    said = good("extraction", "-e", copied.parent, *narrow, "-at", "soft", "-admsg", "_beside")
    assert "left out of the table: " in said and "extraction/summary.json is damaged" in said
    assert "distillation: its summary.json is damaged" in said
    s = summary(copied / "extraction_beside")
    assert s["role"] == "surrogate" and not any("hard" in row["model"] for row in s["rows"])
    assert any("reg" in row["model"] for row in s["rows"]) and s["width"] == 2


def test_a_missing_run_is_looked_for(copied):
    assert "there are digits_vgg11_margin_10_" in refused("extraction", "-d", copied.parent, *STEAL, "-nq", 11)
    copied.rename(f"{copied}seed7")
    said = refused("extraction", "-d", copied.parent, *STEAL)
    assert "pass -msg " in said and "seed7" in said


def test_that_a_copy_is_made_of_other_images_than_the_sources_is_said(copied):
    """Where nobody asked for fewer images than the source had."""
    settings = json.loads((copied / "run.json").read_text())
    flags = ("extraction", "-e", copied.parent, *(flag for flag in STEAL if flag not in ("--train-size", 128)))
    warning = "warning: these are not the images that the source was trained on"
    assert warning not in good(*flags, "-admsg", "_same")
    settings["settings"]["data_sha256"] = "0" * 64
    (copied / "run.json").write_text(json.dumps(settings))
    assert warning in good(*flags, "-admsg", "_others")
