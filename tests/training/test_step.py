"""One training step, in each of the ways to compute it."""

import contextlib

import pytest
import torch
from comparing import apart
from small_steps import K, rows_of, setting, watermark

from utils.training.loop import Step


def trained(mode="paper", width=4, placed=False, double=False, rows=1, **more):
    """(model, sums of the figures, clean averages) after so many steps; `more` is for `Step`."""
    torch.manual_seed(5)
    model, batches, x_q, y_q = setting(width, placed)
    if double:
        model, x_q, batches.dtype = model.double(), x_q.double(), torch.float64
    objective = watermark(model, x_q, y_q, K, mode)
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, **more)
    step.halves = None
    for row in rows_of(batches, objective)[:rows]:
        step(row)
    return model, step.take_sums(), objective.statistics.state()


def test_channels_last_computes_the_same_step():
    """In fp64: in fp32 rounding flips ReLUs whose input is nearly zero, in either memory format."""
    one, other = (trained(width=16, placed=placed, double=True)[0] for placed in (True, False))
    assert one[1].layers[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert apart(one, other) <= 1e-9


def test_weights_are_cast_once_for_ascent_and_trigger_pass_without_a_difference(monkeypatch):
    """One bit-equal bf16 step with and without `cast_weights_once`."""
    one, sums, _ = trained(amp=torch.bfloat16)
    monkeypatch.setattr("utils.watermark.margin.cast_weights_once", lambda _: contextlib.nullcontext())
    other, other_sums, _ = trained(amp=torch.bfloat16)
    assert apart(one, other) == 0 and sums == other_sums


@pytest.mark.parametrize("mode", ["paper", "shared", "eval"])
def test_scaling_for_fp16_changes_no_update(mode, monkeypatch):
    """A scale of 1024 and one of 1 give bit-equal weights and averages, shown in fp64, where nothing underflows."""
    monkeypatch.setattr("utils.training.speed.autocast", lambda kind, amp: contextlib.nullcontext())
    results = []
    for scale in (1.0, 1024.0):
        for module in ("loop", "speed"):
            monkeypatch.setattr(f"utils.training.{module}.FP16_SCALE", scale)
        results.append(trained(mode, double=True, rows=4, amp=torch.float16))
    assert apart(results[0][0], results[1][0]) == 0 and results[0][1] == results[1][1]


@pytest.mark.parametrize("mode", ["paper", "clean", "shared"])
def test_fixed_buffers_and_fused_update_are_bit_equal(mode):
    """The path that CUDA records (not recorded here) and the usual one equal a loop with torch's plain optimiser."""
    torch.manual_seed(5)
    model, batches, x_q, y_q = setting()
    objective = watermark(model, x_q, y_q, K, mode)
    optimizer, total = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4, foreach=False), 0.0
    for row in rows_of(batches, objective)[:4]:
        loss, stats = objective(model, *batches.batch(*row[:3]), row[3])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = total + stats["loss"]
    clean = objective.statistics.state()
    for graph in (True, False):
        other, sums, averages = trained(mode, rows=4, graph=graph)
        assert apart(other, model) == 0 and sums["loss"] == float(total)
        assert all(torch.equal(clean[name], averages[name]) for name in clean)
