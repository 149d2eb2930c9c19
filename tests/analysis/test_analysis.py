"""Energy, margin bound and t-SNE against closed forms."""

import math

import pytest
import torch
from torch import nn

from utils.analysis.energy import free_energy, refused_share
from utils.analysis.margin_bound import CELLS, GRID, margin_bound
from utils.analysis.tsne import tsne_points
from utils.system.refusals import Refusal


def test_free_energy_of_logits_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert free_energy(logits).tolist() == pytest.approx([-math.log(2), -math.log(4)])
    assert free_energy(torch.zeros(1, 4), temperature=2.0).item() == pytest.approx(-2 * math.log(4))


def test_filter_refuses_five_percent_of_clean_images_and_all_higher_energies():
    clean = torch.arange(1001.0)
    assert refused_share(clean, clean) == pytest.approx(0.05, abs=0.001)
    assert refused_share(clean, torch.tensor([0.0, 949.0, 951.0, 2000.0])) == 0.5


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
    logits = model(x)
    w = linear.weight[0] - linear.weight[1]
    exact = (logits[:, 0] - logits[:, 1]).abs() / w.abs().sum()
    y = logits.argmax(1)
    exact = exact.detach()
    inside = exact < GRID * CELLS
    assert inside.sum() > 5
    bound = margin_bound(model, x, y)
    assert ((bound - exact)[inside] >= 0).all() and ((bound - exact)[inside] <= GRID + 1e-9).all()
    assert (margin_bound(model, x, 1 - y) == 0).all()  # a failed trigger has no margin
