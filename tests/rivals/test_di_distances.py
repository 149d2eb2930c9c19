"""Dataset Inference: the distances of both walks, worked out by hand."""

import pytest
import torch
from scipy import stats
from torch import nn

from utils.rivals.dataset_inference.distances import blind_walk, di_features, distance_norm, mingd, walk, walk_noise


def model_of(first):
    """Two logits: first(x) and 0."""
    return lambda x: torch.stack([first(x), 0 * x[:, 0]], 1)


double = lambda *rows: torch.tensor(rows, dtype=torch.float64)
NORMS = ("linf", "l2", "l1")


def test_blind_walk_by_hand():
    x, step = double([0.5, 0.5]), double([-0.005, -0.005])
    delta = walk(model_of(lambda x: x.sum(1) - 0.905), x, torch.tensor([0]), step)
    found = [float(distance_norm(delta, metric)) for metric in NORMS]
    assert found == pytest.approx([0.05, 0.05 * 2**0.5, 0.1])  # k = 10
    wrong = walk(model_of(lambda x: x.sum(1) - 0.905), x, torch.tensor([1]), step)
    assert torch.allclose(wrong, step)  # misclassified from the start: k = 1


def test_a_blind_walk_that_never_changes_the_label_ends_at_step_51_within_the_box():
    asked = []

    def constant(x):
        asked.append(len(x))
        return torch.ones(len(x), 2) * torch.tensor([1.0, 0.0])

    x, step = double([0.5, 0.5], [0.1, 0.9]), double([0.005, -0.003], [-0.005, 0.004])
    delta = walk(constant, x, torch.tensor([0, 0]), step)
    assert delta.tolist() == [pytest.approx([51 * 0.005, -51 * 0.003]), pytest.approx([-0.1, 0.1])]
    assert asked == [2] * 50


@pytest.mark.parametrize("metric, unit", [("linf", 0.005), ("l2", 0.005 * 3072**0.5), ("l1", 0.01 * 3072)])
def test_walk_noise_has_the_published_size_and_depends_on_the_seed(metric, unit):
    draw = lambda: walk_noise((8, 3, 32, 32), metric, torch.Generator().manual_seed(1))
    assert distance_norm(draw(), metric).tolist() == pytest.approx([unit] * 8, rel=0.1)
    assert abs(float(draw().mean())) < 2e-4 and torch.equal(draw(), draw())
    if metric == "l1":  # a Laplacian's excess kurtosis is 3
        assert stats.kurtosis(walk_noise((10**6,), metric, torch.Generator().manual_seed(0))) > 2.5


@pytest.mark.parametrize("metric, distance", [("linf", 0.306), ("l2", 0.31), ("l1", 0.31)])
def test_mingd_by_hand(metric, distance):
    """z = (x_1 - .5, 0) at x_1 = .8054 has margin .3054: 306 steps of .001, 31 of .01; none where the target is met."""
    x, steps = double([0.8054, 0.5], [0.8054, 0.5]), []

    def counted(x):
        steps.append(len(x))
        return model_of(lambda x: x[:, 0] - 0.5)(x)

    delta = mingd(counted, x, torch.tensor([1, 0]), metric)
    assert delta[0].tolist() == pytest.approx([-distance, 0]) and delta[1].tolist() == [0, 0]
    expected = 306 if metric == "linf" else 31
    assert steps == [2] + [1] * expected  # one pass a step and one to check, only the first with the finished point


def linear_model(classes=4, pixels=48):
    """A linear classifier of (N, 3, 4, 4) images, whose l2 margins are known."""
    layer = nn.Linear(pixels, classes, dtype=torch.float64)
    return nn.Sequential(nn.Flatten(), layer.requires_grad_(False))


