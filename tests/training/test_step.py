"""One training step, in each of the ways to compute it."""

import contextlib

import pytest
import torch
from comparing import apart
from small_steps import K, rows_of, setting, watermark
from torch.utils._python_dispatch import TorchDispatchMode

from utils.training.loop import Step


def test_channels_last_computes_the_same_step():
    """In fp64: in fp32 rounding flips ReLUs whose input is nearly zero, in either memory format."""
    results = []
    for placed in (True, False):
        torch.manual_seed(3)
        model, batches, x_q, y_q = setting(width=16, placed=placed)
        model, batches.dtype = model.double(), torch.float64
        objective = watermark(model, x_q.double(), y_q, K)
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
        step(rows_of(batches, objective)[0])
        results.append(model)
    assert results[0][1].layers[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert apart(*results) <= 1e-9


def test_weights_are_cast_once_for_ascent_and_trigger_pass_without_a_difference(monkeypatch):
    """One bit-equal bf16 step with and without `cast_weights_once`."""
    results = []
    for once in (True, False):
        if not once:
            monkeypatch.setattr("utils.watermark.margin.cast_weights_once", lambda _: contextlib.nullcontext())
        torch.manual_seed(5)
        model, batches, x_q, y_q = setting()
        objective = watermark(model, x_q, y_q, K)
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, amp=torch.bfloat16)
        step.halves = None
        counted = CountCasts()
        with counted:
            step(rows_of(batches, objective)[0])
        results.append((model, step.take_sums(), counted.casts))
    assert apart(results[0][0], results[1][0]) == 0 and results[0][1] == results[1][1]
    weights = sum(p.dim() > 1 for p in model.parameters())
    assert results[1][2] - results[0][2] >= K * weights


@pytest.mark.parametrize("mode", ["paper", "shared", "eval"])
def test_scaling_for_fp16_changes_no_update(mode, monkeypatch):
    """A scale of 1024 and one of 1 give bit-equal weights and averages, shown in fp64, where nothing underflows."""
    monkeypatch.setattr("utils.training.loop.autocast", lambda kind, amp: contextlib.nullcontext())
    results = []
    for scale in (1.0, 1024.0):
        monkeypatch.setattr("utils.training.loop.FP16_SCALE", scale)
        torch.manual_seed(5)
        model, batches, x_q, y_q = setting()
        model, batches.dtype = model.double(), torch.float64
        objective = watermark(model, x_q.double(), y_q, K, mode)
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, amp=torch.float16)
        for row in rows_of(batches, objective):
            step(row)
        results.append((model, step.take_sums()))
    assert apart(results[0][0], results[1][0]) == 0 and results[0][1] == results[1][1]


class CountCasts(TorchDispatchMode):
    """Counts the casts to bf16."""

    casts = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.casts += function.name() == "aten::_to_copy" and kwargs.get("dtype") == torch.bfloat16
        return function(*args, **kwargs)


@pytest.mark.parametrize("mode", ["paper", "clean", "shared"])
def test_fixed_buffers_and_fused_update_are_bit_equal(mode):
    """The path that CUDA records (not recorded here) and the usual one equal a loop with torch's plain optimiser."""
    results = []
    for graph in (True, False, None):
        torch.manual_seed(4)
        model, batches, x_q, y_q = setting()
        objective = watermark(model, x_q, y_q, K, mode)
        rows = rows_of(batches, objective)
        if graph is None:
            optimizer, total = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4, foreach=False), 0.0
            for rate, row in zip((0.1, 0.1, 0.01, 0.01), rows):
                optimizer.param_groups[0]["lr"] = rate
                loss, stats = objective(model, *batches.batch(*row[:3]), row[3])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total = total + stats["loss"]
            sums = {"loss": float(total)}
        else:
            step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, graph=graph)
            for rate, row in zip((0.1, 0.1, 0.01, 0.01), rows):
                step.rate.fill_(rate)
                step(row)
            addresses = {name: value.data_ptr() for name, value in step.sums.items()}
            sums = step.take_sums()
            assert {name: value.data_ptr() for name, value in step.sums.items()} == (addresses if graph else {})
            assert not any(step.take_sums().values())
        results.append((model, sums["loss"], objective.statistics.state()))
    for model, loss, clean in results[1:]:
        assert apart(model, results[0][0]) == 0 and loss == results[0][1]
        assert all(torch.equal(clean[name], results[0][2][name]) for name in clean)
