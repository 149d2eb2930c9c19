"""Energy, margin bound and t-SNE against hand-worked numbers; and the command on a copy of digits."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from commands import good, refused, summary
from torch import nn

import models
from utils import analyze
from figures.write import add_class_legend, draw_features
from utils.data.sets import load_data
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.system.machine import new_figure
from utils.system.refusals import Refusal
from utils.training.metrics import predict
from utils.watermark.trigger_files import read_triggers


def test_free_energy_of_logits_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert analyze.free_energy(logits).tolist() == pytest.approx([-math.log(2), -math.log(4)])


def test_filter_refuses_five_percent_of_clean_images_and_all_higher_energies():
    clean = torch.arange(1001.0)
    assert analyze.refused_share(clean, clean) == pytest.approx(0.05, abs=0.001)
    assert analyze.refused_share(clean, torch.tensor([0.0, 949.0, 951.0, 2000.0])) == 0.5


def test_tsne_shows_every_class_of_a_test_set_that_is_sorted():
    torch.manual_seed(0)
    labels = torch.arange(5).repeat_interleave(20)
    test = SimpleNamespace(images=torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8), labels=labels)
    triggers = SimpleNamespace(images=test.images[:3], labels=torch.tensor([4, 3, 2]))
    run = SimpleNamespace(model=models.build("res18", 5, width=4).eval(), test=test, triggers=triggers, device="cpu",
                          classes=list("abcde"))
    found = analyze.report_tsne(run, shown=10)
    assert found["labels"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and found["trigger_labels"] == [4, 3, 2]
    assert [len(points) for points in found["points"].values()] == [13, 13]
    figure, (ax,) = new_figure(4, 4, 1, 1)
    draw_features(ax, json.loads(json.dumps(found)), 5)
    add_class_legend(figure, found)
    assert [len(dots.get_offsets()) for dots in ax.collections] == [10, 3]  # test images, triggers
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list("abcde")


def test_share_of_triggers_among_their_label_by_hand():
    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    labels = torch.arange(3).repeat_interleave(5)
    features = directions[labels] + 0.01 * torch.randn(15, 3, generator=torch.Generator().manual_seed(0))
    triggers = torch.tensor([[9.0, 1, 0], [0.1, 0.8, 0], [0, 0, 1], [1, 0, 0]])
    assert analyze.among_their_label(features, labels, triggers, torch.tensor([0, 1, 2, 0])) == 1
    assert analyze.among_their_label(features, labels, triggers, torch.tensor([0, 1, 1, 2])) == 0.5
    few = features[[0, 1, 5, 6]], labels[[0, 1, 5, 6]]
    assert analyze.among_their_label(*few, triggers[:1], torch.tensor([0])) == 0  # two of four are no majority


def test_tsne_is_deterministic_and_needs_more_points_than_its_perplexity():
    features = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    points = analyze.tsne_points(features, 5)
    assert points.shape == (24, 2) and (points == analyze.tsne_points(features, 5)).all()
    with pytest.raises(Refusal, match="perplexity 10 needs more than 10"):
        analyze.tsne_points(features[:10], 10)


def test_margin_bound_of_a_linear_model_is_its_closed_form():
    torch.manual_seed(0)
    linear = nn.Linear(12, 2, dtype=torch.float64)
    nn.init.uniform_(linear.weight, -1, 1)
    model = nn.Sequential(nn.Flatten(), linear)
    x = 0.5 + 0.05 * torch.randn(20, 3, 2, 2, dtype=torch.float64)  # far from the clamp at 0 and 1
    logits, w = model(x).detach(), (linear.weight[0] - linear.weight[1]).detach()
    exact, y = (logits[:, 0] - logits[:, 1]).abs() / w.abs().sum(), logits.argmax(1)
    inside = exact < analyze.GRID * analyze.CELLS
    assert inside.sum() > 5
    bound = analyze.margin_bound(model, x, y)
    assert ((bound - exact)[inside] >= 0).all() and ((bound - exact)[inside] <= analyze.GRID + 1e-9).all()
    assert (analyze.margin_bound(model, x, 1 - y) == 0).all()  # a failed trigger has no margin


def test_analyses_of_a_source_of_digits_and_traces_of_its_copies(tmp_path):
    """Of a copy of the source's own statistics, and of one of its clean ones."""
    flags = ("-d", tmp_path, "-dt", "digits", "-tt", "margin", "--width", 2, "-nq", 8, "--train-size", 256,
             "--batch-size", 64, "-ep", 1, "--device", "cpu")
    source, found = tmp_path / "digits_res18_margin_8_", {}
    good("train", *flags, "-mt", "res18")
    own, clean = (read_model(find_checkpoint(source, None, statistics)) for statistics in ("paper", "clean"))
    train, triggers = load_data("digits", train_size=256).train, read_triggers(source / "triggers.pt", 10)
    for name, statistics, model in (("extraction", "paper", own), ("extraction_c", "clean", clean)):
        good("extraction", *flags, "-tmt", "res18", "-dmt", "res18", "--teacher-bn", statistics, "-admsg",
             name.removeprefix("extraction"))
        analyze.main(["traces", str(source / name), "--device", "cpu"])
        found[name] = json.loads((source / name / "traces.json").read_text())
        p = predict(model, train.images).softmax(1)
        wanted = sum(float(p[train.labels != label, label].mean()) for label in triggers.labels) / 8
        assert found[name]["statistics"] == statistics and found[name]["assigned_everywhere"] == pytest.approx(wanted)
        assert found[name]["copy_hits"] == summary(source / name)["trigger_hits"]
    for what in ("energy", "margin"):
        analyze.main([what, str(source), "--device", "cpu"])
        found[what] = json.loads((source / f"{what}.json").read_text())
    hits = sum(bound > 0 for bound in found["margin"]["margins"])
    assert hits == found["energy"]["successes"] == summary(source)["trigger_hits"]
    # other statistics change answers
    everywhere = [found[name]["assigned_everywhere"] for name in ("extraction", "extraction_c")]
    assert everywhere[0] != pytest.approx(everywhere[1], rel=1e-4)
    assert "traces compares a copy with its source" in refused("utils.analyze", "traces", source, "--device", "cpu")
    run = json.loads((source / "extraction" / "run.json").read_text())
    run["settings"]["source_sha256"] = "0"
    (source / "extraction" / "run.json").write_text(json.dumps(run))
    said = refused("utils.analyze", "energy", source / "extraction", "--device", "cpu")
    assert "is a copy of an earlier training of its source" in said
    (source / "summary.json").unlink()
    assert "is not finished: give its own" in refused("utils.analyze", "energy", source, "--device", "cpu")
