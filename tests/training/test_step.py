"""One training step, in each of the ways to compute it."""

import contextlib
from unittest import mock

import pytest
import torch
from comparing import apart
from small_steps import AtOnce, K, rows_of, setting, watermark
from tape import Tape

from utils.training.loop import Step
from utils.training.speed import HalvedStep, SideStream, SideThread, autocast_forward


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(mode="paper", width=4, placed=False, double=False, rows=1, steps=K, side=None, compiled=False, tape=False,
            amp=None, **more):
    """(model, sums of the figures, clean averages) after so many steps, in halves where there is a `side`."""
    torch.manual_seed(5)
    model, batches, x_q, y_q = setting(width, placed)
    if double:
        model, x_q, batches.dtype = model.double(), x_q.double(), torch.float64
    objective = watermark(model, x_q, y_q, steps, mode)
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, amp=amp, **more)
    step.halves = side and HalvedStep(model, objective, lambda twin: autocast_forward(twin, amp), side, compiled)
    if tape and step.recorder:
        step.recorder.record, step.recorder.warm_ups = Tape, 2
    for row in rows_of(batches, objective)[:rows]:
        step(row)
    return model, step.take_sums(), objective.statistics.state()


def test_channels_last_computes_the_same_step():
    """In fp64: in fp32 rounding flips ReLUs whose input is nearly zero, in either memory format."""
    one, other = (trained(width=16, placed=placed, double=True)[0] for placed in (True, False))
    assert one[1].layers[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert apart(one, other) <= 1e-9


def test_casting_weights_once_for_ascent_and_trigger_pass_makes_no_difference(monkeypatch):
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


@pytest.mark.parametrize("mode, steps, amp, compiled", [
    ("paper", 2, None, False), ("paper", 1, torch.bfloat16, False), ("clean", 2, None, True)])
def test_two_halves_compute_what_one_step_computes(mode, steps, amp, compiled, two_threads):
    """Weights, losses and clean averages are bit-equal; averages over triggers are equal up to rounding."""
    side = AtOnce() if compiled else SideThread((1, 1))
    torch.set_num_threads(1)
    model, sums, clean = trained(mode, 16, True, rows=2, steps=steps, amp=amp)
    torch.set_num_threads(1 if compiled else 2)
    other, other_sums, other_clean = trained(mode, 16, True, rows=2, steps=steps, amp=amp, side=side, compiled=compiled)
    assert sums == other_sums and sums["loss_wat"] > 0 and torch.get_num_threads() == 1 + (not compiled)
    assert all(torch.equal(clean[name], other_clean[name]) for name in clean)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert apart(model, other) <= (0 if mode == "clean" else 1e-6)  # including the counters of batches


@pytest.mark.parametrize("mode", ["paper", "clean", "shared", "eval"])
def test_a_step_is_halved_where_triggers_and_clean_images_are_normalised_apart(mode, two_threads):
    model, batches, x_q, y_q = setting(16, True)
    step = Step(model, watermark(model, x_q, y_q, 2, mode), batches, lr=0.1, weight_decay=1e-4)
    assert bool(step.halves) == (mode in ("paper", "clean"))


def test_a_recorded_step_in_halves_is_the_step():
    plain, recorded = (trained(width=16, placed=True, rows=4, side=AtOnce(), tape=True, graph=graph)
                       for graph in (False, True))
    assert apart(plain[0], recorded[0]) == 0 and plain[1] == recorded[1]


def test_an_error_in_the_trigger_thread_is_raised(two_threads):
    model, batches, x_q, y_q = setting(width=16, placed=True)
    objective = watermark(model, x_q, y_q + 5, 2)  # labels beyond the classes of the model
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
    with pytest.raises(IndexError):
        step(rows_of(batches, objective)[0])
    assert step.halves and torch.get_num_threads() == 2


def test_both_streams_wait_for_each_other():
    """The side waits for what came before, the result for the side; else one reads what the other still writes."""
    told, side, current = [], mock.Mock(), mock.Mock()
    side.wait_stream = lambda other: told.append(("side waits", other is current))
    current.wait_stream = lambda other: told.append(("current waits", other is side))
    with mock.patch.multiple("torch.cuda", Stream=lambda device: side, current_stream=lambda device: current,
                             stream=mock.MagicMock()):
        wait = SideStream(torch.device("cuda", 0)).start(lambda: told.append("work"))
        told.append("clean pass")
        wait()
    assert told == [("side waits", True), "work", "clean pass", ("current waits", True)]
