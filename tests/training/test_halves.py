"""A step in two halves, on two threads or streams, computes what the ordinary step does; see tests/gpu."""

from unittest import mock

import pytest
import torch
from comparing import apart
from small_steps import AtOnce, rows_of, setting, watermark
from tape import Tape

from utils.training.loop import Step, autocast_forward
from utils.training.speed import HalvedStep, SideStream, SideThread


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(mode, steps, amp=None, side=None, compiled=False, graph=False, rows=2):
    """(model, sums, clean averages) after so many steps; in halves where there is a `side`."""
    torch.manual_seed(7)
    model, batches, x_q, y_q = setting(width=16, placed=True)
    objective = watermark(model, x_q, y_q, steps, mode)
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, amp=amp, graph=graph)
    step.halves = None
    if side:
        step.halves = HalvedStep(model, objective, lambda twin: autocast_forward(twin, amp), side, compiled)
    if graph:
        step.recorder.record, step.recorder.warm_ups = Tape, 2
    for row in rows_of(batches, objective)[:rows]:
        step(row)
    return model, step.take_sums(), objective.statistics.state()


@pytest.mark.parametrize("mode, steps, amp, compiled", [
    ("paper", 2, None, False), ("paper", 1, torch.bfloat16, False), ("clean", 2, None, True)])
def test_two_halves_compute_what_one_step_computes(mode, steps, amp, compiled, two_threads):
    """Weights, losses and clean averages are bit-equal; averages over triggers are equal up to rounding."""
    side = AtOnce() if compiled else SideThread((1, 1))
    torch.set_num_threads(1)
    model, sums, clean = trained(mode, steps, amp)
    torch.set_num_threads(1 if compiled else 2)
    other, other_sums, other_clean = trained(mode, steps, amp, side, compiled)
    assert sums == other_sums and sums["loss_wat"] > 0 and torch.get_num_threads() == 1 + (not compiled)
    assert all(torch.equal(clean[name], other_clean[name]) for name in clean)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert apart(model, other) <= (0 if mode == "clean" else 1e-6)  # including the counters of batches


def test_a_recorded_step_in_halves_is_the_step():
    plain, recorded = (trained("paper", 2, side=AtOnce(), graph=graph, rows=4) for graph in (False, True))
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
