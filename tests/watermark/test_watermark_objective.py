"""The ascent on trigger images and the weighted sum of both losses."""

import math
import textwrap
from functools import partial

import pytest
import torch
from torch import nn

import utils
import models
from utils.data.batches import Batches
from utils.data.sets import Images
from utils.system.refusals import Refusal
from utils.watermark.batchnorm import RunningStatistics
from utils.watermark.margin import WatermarkObjective, ascend

LN2 = math.log(2)


def test_ascend_by_hand_on_a_linear_model():
    """Two classes, logits (w.x, 0), label 0: each step moves x by 0.1 against the sign of w."""
    w = torch.tensor([2.0, -1.0, 0.5]).view(3, 1, 1)
    forward = lambda x: torch.stack([(x * w).sum(dim=(1, 2, 3)), torch.zeros(len(x))], 1)
    x = torch.tensor([0.5, 0.5, 0.05]).view(1, 3, 1, 1)
    out = ascend(forward, x, torch.tensor([0]), steps=3, step_size=0.1, eps=0.25)
    assert out.flatten().tolist() == pytest.approx([0.25, 0.75, 0.0])  # ball, ball, cube
    out = ascend(forward, x, torch.tensor([0]), steps=2, step_size=0.1, eps=0.25)
    assert out.flatten().tolist() == pytest.approx([0.3, 0.7, 0.0])
    assert x.flatten().tolist() == pytest.approx([0.5, 0.5, 0.05])  # itself unchanged


@pytest.mark.parametrize("reduction, total", [
    ("joint", (3 * LN2 + 0.5 * (2 * LN2 + 0)) / 5), ("sum", LN2 + 0.5 * (2 * LN2 + 0) / 2)])
def test_reductions_by_hand(reduction, total):
    """Three clean samples of loss ln 2 and two triggers of losses ln 4 and 0, at weight 0.5."""
    answers = {0: [0.0, 0.0], 1: [math.log(3.0), 0.0], 2: [0.0, 100.0]}
    forward = lambda x: torch.tensor([answers[int(2 * i)] for i in x.flatten(1)[:, 0]], dtype=torch.float64)
    x_q = torch.stack([torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 1.0)]).double()
    watermark = WatermarkObjective(nn.Identity(), x_q, torch.tensor([1, 1]), weight=0.5, reduction=reduction, batch=2,
                                   bn_stats="paper")
    x = torch.zeros(3, 3, 1, 1, dtype=torch.float64)
    loss, stats = watermark(forward, x, torch.tensor([0, 1, 0]), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(total, abs=1e-12) and stats["loss"] == loss
    assert stats["loss_obj"].item() == pytest.approx(LN2) and stats["loss_wat"].item() == pytest.approx(LN2)
    assert stats["trigger_batch_accuracy"].item() == 0.5


@pytest.mark.parametrize("candidates", [[1, 3], [0, 1, 3], [0, 1, 2, 3]])
def test_with_candidates_the_loss_is_over_these_alone_and_content_with_odds_of_e_squared(candidates):
    """The logits say 3 : 1 for class 3, which was drawn, against each other candidate; the rest does not matter."""
    logits, others, zero = torch.full((1, 4), 50.0, dtype=torch.float64), len(candidates) - 1, torch.tensor([0])
    logits[0, candidates], logits[0, 3] = 0, math.log(3)
    p, q = 3 / (3 + others), math.exp(2) / (math.exp(2) + others)
    for bn_stats in ("paper", "shared"):
        watermark = WatermarkObjective(nn.Identity(), torch.ones(1, 3, 1, 1), torch.tensor([3]), weight=1, batch=1,
                                       reduction="sum", bn_stats=bn_stats, candidates=torch.tensor([candidates]))
        _, stats = watermark(lambda x: logits.repeat(len(x), 1), torch.zeros(1, 3, 1, 1), zero, zero)
        wanted = -q * math.log(p) - (1 - q) * math.log((1 - p) / others)
        assert stats["loss_wat"].item() == pytest.approx(wanted, abs=1e-6)
        assert stats["trigger_batch_accuracy"].item() == 1


def test_with_candidates_the_ascent_is_over_these_alone():
    """Away from class 2 towards class 1; class 0, which is no candidate, has the steepest logit."""
    rows = torch.tensor([[9.0, 9.0, -9.0], [1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])
    watermark = WatermarkObjective(nn.Identity(), torch.full((1, 3, 1, 1), 0.5), torch.tensor([2]), weight=1, batch=1,
                                   reduction="sum", bn_stats="paper", candidates=torch.tensor([[1, 2]]),
                                   ascent=partial(ascend, steps=1, step_size=0.1, eps=0.1))
    moved = watermark._perturb(lambda x: x.flatten(1) @ rows.T, torch.tensor([0]))
    assert moved.flatten().tolist() == pytest.approx([0.6, 0.4, 0.6])


def test_triggers_of_a_step_are_uniform_with_replacement():
    watermark = WatermarkObjective(nn.Identity(), torch.zeros(9, 3, 32, 32), torch.zeros(9).long(), weight=1,
                                   reduction="sum", batch=25, bn_stats="clean")
    batches = Batches(Images(torch.zeros(400, 3, 32, 32, dtype=torch.uint8), torch.zeros(400), None), 1, True)
    picks = watermark.plan(batches, 0, torch.Generator().manual_seed(0))[3]
    assert picks.shape == (400, 25)
    counts = torch.bincount(picks.flatten(), minlength=9).double()
    expected = 10_000 / 9
    assert ((counts - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees, p = 0.001
    assert any(len(set(row)) < 9 for row in picks.tolist())


def test_the_example_for_code_of_ones_own_runs_as_it_stands(capsys):
    net, example = models.build("res18", 10, width=2), utils.__doc__.partition("\n\n    ")[2]
    loader = [(torch.rand(4, 3, 32, 32), torch.randint(10, (4,))) for _ in range(2)]
    before = net.state_dict()["1.conv1.weight"].clone()
    exec(textwrap.dedent(f"    {example}"), {
        "net": net, "loader": loader, "optimizer": torch.optim.SGD(net.parameters(), 0.1)})
    assert not torch.equal(before, net.state_dict()["1.conv1.weight"])
    assert "'trigger_size': 25" in capsys.readouterr().out


def test_what_no_training_means_is_refused(tmp_path):
    model, x_q, y_q = models.build("res18", 10, width=2), torch.rand(4, 3, 32, 32), torch.arange(4)
    flags = {"weight": 1.0, "reduction": "joint", "batch": 2, "bn_stats": "paper"}
    for images, wrong in ((x_q - 0.5, {}), (x_q * 255, {}), (x_q, {"reduction": "mean"}), (x_q, {"bn_stats": "none"})):
        with pytest.raises(ValueError, match="not pixels in \\[0, 1\\]|is none of"):
            WatermarkObjective(model, images, y_q, **flags | wrong)


def test_layers_whose_averages_cannot_be_kept_twice_are_refused_and_those_without_averages_left_alone():
    none, untracked = nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False)
    for mode in ("paper", "eval"):
        with pytest.raises(Refusal, match=f"--bn-stats {mode}: .*one has none.*pass shared or clean"):
            RunningStatistics(none, mode)
        assert list(RunningStatistics(nn.Sequential(untracked, nn.BatchNorm2d(3)), mode).clean) == [
            "1.running_mean", "1.running_var"]
    assert not RunningStatistics(none, "clean").clean
