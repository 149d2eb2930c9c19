"""The benchmark: counted operations, measured ratios, and the rivals' costs."""

import contextlib
import json

import pytest
import torch
from small_steps import B, K, M, T
from torch.utils.flop_counter import FlopCounterMode

from utils.benchmark import main as benchmark_main
from utils.cost.contenders import Contenders
from utils.cost.rivals import rival_sums
from utils.cost.settings import TIMED_OBJECTIVES, parse_benchmark


class Nowhere(contextlib.nullcontext):
    """Replaces torch's module tracker, whose hooks fail under `autograd.grad`."""

    parents = ("Global",)


def test_counted_passes_match_the_flop_counter():
    """We count forward 1, input gradient 1, full backward 2; torch's counter counts the operations of real steps."""
    args = parse_benchmark(["--model", "res18", "--width", "8", "--batch-size", str(B), "--trigger-batch", str(T),
                            "--steps", str(K), "--device", "cpu", "--num-query", str(M)])
    bench = Contenders(args, torch.device("cpu"))
    for name in TIMED_OBJECTIVES:
        for rendering in ("ours", "official"):
            step = bench.our_step(name, False)[0] if rendering == "ours" else bench.official_step(name)[0]
            counter = FlopCounterMode(display=False)
            counter.mod_tracker = Nowhere()
            with counter:
                step()
            assert counter.get_total_flops() == pytest.approx(bench.flop(name, rendering), rel=0.01)


def test_benchmark_writes_the_ratios(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.cost.measure.SECONDS", 0.01)
    monkeypatch.setattr("utils.cost.contenders.VALIDATION", 50)
    monkeypatch.setattr("utils.cost.contenders.TEST", 50)
    file = tmp_path / "cost.json"
    benchmark_main(["--model", "res18", "--width", "2", "--batch-size", "8", "--trigger-batch", "2", "--steps", "1",
                    "--num-query", "4", "--device", "cpu", "--rounds", "1", "--components", "--json", str(file)])
    result = json.loads(file.read_text())
    named = {"margin_step_fp32", "margin_step_amp", "margin_epoch_fp32", "margin_epoch_amp", "soft_step_fp32",
             "base_step_fp32"}
    assert named <= set(result["ratios"]) and all(value > 0 for value in result["ratios"].values())
    assert {(r["objective"], r["rendering"], r["precision"]) for r in result["rows"]} == {
        (o, r, p) for o in TIMED_OBJECTIVES for r, p in (("official", "fp32"), ("ours", "fp32"), ("ours", "amp"))}
    assert {p["component"] for p in result["components"]} >= {
        "data", "clean pass", "ascent", "trigger pass", "optimiser", "evaluation"}
    assert "margin_epoch_amp" in capsys.readouterr().out


def test_benchmark_of_the_rivals(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.cost.measure.SECONDS", 0.01)
    file = tmp_path / "rivals.json"
    benchmark_main(["--rivals", "--model", "res18", "--width", "2", "--batch-size", "8", "--num-query", "4", "--device",
                    "cpu", "--rounds", "1", "--json", str(file)])
    result = json.loads(file.read_text())["rivals"]
    assert all(value > 0 for value in result["ms"].values()) and "counted: 3.7 x" in capsys.readouterr().out
    assert result["times_plain"]["DI, training"] == 1


def test_measured_costs_of_equal_parts_equal_the_counted_ones():
    """Where a watermark step costs as much as a plain one, and a noisy draw of 64 images half as much."""
    ms = dict.fromkeys(("plain step", "EWE normal step", "EWE watermark step", "DI question to a batch",
                        "EEF signs of 8 images"), 2.0) | {"RS noisy gradient": 1.0}
    sums = rival_sums(ms, steps=382, batch=128)
    assert sums["EWE, whole training"] == (pytest.approx(1.6), 1.6)
    measured, counted = sums["RS, an epoch with its robust pass"]
    assert measured == pytest.approx(1 + 2100 * 64 / (382 * 128)) and round(measured, 1) == counted
