"""Energy, margin bound and t-SNE against closed forms."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import models
from utils.analyze import (
    CELLS,
    GRID,
    add_class_legend,
    among_their_label,
    draw_tsne,
    free_energy,
    margin_bound,
    recalibrate,
    refused_share,
    report_tsne,
    tsne_points,
)
from utils.system.machine import new_figure
from utils.system.refusals import Refusal


def test_free_energy_of_logits_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert free_energy(logits).tolist() == pytest.approx([-math.log(2), -math.log(4)])


def test_filter_refuses_five_percent_of_clean_images_and_all_higher_energies():
    clean = torch.arange(1001.0)
    assert refused_share(clean, clean) == pytest.approx(0.05, abs=0.001)
    assert refused_share(clean, torch.tensor([0.0, 949.0, 951.0, 2000.0])) == 0.5


def test_tsne_shows_every_class_of_a_test_set_that_is_sorted():
    torch.manual_seed(0)
    labels = torch.arange(5).repeat_interleave(20)
    test = SimpleNamespace(images=torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8), labels=labels)
    triggers = SimpleNamespace(images=test.images[:3], labels=torch.tensor([4, 3, 2]))
    run = SimpleNamespace(model=models.build("res18", 5, width=4).eval(), test=test, triggers=triggers, device="cpu",
                          classes=list("abcde"))
    found = report_tsne(run, shown=10)
    assert found["labels"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and found["trigger_labels"] == [4, 3, 2]
    assert [len(points) for points in found["points"].values()] == [13, 13]
    assert draw_tsne(json.loads(json.dumps(found))).startswith(b"\x89PNG")
    add_class_legend(figure := new_figure(4, 4)[0], found)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list("abcde")


def test_share_of_triggers_among_their_label_by_hand():
    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    labels = torch.arange(3).repeat_interleave(5)
    features = directions[labels] + 0.01 * torch.randn(15, 3, generator=torch.Generator().manual_seed(0))
    triggers = torch.tensor([[9.0, 1, 0], [0.1, 0.8, 0], [0, 0, 1], [1, 0, 0]])
    assert among_their_label(features, labels, triggers, torch.tensor([0, 1, 2, 0])) == 1
    assert among_their_label(features, labels, triggers, torch.tensor([0, 1, 1, 2])) == 0.5
    few = features[[0, 1, 5, 6]], labels[[0, 1, 5, 6]]
    assert among_their_label(*few, triggers[:1], torch.tensor([0])) == 0  # two of four are no majority


def test_tsne_is_deterministic_and_keeps_clusters_apart():
    features = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    features[12:] += 50
    points = tsne_points(features, 5)
    assert points.shape == (24, 2) and (points == tsne_points(features, 5)).all()
    points = torch.from_numpy(points)
    nearest = (torch.cdist(points, points) + 1e9 * torch.eye(24)).argmin(1)
    assert ((nearest < 12) == (torch.arange(24) < 12)).all()  # two clusters stay two
    with pytest.raises(Refusal, match="perplexity 10 needs more than 10"):
        tsne_points(features[:10], 10)


def test_margin_bound_of_a_linear_model_is_its_closed_form():
    torch.manual_seed(0)
    linear = nn.Linear(12, 2, dtype=torch.float64)
    nn.init.uniform_(linear.weight, -1, 1)
    model = nn.Sequential(nn.Flatten(), linear)
    x = 0.5 + 0.05 * torch.randn(20, 3, 2, 2, dtype=torch.float64)  # far from the clamp at 0 and 1
    logits, w = model(x).detach(), (linear.weight[0] - linear.weight[1]).detach()
    exact, y = (logits[:, 0] - logits[:, 1]).abs() / w.abs().sum(), logits.argmax(1)
    inside = exact < GRID * CELLS
    assert inside.sum() > 5
    bound = margin_bound(model, x, y)
    assert ((bound - exact)[inside] >= 0).all() and ((bound - exact)[inside] <= GRID + 1e-9).all()
    assert (margin_bound(model, x, 1 - y) == 0).all()  # a failed trigger has no margin


def test_recalibrated_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.BatchNorm2d(3)).eval()
    model[1].running_mean += 7
    model[0].weight = nn.Parameter(torch.ones(1))  # so that there is a device to ask for
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    found = recalibrate(model, images, batch_size=4)
    pixels = images.float().div(255)
    halves = [half.transpose(0, 1).flatten(1) for half in pixels.split(4)]
    assert torch.allclose(found[1].running_mean, sum(half.mean(1) for half in halves) / 2)
    assert torch.allclose(found[1].running_var, sum(half.var(1) for half in halves) / 2)
    assert (model[1].running_mean == 7).all() and not found.training and not found[1].training
    with pytest.raises(Refusal, match="no BatchNorm"):
        recalibrate(nn.Linear(1, 1), images)
