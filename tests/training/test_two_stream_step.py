"""The two-stream step computes what the ordinary step computes; on a GPU itself `make gpu` compares them."""

from unittest import mock

import pytest
import torch
from comparing import apart
from small_steps import AtOnce, rows_of, setting, watermark
from tape import Tape

from utils.training.loop import Step, autocast_forward
from utils.training.speed import HalvedStep, SideStream


def trained(mode, steps, amp, halves, compiled=False, graph=False):
    """(model, sums, clean averages) after the rows of an epoch."""
    torch.manual_seed(7)
    model, batches, x_q, y_q = setting(width=8, placed=True)
    objective = watermark(model, x_q, y_q, steps, mode, "joint")
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, amp=amp, graph=graph)
    step.halves = None
    if halves:
        step.halves = HalvedStep(model, objective, lambda twin: autocast_forward(twin, amp), AtOnce(), compiled)
    if graph:
        step.recorder.record = Tape
    for seed in range(2):
        for row in rows_of(batches, objective, seed):
            step(row)
    return model, step.take_sums(), objective.statistics.state()


@pytest.mark.parametrize("mode, steps, amp, compiled", [
    ("paper", 2, None, False), ("paper", 2, torch.bfloat16, False), ("clean", 2, None, True),
    ("paper", 0, None, False)])
def test_two_streams_compute_what_one_computes(mode, steps, amp, compiled):
    """Weights, losses and clean averages are bit-equal; averages over triggers are equal up to rounding."""
    model, sums, clean = trained(mode, steps, amp, False)
    other, other_sums, other_clean = trained(mode, steps, amp, True, compiled)
    assert sums == other_sums and sums["loss_wat"] > 0
    assert all(torch.equal(clean[name], other_clean[name]) for name in clean)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert apart(model, other) <= (0 if mode == "clean" else 1e-6)  # including the counters of batches


@pytest.mark.parametrize("mode", ["paper", "clean"])
def test_a_recorded_step_in_halves_is_the_step(mode):
    plain, recorded = (trained(mode, 2, None, True, graph=graph) for graph in (False, True))
    assert apart(plain[0], recorded[0]) == 0 and plain[1] == recorded[1]


def test_the_ascent_of_a_compiled_step_asks_for_no_gradients_of_weights():
    """A compiled pass computes every gradient that could be asked for, so the weights of the ascent must need none."""
    model, batches, x_q, y_q = setting()
    asked = {}

    def forward_of(twin):
        asked[len(asked)] = any(p.requires_grad for p in twin.parameters())
        return autocast_forward(twin, None)

    step = HalvedStep(model, watermark(model, x_q, y_q, 2), forward_of, AtOnce(), compiled=True)
    assert asked == {0: True, 1: False} and step.forward_of_ascent is not step.forward


def test_both_streams_wait_for_each_other():
    """The side waits for what came before, the result for the side; else one reads what the other still writes."""
    told = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            told.append(f"{self.name} waits for {other.name}")

    with mock.patch("torch.cuda.Stream", lambda device: Stream("side")), \
            mock.patch("torch.cuda.current_stream", lambda device: Stream("current")), \
            mock.patch("torch.cuda.stream", mock.MagicMock()):
        wait = SideStream(torch.device("cuda", 0)).start(lambda: told.append("work"))
        told.append("clean pass")
        wait()
    assert told == ["side waits for current", "work", "clean pass", "current waits for side"]