@pytest.mark.parametrize("metric, slack", [("linf", 0.001), ("l2", 0.01)])
def test_mingd_finds_a_linear_models_margins(metric, slack):
    model = linear_model(2)
    nn.init.normal_(model[1].weight)
    x = 0.5 + 0.02 * torch.randn(30, 3, 4, 4, dtype=torch.float64)
    logits = model(x)
    w = model[1].weight[0] - model[1].weight[1]
    dual = w.abs().sum() if metric == "linf" else w.norm()
    exact = (logits[:, 0] - logits[:, 1]).abs() / dual
    found = distance_norm(mingd(model, x, 1 - logits.argmax(1), metric), metric)
    assert ((found >= exact) & (found <= exact + slack + 1e-9)).all()


@pytest.mark.parametrize("metric", NORMS)
def test_walks_stay_in_the_box_and_end_at_the_target(metric):
    model = linear_model()
    nn.init.normal_(model[1].weight)
    x = torch.rand(40, 3, 4, 4, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    y, target = model(x).argmax(1), torch.arange(40) % 4
    delta = mingd(model, x, target, metric)
    assert 0 <= float((x + delta).min()) and float((x + delta).max()) <= 1
    assert (model(x + delta).argmax(1) == target).float().mean() > 0.9
    assert (distance_norm(delta, metric)[y == target] == 0).all()
    if metric == "l1":
        assert (delta[(x == 0) | (x == 1)] == 0).all()
    blind = blind_walk(model, x, y, metric, torch.Generator().manual_seed(0))
    assert 0 <= float((x + blind).min()) and float((x + blind).max()) <= 1


def test_a_smaller_margin_is_a_smaller_distance():
    x = torch.stack([torch.linspace(0.51, 0.79, 15), torch.full((15,), 0.5)], 1).double()
    model = model_of(lambda x: x[:, 0] - 0.5)
    for metric in NORMS:
        found = distance_norm(mingd(model, x, torch.ones(15, dtype=torch.long), metric), metric)
        assert (found.diff() > 0).all()
        step = torch.zeros(15, 2).double() - 0.004
        found = distance_norm(walk(model, x, torch.zeros(15, dtype=torch.long), step), metric)
        assert (found.diff() >= 0).all() and found[0] < found[3]


class Scale(nn.Module):
    """(N, 3, 32, 32) -> C logits, linear in the mean of each channel."""

    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, classes), requires_grad=False)

    def forward(self, x):
        return 100 * x.mean((2, 3)) @ self.weight


@pytest.mark.parametrize("classes, columns", [(4, 4), (10, 10), (12, 10)])
def test_mingd_features_have_a_column_for_each_class_nearest_first(classes, columns, monkeypatch):
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.STEPS", 20)
    model, images = Scale(classes), torch.randint(100, 150, (6, 3, 32, 32), dtype=torch.uint8)
    features = di_features(model, images, torch.zeros(6, dtype=torch.long), "mingd", None)
    assert features.shape == (6, columns, 3)
    assert ((features[:, 0] == 0).all()) == (classes <= 10)  # the predicted class; left out where there are many
    assert (features.diff(dim=1) >= 0).all() == (classes <= 10)
    if classes > 10:  # the second-ranked class first, unsorted
        x = images.float().div(255)
        second = model(x).argsort(1, descending=True)[:, 1]
        direct = distance_norm(mingd(model, x, second, "l2"), "l2")
        assert features[:, 0, 1].tolist() == pytest.approx(direct.tolist())


class Zero(Scale):
    """Answers 0 to everything."""

    def forward(self, x):
        return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()


def test_blind_features_are_ten_restarts_and_longer_on_svhn():
    images, y = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    draw = lambda svhn: di_features(Zero(10), images, y, "blind", torch.Generator().manual_seed(0), svhn)
    features = draw(False)
    assert features.shape == (4, 10, 3) and features.unique().numel() == 120
    assert 0.25 < features[:, :, 0].min() and features[:, :, 0].max() <= 51 * 0.005
    assert features[:, :, 1].mean() == pytest.approx(51 * 0.005 * 3072**0.5, rel=0.05)
    assert draw(True)[:, :, 0].min() == pytest.approx(128 / 255)  # 101 steps of .01 would leave the box
