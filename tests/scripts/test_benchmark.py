"""The benchmark: our steps compute what the official ones do; counted operations, measured ratios."""

import contextlib
import copy
import json

import pytest
import torch
from commands import refused
from comparing import apart
from small_steps import B, K, M, T, rows_of, setting, small, watermark
from torch.utils.flop_counter import FlopCounterMode

from utils import benchmark
from utils.attacks.stealing import ExtractionObjective, soft_loss
from utils.training.loop import Step

TINY = ("--model", "vgg11", "--width", "2", "--batch-size", "8", "--num-query", "4", "--device", "cpu", "--rounds", "1")


@pytest.mark.parametrize("name", benchmark.OBJECTIVES)
def test_our_step_equals_the_official_one(name):
    model, batches, x_q, y_q = setting()  # fp64: rounding of fp32 can flip signs and ReLUs
    model, batches.dtype, x_q = model.double(), torch.float64, x_q.double()
    plain, teacher = copy.deepcopy(model), small().double().eval()
    steps = K if name == "margin" else 0
    objective = watermark(model, x_q, y_q, steps)
    if name == "soft":
        objective = ExtractionObjective(copy.deepcopy(teacher).requires_grad_(False), soft_loss, False)
    row = rows_of(batches, objective)[0]
    Step(model, objective, batches, lr=0.1, weight_decay=1e-4)(row)
    x, y = batches.batch(*row[:3])
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, weight_decay=1e-4)
    if name == "soft":
        benchmark.official_soft_step(plain, teacher, optimizer, x.contiguous(), y)
    else:
        benchmark.official_watermark_step(plain, optimizer, x.contiguous(), y, x_q[row[3]], y_q[row[3]], steps=steps,
                                          weight=0.1, step_size=1 / 255)
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(small().parameters(), model.parameters()))
    assert moved > 1e-3 and apart(model, plain) <= 1e-9


class Nowhere(contextlib.nullcontext):
    """Replaces torch's module tracker, whose hooks fail under `autograd.grad`."""

    parents = ("Global",)


def test_counted_passes_match_the_flop_counter():
    """We count forward 1, input gradient 1, full backward 2; torch's counter counts the operations of real steps."""
    flags = ["--model", "res18", "--width", "8", "--batch-size", str(B), "--trigger-batch", str(T), "--steps", str(K),
             "--device", "cpu", "--num-query", str(M)]
    bench = benchmark.Contenders(*benchmark.set_up(flags))
    for name in benchmark.OBJECTIVES:
        for official in (False, True):
            step = bench.official_step(name)[0] if official else bench.our_step(name)[0]
            counter = FlopCounterMode(display=False)
            counter.mod_tracker = Nowhere()
            with counter:
                step()
            assert counter.get_total_flops() == pytest.approx(bench.flop(name, official), rel=0.01)


def test_benchmark_writes_the_ratios(tmp_path, capsys, monkeypatch):
    for name, value in (("SECONDS", 0.01), ("VALIDATION", 50), ("TEST", 50)):
        monkeypatch.setattr(f"utils.benchmark.{name}", value)
    monkeypatch.setitem(benchmark.SIDE, "cpu", 64)  # a CPU without bf16 takes seconds for 1024
    file = tmp_path / "cost.json"
    benchmark.main([*TINY, "--objectives", "margin", "--trigger-batch", "2", "--steps", "1", "--json", str(file)])
    result = json.loads(file.read_text())
    assert {"command", "device", "device_name", "threads", "torch", "tf32", "settings", "rows", "ratios"} <= set(result)
    assert list(result["ratios"]) == ["margin_step_fp32", "margin_epoch_fp32", "margin_step_amp", "margin_epoch_amp"]
    assert all(value > 0 for value in result["ratios"].values())
    assert [(r["objective"], r["rendering"], r["precision"]) for r in result["rows"]] == [
        ("margin", "official", "fp32"), ("margin", "ours", "fp32"), ("margin", "ours", "amp")]
    for row in result["rows"]:  # 6125 steps of 8 images are an epoch; the official one waits for its loader
        assert row["ms_per_step"] == pytest.approx(8e3 / row["images_per_s"])
        steps = row["s_per_epoch"] - row["evaluation_s"]
        assert steps == pytest.approx(6.125 * row["ms_per_step"]) or row["rendering"] == "official"
    assert "margin_epoch_amp" in capsys.readouterr().out


@pytest.mark.parametrize("flags, said", [
    (["--json", "no/such/folder/x.json"], "--json no/such/folder/x.json: there is no folder no/such/folder"),
    (["--objectives", "mixup"], "invalid choice: 'mixup'"), (["--width", "0"], "must be at least 1")])
def test_a_wrong_flag_is_named_in_one_sentence(flags, said):
    assert said in refused("utils.benchmark", *TINY, *flags)
