"""Checkpoints are data: nothing in them is run, and damaged ones are refused."""

import json
import shutil

import pytest
import torch

import models
from models import outside
from utils.runs import checkpoints
from utils.runs.weights import read_initial_weights
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")


def test_plain_weights_are_no_model_of_another_run(tmp_path):
    torch.save(models.build("res18", 10, width=2).state_dict(), tmp_path / "weights.pt")
    for name in ("weights.pt", "weights.safetensors", "model.onnx"):
        (tmp_path / name).touch()
        with pytest.raises(Refusal, match=f"--suspect .*{name} does not say what it is of, as plain weights do not"):
            checkpoints.read_other("--suspect", tmp_path / name, (10, 32))
    (tmp_path / "weights.safetensors").write_bytes((1 << 30).to_bytes(8, "little"))
    with pytest.raises(Refusal, match="its header is too long"):
        read_initial_weights(tmp_path / "weights.safetensors")
    with pytest.raises(Refusal, match="a run's name is empty"):
        checkpoints.find_checkpoint("")


def test_find_checkpoint_takes_the_one_that_the_summary_names(unbroken_run, tmp_path):
    run = shutil.copytree(unbroken_run, tmp_path / "run")
    assert checkpoints.find_checkpoint(run).name == "checkpoint_nat_best.pt"  # while there is no summary
    for select, name in (("last", "latest"), ("val", "nat_best")):
        (run / "summary.json").write_text(json.dumps({"select": select}))
        assert checkpoints.find_checkpoint(run) == run / "checkpoints" / f"checkpoint_{name}.pt"


@pytest.mark.parametrize("name, kind, fits", [
    ("1.linear.bias", torch.int64, False), ("1.linear.bias", torch.bool, False), ("1.linear.bias", torch.float64, True),
    ("1.bn1.num_batches_tracked", torch.float32, True), ("1.bn1.num_batches_tracked", torch.int32, True),
])
def test_weights_are_whole_numbers_only_where_the_models_are(name, kind, fits):
    checkpoint = checkpoints.pack_checkpoint(models.build("res18", 3, width=2))
    weights = checkpoint["model"]["state_dict"]
    weights[name] = weights[name].to(kind)
    if fits:
        assert checkpoints.restore_model(checkpoint, "one.pt").num_classes == 3
    else:
        with pytest.raises(Refusal, match=f"one.pt does not hold a model.*{name} is {kind}"):
            checkpoints.restore_model(checkpoint, "one.pt")


@pytest.mark.parametrize("spoil", [
    lambda e: e.update(type="os:system"), lambda e: e.update(classes=10**12), lambda e: e.update(size=10**6),
    lambda e: e.update(size=8),
    lambda e: e.pop("classes"), lambda e: e.update(type=["tv:resnet18"]), lambda e: e.update(classes=6),
])
def test_a_file_that_lies_about_its_architecture_is_refused_and_imports_nothing(spoil, unnamed):
    checkpoint = checkpoints.pack_checkpoint(models.build("tv:shufflenet_v2_x0_5", 5))
    spoil(checkpoint["model"])
    with pytest.raises(Refusal, match="one.pt (does not hold|holds a model of)"):
        checkpoints.restore_model(checkpoint, "one.pt")
    assert not outside.named


def test_no_model_is_read_from_a_run_that_holds_a_link(unbroken_run, tmp_path):
    """A stranger's link in place of an attack's folder would let extraction.py write wherever it leads."""
    folder = shutil.copytree(unbroken_run, tmp_path / "run")
    (folder / "extraction").symlink_to(tmp_path)
    with pytest.raises(Refusal, match="run/extraction is a symbolic link; .*remove it"):
        checkpoints.find_checkpoint(folder)
    (folder / "extraction").unlink()
    link = tmp_path / "link.pt"  # what a user names may be a link
    link.symlink_to(checkpoints.find_checkpoint(folder))
    assert checkpoints.find_checkpoint(link) == link


def test_a_model_of_one_class_is_none(tmp_path):
    with pytest.raises(Refusal, match="fewer than two classes"):
        checkpoints.restore_model(checkpoints.pack_checkpoint(models.build("res18", 1, width=2)), "one.pt")


@pytest.mark.parametrize("about", [7, [1], "x", None])
def test_what_a_file_says_of_its_training_is_nothing_where_it_is_no_dict(about, tmp_path):
    torch.save({"model": {}, "about": about}, tmp_path / "one.pt")
    assert checkpoints.load_checkpoint(tmp_path / "one.pt")["about"] == {}
