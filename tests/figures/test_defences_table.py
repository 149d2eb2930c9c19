"""figures.defences on a copy of digits."""

import json

import pytest
import torch
from commands import good, refused
from small_runs import SOURCE, STEAL, TRAIN

from figures.defences import main
from utils.attacks.defences import DEFENCES, TRANSFORMATIONS
from utils.data.sets import load_data
from utils.ownership.pvalues import score_randomisation
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.training.metrics import predict
from utils.watermark.trigger_files import read_triggers


def test_a_copy_is_measured_under_every_defence(tmp_path):
    good("train", "-d", tmp_path, "-tt", "margin", *TRAIN, "-ep", 2)
    good("extraction", "-e", tmp_path, *STEAL, "-at", "soft")
    copy, file = tmp_path / SOURCE / "extraction", tmp_path / "defences.json"
    main([str(copy), "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    summary = json.loads((copy / "summary.json").read_text())
    assert [row["defence"] for row in rows] == [*(defence.name for defence in DEFENCES), *TRANSFORMATIONS]
    flipped, model = rows[-1], read_model(find_checkpoint(copy))
    images, labels = (triggers := read_triggers(tmp_path / SOURCE / "triggers.pt", 10)).images, triggers.labels
    mean = (predict(model, images).softmax(1) + predict(model, images.flip(-1)).softmax(1)) / 2
    assert flipped["hits"] == int((mean.argmax(1) == labels).sum())
    assert flipped["log10_p_scores"] == pytest.approx(score_randomisation(
        mean.double().numpy(), labels.numpy(), triggers.true_labels.numpy(), triggers.candidates.numpy()))
    assert rows[0]["accuracy"] == pytest.approx(summary["test_accuracy"]) and rows[0]["refused"] == 0
    assert (rows[0]["hits"], rows[0]["log10_p"]) == (summary["trigger_hits"], summary["log10_p"]["T1"])
    # an image that is refused counts as wrong
    test = load_data("digits").test
    p = predict(model, test.images).softmax(1).double()
    right, uncertainty = p.argmax(1) == test.labels, torch.special.entr(p).sum(1)
    answered = right & (uncertainty <= uncertainty.quantile(0.95))
    (refusing,) = [row["accuracy"] for row in rows if row["defence"] == "refuses the 5% least certain"]
    assert refusing == pytest.approx(float(answered.double().mean()))
    assert "| none; labels only, cached, delayed | 1 soft |" in (tmp_path / "defences.md").read_text()
    assert "is no finished run of distill.py" in refused("figures.defences", tmp_path, "--json", file)
