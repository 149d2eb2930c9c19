"""What a CUDA graph asks of every objective's step, shown by `tape`, and on `meta`, whose tensors hold no numbers."""

import contextlib

import pytest
import torch
from every_objective import NAMES, build
from small_steps import rows_of, setting, small
from tape import Tape

from utils.training.loop import Step
from utils.training.speed import WARM_UP

STATIC = [name for name in NAMES if name != "RS"]  # the loop records no other objective


def seven_steps(name, graph, record=Tape, log=print):
    """(weights and buffers, sums of the figures, clean averages, step) after seven steps of two epochs in float64."""
    torch.manual_seed(3)
    model, batches, x_q, y_q = setting(width=2)
    source = small(width=2).double().eval().requires_grad_(False)
    model, batches.dtype = model.double(), torch.float64
    objective = build(name, model, source, batches, x_q.double(), y_q)
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, graph=graph, log=log)
    step.halves = None
    if graph:
        step.recorder.record = record
    sums, rows = [], [row for seed in range(2) for row in rows_of(batches, objective, seed)][:7]
    for i, row in enumerate(rows):
        if i == 5:
            sums.append(step.take_sums())
        step.rate.fill_(0.1 / (1 + i))
        step(row)
    clean = objective.statistics.state() if objective.statistics is not None else {}
    return model.state_dict(), [*sums, step.take_sums()], clean, step


@pytest.mark.parametrize("name", STATIC)
def test_replays_equal_ordinary_steps(name):
    weights, sums, clean, step = seven_steps(name, graph=True)
    assert step.recorder.recording.operations and step.recorder.warm_ups == WARM_UP
    plain = seven_steps(name, graph=False)
    assert all(torch.equal(value, plain[0][key]) for key, value in weights.items())
    assert sums == plain[1] and clean.keys() == plain[2].keys()
    assert all(torch.equal(value, plain[2][key]) for key, value in clean.items())


def test_a_failed_recording_is_told_once_and_training_goes_on():
    def record(work):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    said, plain = [], seven_steps("margin, paper, joint", graph=False)
    weights, sums, *_ = seven_steps("margin, paper, joint", True, record, said.append)
    assert said == ["no CUDA graph (RuntimeError: operation not permitted when stream is capturing): going on with "
                    "ordinary steps"]
    assert sums == plain[1] and all(torch.equal(value, plain[0][key]) for key, value in weights.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_does_no_work_on_the_host(name, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: contextlib.nullcontext())
    model, batches, x_q, y_q = setting(width=2)
    source = small(width=2).eval().requires_grad_(False).to("meta")
    model, batches.device = model.to("meta"), torch.device("meta")
    for part in ("padded", "labels", "span"):
        setattr(batches, part, getattr(batches, part).to("meta"))
    objective = build(name, model, source, batches, x_q.to("meta"), y_q.to("meta"))
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
    step([part[0] for part in objective.plan(batches, 0, torch.Generator().manual_seed(0))])
    assert "loss" in step.sums and all(value.is_meta for value in step.sums.values())
