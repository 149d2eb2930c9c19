"""On a CUDA GPU a recorded step is the ordinary step, and no step waits for the GPU; `make gpu` runs this."""

import pytest
import torch
from every_objective import build

from utils.benchmark import LR, WEIGHT_DECAY, Contenders, rows_without_end, set_up
from utils.system.machine import AMP, choose_device, prepare_torch
from utils.training.loop import Step
from utils.training.speed import WARM_UP, autocast_forward

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]
CHECKED = ("ERM, sum", "margin, paper, sum", "margin, clean, sum", "margin, shared, sum", "margin, candidates",
           "soft", "hard", "reg")
IN_HALF = ("margin, paper, sum", "margin, shared, sum", "soft")


@pytest.fixture(scope="module")
def bench():
    return Contenders(*set_up(["--model", "res18", "--width", "16", "--device", DEVICE]))


@pytest.fixture
def deterministic():
    choose_device(DEVICE, deterministic=True, tf32=False)
    prepare_torch(0, deterministic=True)
    yield
    torch.use_deterministic_algorithms(False)
    choose_device(DEVICE)
    prepare_torch(0, deterministic=False)


def begin(bench, name, amp, graph):
    """(model, objective, `Step`, what the step has logged: that it could not be recorded)."""
    model, source = bench.model().train(), bench.model().requires_grad_(False).eval()
    objective = build(name, model, autocast_forward(source, amp), bench.batches, bench.x_q, bench.y_q)
    said = []
    step = Step(model, objective, bench.batches, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp, graph=graph,
                log=said.append)
    return model, objective, step, said


def train(bench, name, amp, graph, steps=50):
    """{name: tensor} of weights, buffers and clean averages, and the sums of the figures, after `steps` steps.

    With `graph` the training is given up in the middle, and a new one goes on from its state.
    """
    model, objective, step, said = begin(bench, name, amp, graph)
    rows, sums = rows_without_end(objective, bench.batches), []
    for i in range(steps):
        if i == steps // 2:
            sums.append(step.take_sums())
            if graph:
                assert step.recorder.recording is not None, said
                before, given_up = model, objective
                model, objective, step, said = begin(bench, name, amp, graph)
                model.load_state_dict(before.state_dict())
                if objective.statistics is not None:
                    objective.statistics.restore(given_up.statistics.state())
        step.rate.fill_(LR if i < 0.6 * steps else LR / 10)
        step(next(rows))
    assert not graph or step.recorder.recording is not None, said
    clean = objective.statistics.state() if objective.statistics is not None else {}
    return model.state_dict() | {f"clean {key}": value for key, value in clean.items()}, [*sums, step.take_sums()]


@pytest.mark.parametrize("name, amp", [
    *((name, None) for name in CHECKED), *((name, amp) for name in IN_HALF for amp in AMP.values())])
def test_recorded_steps_resumed_in_the_middle_equal_ordinary_ones(name, amp, bench, deterministic):
    plain, sums = train(bench, name, amp, graph=False)
    recorded, recorded_sums = train(bench, name, amp, graph=True)
    assert plain.keys() == recorded.keys() and sums == recorded_sums
    assert [key for key, value in plain.items() if not torch.equal(value, recorded[key])] == []


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", CHECKED)
def test_no_step_waits_for_the_gpu(name, graph, bench):
    """Twenty steps in bf16; an operation that waits raises RuntimeError."""
    _, objective, step, said = begin(bench, name, torch.bfloat16, graph)
    rows = rows_without_end(objective, bench.batches)
    for _ in range(WARM_UP + 1):  # the last of them is the recording
        step(next(rows))
    assert not said
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            step(next(rows))
    finally:
        torch.cuda.set_sync_debug_mode("default")
