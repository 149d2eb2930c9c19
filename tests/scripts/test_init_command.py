"""`train.py --init`: the watermark embedded into a model that exists."""

import json

import pytest
import torch
from commands import good, refused
from small_runs import BASE, BENIGN, SOURCE, TRAIN

from utils.runs.checkpoints import find_checkpoint, load_checkpoint

pytestmark = pytest.mark.usefixtures("quick")


def test_a_trained_model_is_fine_tuned(tmp_path):
    good("train", "-d", tmp_path, "-tt", "none", *TRAIN, "-ep", 2)
    file = find_checkpoint(tmp_path / BENIGN)
    command = ("train", "-d", tmp_path, "-tt", "margin", *TRAIN, "--init", file, "--lr", 1e-9, "--weight-decay", 0,
               "--bn-stats", "clean")
    printed = good(*command)
    assert f"starting from the weights in {file}" in printed
    assert "test accuracy of these weights before the training: " in printed
    assert "WARNING: the source itself is not claimed (p = 10^" in printed  # a rate of 1e-9 embeds nothing
    weights_of = lambda run: load_checkpoint(find_checkpoint(tmp_path / run))["model"]["state_dict"]
    before, after = weights_of(BENIGN), weights_of(SOURCE)
    for name, weight in before.items():
        if "running" not in name and not name.endswith("tracked"):
            assert torch.allclose(after[name], weight, atol=1e-6), name
    assert json.loads((tmp_path / SOURCE / "run.json").read_text())["settings"]["init_sha256"]
    # running statistics too are the old model's when training starts
    start = load_checkpoint(tmp_path / SOURCE / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    assert start.keys() == before.keys() and all(torch.equal(start[name], before[name]) for name in before)

    # other weights under the same name are other settings
    good("train", "-d", tmp_path, "-tt", "none", *TRAIN, "-ep", 2, "--seed", 5, "--overwrite")
    assert "init-sha256" in refused(*command)


def test_a_label_model_may_be_plain_weights_of_the_architecture(tmp_path):
    good("train", "-d", tmp_path, "-tt", "none", *TRAIN)
    weights = load_checkpoint(find_checkpoint(tmp_path / BENIGN))["model"]["state_dict"]
    plain = tmp_path / "plain.pt"
    torch.save({name.removeprefix("1."): tensor for name, tensor in weights.items() if name.startswith("1.")}, plain)
    command = ("train", "-d", tmp_path, "-tt", "base", *TRAIN, "--label-strategy", "plausible", "--carriers", "0.1")
    said = refused(*command, "--label-model", plain, "-mt", "res18")
    assert "--label-model" in said and "pass the -mt and --width" in said
    sets = []
    for model in (plain, tmp_path / BENIGN):
        assert "carriers: " in good(*command, "--label-model", model, "-msg", model.name[:5])
        sets.append(load_checkpoint(tmp_path / f"{BASE}{model.name[:5]}" / "triggers.pt"))
    assert torch.equal(sets[0]["candidates"], sets[1]["candidates"]) and torch.equal(*(s["labels"] for s in sets))
