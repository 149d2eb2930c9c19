"""The losses of extraction and distillation against numbers worked out by hand."""

import math
from argparse import Namespace

import pytest
import torch
from torch import nn

from utils.attacks import stealing

# the source's logits, of probabilities (3/4, 1/4): asymmetric, so that the two directions of KL differ
T = torch.tensor([[math.log(3.0), 0.0]])


@pytest.mark.parametrize("robust, answers", [(True, [[0.9, 0.1], [0.9, 0.6]]), (False, [[0.8, 0.0], [0.8, 0.5]])])
def test_adversarial_extraction_asks_the_unmoved_image_and_margin_extraction_the_moved_one(robust, answers):
    """Of images (0.9, 0.1) and (0.9, 0.6), each 0.1 lower after the ascent; the frozen source gives the pixels."""
    source, surrogate = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    source.weight.data, surrogate.weight.data = torch.eye(2), torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    x, moved_by = torch.tensor([[0.9, 0.1], [0.9, 0.6]]), []

    def ascent(forward, images, labels):
        moved_by.append((forward, labels.tolist()))
        return images - 0.1

    objective = stealing.ExtractionObjective(source, stealing.soft_loss, False, ascent, robust)
    loss, stats = objective(surrogate, x, None, None)
    assert moved_by == [(surrogate if robust else source, [0, 0])]  # the source's answers
    wanted = stealing.soft_loss(torch.tensor([[0.0, 0.4], [0.5, 0.4]]), torch.tensor(answers))
    assert loss.item() == pytest.approx(wanted.item()) and stats["agreement"] == 0.5
    loss.backward()
    assert source.weight.grad is None and surrogate.weight.grad is not None


KL = 0.75 * math.log(0.75 / 0.8) + 0.25 * math.log(0.25 / 0.2)  # the source's T, a surrogate's (4/5, 1/5)
P, Q = math.sqrt(3) / (math.sqrt(3) + 1), 2 / 3  # at temperature 2 the odds are square roots, sqrt(3) : 1 and 2 : 1
KL_2 = P * math.log(P / Q) + (1 - P) * math.log((1 - P) / (1 - Q))  # there is no factor of T^2
CE = -math.log(0.8), -math.log(0.2)  # with labels 0 and 1, never divided by a temperature


@pytest.mark.parametrize("attack, label, value, flags", [
    ("soft", 1, KL, {}), ("hard", 1, CE[0], {}), ("smooth", 1, 0.85 * CE[0] + 0.15 * CE[1], {}),
    ("margin", 1, KL, {}), ("adversarial", 1, KL, {}),  # which move the images alone
    ("reg", 0, 0.3 * KL + 0.7 * CE[0], {"alpha": 0.3}), ("reg", 1, 0.3 * KL + 0.7 * CE[1], {"alpha": 0.3}),
    ("distill", 1, 0.3 * CE[1] + 0.7 * KL, {"alpha": 0.7, "temp": 1.0}),
    ("distill", 1, 0.3 * CE[1] + 0.7 * KL_2, {"alpha": 0.7, "temp": 2.0})])
def test_the_loss_of_each_attack_by_hand(attack, label, value, flags):
    loss, needs_labels = stealing.extraction_loss(Namespace(attack=attack, **flags))
    s, y = torch.tensor([[math.log(4.0), 0.0]]), torch.tensor([label] * 2)
    found = loss(s.expand(2, 2), T.expand(2, 2), y).item()  # the mean of a batch
    assert found == pytest.approx(value, abs=1e-6) and needs_labels == (attack in ("reg", "distill"))


def test_sure_models_that_differ_give_a_finite_loss():
    sure = torch.tensor([[0.0, 400.0]])
    assert stealing.soft_loss(sure, sure.flip(1)).item() == pytest.approx(400)
