"""No step reads the device's numbers or mixes in tensors of the host, for a CUDA device would wait: on `meta` it fails.

What a `meta` device does not show (synchronize, copies from host to device) `make gpu` looks for on a GPU.
"""

import contextlib

import pytest
import torch
from every_objective import NAMES, build
from small_steps import setting, small

from utils.training.loop import Step


@pytest.fixture
def first_step(monkeypatch):
    """A function that takes the first step of an objective on the device `meta`, whose tensors hold no numbers."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: contextlib.nullcontext())

    def take(make):
        model, batches, x_q, y_q = setting(width=2)
        source = small(width=2).eval().requires_grad_(False).to("meta")
        model, batches.device = model.to("meta"), torch.device("meta")
        for name in ("padded", "labels", "span"):
            setattr(batches, name, getattr(batches, name).to("meta"))
        objective = make(model, source, batches, x_q.to("meta"), y_q.to("meta"))
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
        step([part[0] for part in objective.plan(batches, 0, torch.Generator().manual_seed(0))])
        return step

    return take


@pytest.mark.parametrize("name", NAMES)
def test_a_step_does_no_work_on_the_host(name, first_step):
    step = first_step(lambda *parts: build(name, *parts))
    assert "loss" in step.sums and all(value.is_meta for value in step.sums.values())
