"""Traces of triggers in answers, against hand-worked numbers; and the command on a copy of digits."""

import copy
import json
import math

import pytest
import torch
from commands import good, summary
from torch import nn

from utils.analyze import assigned_margin, class_lift, copied_errors, entropy
from utils.analyze import main as analyze_main
from utils.data.sets import load_data
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.training.metrics import accuracy, predict
from utils.watermark.trigger_files import read_triggers


def test_entropy_and_margin_by_hand():
    logits = torch.tensor([[0.0, 0.0, -1e9], [math.log(3.0), 0.0, -1e9]])
    assert entropy(logits).tolist() == pytest.approx([math.log(2), math.log(4) - 0.75 * math.log(3)])
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert assigned_margin(logits, torch.tensor([0, 1])).tolist() == [1.0, -2.0]


def test_copied_errors_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 0])
    source = torch.tensor([0, 0, 1, 1, 2])
    stolen = torch.tensor([0, 3, 1, 0, 2])
    assert copied_errors(source, stolen, labels) == {
        "source_wrong": 0.6, "same_wrong_label": pytest.approx(2 / 3), "wrong_where_source_is_right": 0.5}
    assert copied_errors(labels, stolen, labels)["same_wrong_label"] is None


def test_class_lift_by_hand():
    """Class 0: 0.6, 0.3, 0.1; class 1: 0.2, 0.7, 0.1. A trigger of class 0 labelled 1: 0.3 against 0.1 of label 2.

    One of class 1 has its true label, and does not count.
    """
    probability = torch.tensor([[0.5, 0.4, 0.1], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    labels = torch.tensor([0, 0, 1, 2])
    lift = class_lift(probability, labels, torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert lift == {"assigned_in_own_class": pytest.approx(0.3), "other_in_own_class": pytest.approx(0.1)}


def test_traces_of_a_copy_of_digits(tmp_path, capsys):
    """Of a copy of the source's own statistics, and ("first") of clean ones in its last ten BatchNorm layers."""
    flags = ("-d", tmp_path, "-dt", "digits", "-tt", "margin", "--width", 2, "-nq", 8, "--train-size", 256,
             "--batch-size", 64, "-ep", 1, "--device", "cpu")
    source, found = tmp_path / "digits_res18_margin_8_", {}
    good("train", *flags, "-mt", "res18")
    own, clean = (read_model(find_checkpoint(source, None, statistics)) for statistics in ("paper", "clean"))
    mixed = copy.deepcopy(own)
    layers = [[layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)] for model in (mixed, clean)]
    for of, other in list(zip(*layers))[10:]:
        assert not torch.equal(of.running_mean, other.running_mean)
        of.load_state_dict(other.state_dict())
    test, triggers = load_data("digits").test, read_triggers(source / "triggers.pt", 10)
    for name, statistics, model in (("extraction", "paper", own), ("extraction_f", "first", mixed)):
        good("extraction", *flags, "-tmt", "res18", "-dmt", "res18", "--teacher-bn", statistics, "-admsg",
             name.removeprefix("extraction"))
        analyze_main(["traces", str(source / name), "--device", "cpu"])
        found[name] = json.loads((source / name / "traces.json").read_text())
        margin = float(assigned_margin(predict(model, triggers.images), triggers.labels).mean())
        assert found[name]["statistics"] == statistics and found[name]["source_margin"] == pytest.approx(margin, 1e-5)
        assert found[name]["source_accuracy"] == pytest.approx(accuracy(model, test.images, test.labels))
        of_copy = summary(source / name)
        assert found[name]["copy_hits"] == of_copy["trigger_hits"]
        assert found[name]["copy_accuracy"] == pytest.approx(of_copy["test_accuracy"])
        assert 0 <= found[name]["assigned_near_for_copy"] <= 1 and 0 < found[name]["entropy"] <= math.log(10)
    # other statistics change logits, if not always answers
    assert found["extraction"]["source_margin"] != pytest.approx(found["extraction_f"]["source_margin"], rel=1e-4)
    analyze_main(["recalibrated", str(source / "extraction"), "--device", "cpu"])
    again = json.loads((source / "extraction" / "recalibrated.json").read_text())
    assert (again["hits"], again["triggers"]) == (found["extraction"]["copy_hits"], 8)
    assert 0 <= again["recalibrated_hits"] <= 8
    with pytest.raises(SystemExit) as ended:
        analyze_main(["traces", str(source), "--device", "cpu"])
    assert ended.value.code == 2 and "traces compares a copy with its source" in capsys.readouterr().err
