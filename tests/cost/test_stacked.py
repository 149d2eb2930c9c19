"""Stacked seeds are the seeds: equal in float64 to separate trainings of ours."""

import copy
import json

import pytest
import torch
from small_steps import B, K, T, rows_of, setting

import models
from utils.benchmark import main as benchmark_main
from utils.cost.stacked import StackedSeeds
from utils.training.step import Step
from utils.watermark.objective import WatermarkObjective

S, PIXEL = 3, 1 / 255


def trained(name, shared_triggers=False):
    """(largest difference of weights, of buffers) between three stacked seeds and three separate ones."""
    _, batches, x_q, y_q = setting()
    batches.dtype = torch.float64
    torch.manual_seed(4)
    seeds = [models.build(name, 5, (0.5,) * 3, (0.25,) * 3, 4).double().train() for _ in range(S)]
    x = torch.stack([x_q.double().roll(i, 0) for i in range(S)])
    y = torch.stack([y_q.roll(i, 0) for i in range(S)])
    given = (x[:1].expand_as(x), y) if shared_triggers else (x, y)
    stacked = StackedSeeds([copy.deepcopy(model) for model in seeds], batches, given, weight=0.7, steps=K,
                           step_size=PIXEL, lr=0.1, weight_decay=1e-4)
    plans = []
    for i, model in enumerate(seeds):
        objective = WatermarkObjective(model, x[i], y[i], weight=0.7, reduction="sum", batch=T, steps=K,
                                       step_size=PIXEL, eps=K * PIXEL, bn_stats="clean")
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
        step.halves = None
        plans.append(rows_of(batches, objective, seed=i)[:3])
        for row in plans[-1]:
            step(row)
    for rows in zip(*plans):
        stacked([torch.stack(parts) for parts in zip(*rows)])

    def gap(ours, named):
        pairs = [(ours[key][i], value) for i, model in enumerate(seeds) for key, value in named(model)]
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    return gap(stacked.weights, torch.nn.Module.named_parameters), gap(stacked.buffers, torch.nn.Module.named_buffers)


@pytest.mark.parametrize("name", ["res18", "vgg11"])
def test_stacked_seeds_equal_separate_ones(name):
    """Weights, running averages and counters of batches, after three steps of batch, ascent and update."""
    weights, buffers = trained(name)
    assert weights <= 1e-9 and buffers <= 1e-9


def test_seeds_that_share_triggers_are_found():
    assert trained("res18", shared_triggers=True)[0] > 1e-6


def test_the_benchmark_times_stacked_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.cost.stacked.SECONDS", 0.01)
    file = tmp_path / "stacked.json"
    benchmark_main(["--stacked", "2", "--model", "res18", "--width", "2", "--batch-size", str(B),
                    "--trigger-batch", "2", "--steps", "1", "--num-query", "4", "--device", "cpu", "--rounds", "1",
                    "--json", str(file)])
    rows = json.loads(file.read_text())["stacked"]
    assert [row["precision"] for row in rows] == ["fp32", "amp"] and all(row["gain"] > 0 for row in rows)
    assert rows[0]["image_passes"] == 2 * (3 * B + (3 + 2 * 1) * 2)
    assert "2 stacked" in capsys.readouterr().out


@pytest.mark.parametrize("flags, said", [(["--rivals"], "--rivals"), (["--compile"], "--compile"),
                                         (["--components"], "--components")])
def test_stacked_is_timed_alone(flags, said, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark_main(["--stacked", "2", *flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err
