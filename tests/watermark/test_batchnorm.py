"""BatchNorm's running statistics under clean and trigger batches."""

import pytest
import torch
from torch import nn

from utils.watermark.batchnorm import RunningStatistics


def test_share_of_triggers_in_the_running_statistics_is_the_published_one():
    """With K = 5, each clean pass is followed by six trigger passes, which leave it 10 % of the averages."""
    layer = nn.BatchNorm2d(1).double()
    nn.init.zeros_(layer.running_mean)
    statistics = RunningStatistics(nn.Sequential(layer), "paper")
    layer.train()
    for _ in range(60):
        with statistics.clean_batch():
            layer(torch.ones(4, 1, 2, 2, dtype=torch.float64) + 1e-9 * torch.randn(4, 1, 2, 2, dtype=torch.float64))
        for _ in range(6):
            with statistics.trigger_batch():
                layer(1e-9 * torch.randn(4, 1, 2, 2, dtype=torch.float64))
    assert layer.running_mean.item() == pytest.approx(0.1 * 0.9**6 / (1 - 0.9**7), abs=1e-6)
    assert layer.running_mean.item() == pytest.approx(0.10, abs=0.005)
    assert statistics.state()["0.running_mean"].item() == pytest.approx(1 - 0.9**60, abs=1e-6)


def test_an_ascent_in_eval_mode_reads_the_averages_and_leaves_them():
    """A layer with averages 2 and 9 normalises by them in the ascent, and by the batch in the passes around it."""
    layer = nn.BatchNorm2d(1, eps=1e-12).double()
    nn.init.constant_(layer.running_mean, 2.0)
    nn.init.constant_(layer.running_var, 9.0)
    statistics = RunningStatistics(nn.Sequential(layer), "eval")
    x = torch.tensor([5.0, 11.0], dtype=torch.float64).view(2, 1, 1, 1)
    with statistics.running_averages():
        assert torch.allclose(layer(x).flatten(), torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert layer.running_mean.item() == 2 and layer.training
    with statistics.trigger_batch():
        assert torch.allclose(layer(x).flatten(), torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert layer.running_mean.item() == pytest.approx(0.9 * 2 + 0.1 * 8)
