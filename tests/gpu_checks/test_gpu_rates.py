"""The timed rows of utils.check_gpu, on the CPU with tiny models."""

from dataclasses import replace

import torch

from utils.gpu_checks import rates
from utils.gpu_checks.rates import COMPILED, OFFICIAL, Rendering, format_rates, measure_rates


def tiny(model):
    return replace(rates.parse_benchmark([]), model=model, graph=False, width=2, batch_size=8, trigger_batch=3,
                   num_query=6, steps=1)


def measured(monkeypatch, left):
    monkeypatch.setattr("utils.gpu_checks.rates.SECONDS", 0.001)
    monkeypatch.setattr("utils.cost.contenders.VALIDATION", 20)
    monkeypatch.setattr("utils.cost.contenders.TEST", 20)
    monkeypatch.setattr("utils.gpu_checks.rates.matrix_product", lambda device, amp: (lambda: None, 1.0))
    shown = []
    rows = measure_rates([("res18", "margin"), ("vgg11", "soft")], torch.device("cpu"), left, tiny,
                         (OFFICIAL, Rendering("bf16", amp=True)), COMPILED, shown.append)
    assert shown == rows
    return rows


def test_rows_have_ratios_and_what_does_not_fit_says_so(monkeypatch):
    rows = measured(monkeypatch, lambda: COMPILED.need - 1)
    assert [(row["model"], row["rendering"], row.get("missing")) for row in rows] == [
        ("res18", OFFICIAL.name, None), ("res18", "bf16", None),
        ("vgg11", OFFICIAL.name, None), ("vgg11", "bf16", None),
        ("res18", COMPILED.name, "out of time"), ("vgg11", COMPILED.name, "out of time")]
    for official, ours in (rows[:2], rows[2:4]):
        assert official["step_ratio"] == 1.0
        assert ours["step_ratio"] == official["ms_per_step"] / ours["ms_per_step"]
        assert ours["hours_of_200_epochs"] == 200 * ours["s_per_epoch"] / 3600
    table = format_rates(rows).splitlines()
    assert len(table) == 2 + len(rows) and len({line.count("|") for line in table}) == 1
    assert "not measured: out of time" in table[-1]


def test_a_rendering_that_fails_leaves_the_others(monkeypatch):
    measure = rates.measure_rendering

    def fail_for_the_official(settings, objective, rendering, *rest):
        if rendering.official:
            raise RuntimeError("CUDA out of memory")
        return measure(settings, objective, rendering, *rest)

    monkeypatch.setattr("utils.gpu_checks.rates.measure_rendering", fail_for_the_official)
    rows = measured(monkeypatch, lambda: COMPILED.need - 1)
    assert rows[0]["failed"] == "RuntimeError: CUDA out of memory" and "ms_per_step" in rows[1]
    assert "step_ratio" not in rows[1] and "not measured: RuntimeError" in format_rates(rows)


def test_without_time_nothing_is_measured(monkeypatch):
    rows = measured(monkeypatch, lambda: 0.5)
    assert all(row["missing"] == "out of time" for row in rows) and len(rows) == 6


def test_the_parts_of_a_row_are_hand_computed():
    row = {"model": "res18", "objective": "margin", "rendering": "bf16", "ms_per_step": 10.0, "s_per_epoch": 18.0,
           "hours_of_200_epochs": 1.0, "peak_memory_bytes": 2.5e9, "fraction_of_matmul": 0.25, "step_ratio": 4.0,
           "epoch_ratio": 5.0}
    assert format_rates([row]).splitlines()[-1] == (
        "| res18 | margin | bf16 | 10.00 | 18.0 | 1.00 h | 2.50 GB | 25.0 % | 4.00 | 5.00 |")
