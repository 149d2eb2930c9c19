"""Traces of triggers in answers, against hand-worked numbers; and the command on a copy of digits."""

import json
import math

import pytest
import torch
from commands import good
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
    copy = torch.tensor([0, 3, 1, 0, 2])
    assert copied_errors(source, copy, labels) == {
        "source_wrong": 0.6, "same_wrong_label": pytest.approx(2 / 3), "wrong_where_source_is_right": 0.5}
    assert copied_errors(labels, copy, labels)["same_wrong_label"] is None


def test_class_lift_by_hand():
    """Class 0: 0.6, 0.3, 0.1; class 1: 0.2, 0.7, 0.1. A trigger of class 0 labelled 1: 0.3 against 0.1 of label 2."""
    probability = torch.tensor([[0.5, 0.4, 0.1], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    labels = torch.tensor([0, 0, 1, 2])
    lift = class_lift(probability, labels, torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert lift == {"assigned": pytest.approx(0.3), "other": pytest.approx(0.1)}  # the second has its true label


def source_under(source, statistics):
    """The source's model under its own statistics, or ("first") under clean ones in its last ten BatchNorm layers."""
    model = read_model(find_checkpoint(source))
    if statistics == "first":
        clean = read_model(find_checkpoint(source, None, "clean"))
        norms = [[m for m in net.modules() if isinstance(m, nn.BatchNorm2d)] for net in (model, clean)]
        assert len(norms[0]) == 20
        for own, other in list(zip(*norms))[10:]:
            assert not torch.equal(own.running_mean, other.running_mean)
            own.load_state_dict(other.state_dict())
    return model


def test_traces_of_a_copy_of_digits(tmp_path, capsys):
    flags = ("-d", tmp_path, "-dt", "digits", "-tt", "margin", "--width", 4, "-nq", 8, "--train-size", 256,
             "--batch-size", 64, "-ep", 1, "--device", "cpu")
    good("train", *flags, "-mt", "res18")
    good("extraction", *flags, "-tmt", "res18", "-dmt", "res18", "-at", "soft")
    source = tmp_path / "digits_res18_margin_8_"
    analyze_main(["traces", str(source / "extraction"), "--device", "cpu"])
    found = json.loads((source / "extraction" / "traces.json").read_text())
    summary = json.loads((source / "extraction" / "summary.json").read_text())
    assert found["copy_hits"] == summary["trigger_hits"] and found["statistics"] == "paper"
    assert found["copy_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert 0 <= found["assigned_near_for_copy"] <= 1 and 0 < found["entropy"] <= math.log(10)
    analyze_main(["recalibrated", str(source / "extraction"), "--device", "cpu"])
    found = json.loads((source / "extraction" / "recalibrated.json").read_text())
    assert (found["hits"], found["triggers"]) == (summary["trigger_hits"], 8) and 0 <= found["recalibrated_hits"] <= 8
    good("extraction", *flags, "-tmt", "res18", "-dmt", "res18", "-at", "soft", "--teacher-bn", "first", "-admsg", "_f")
    analyze_main(["traces", str(source / "extraction_f"), "--device", "cpu"])
    test, triggers, margins = load_data("digits").test, read_triggers(source / "triggers.pt", 10), []
    for name, statistics in (("extraction", "paper"), ("extraction_f", "first")):
        found = json.loads((source / name / "traces.json").read_text())
        model = source_under(source, statistics)
        margins.append(float(assigned_margin(predict(model, triggers.images), triggers.labels).mean()))
        assert found["statistics"] == statistics and found["source_margin"] == pytest.approx(margins[-1], rel=1e-5)
        assert found["source_accuracy"] == pytest.approx(accuracy(model, test.images, test.labels))
    assert margins[0] != pytest.approx(margins[1], rel=1e-4)  # other statistics change logits, if not always answers
    with pytest.raises(SystemExit) as ended:
        analyze_main(["traces", str(source), "--device", "cpu"])
    assert ended.value.code == 2 and "traces compares a copy with its source" in capsys.readouterr().err
