"""A recorded step, with the CPU's stand-in for a CUDA graph (see `tape`): a replay is the step."""

import itertools
import weakref

import pytest
import torch
from every_objective import NAMES, build
from small_steps import K, rows_of, setting, small, watermark
from tape import Tape

from utils.training.loop import Objective, Step
from utils.training.speed import WARM_UP

STATIC = [name for name in NAMES if name != "RS"]  # the loop records no other objective


def tensors_of(step, model, objective) -> dict:
    """{name: tensor} of all that a training reads and writes over several steps, on the device."""
    named = dict(model.named_parameters()) | dict(model.named_buffers()) | step.sums | {"rate": step.rate}
    if objective.statistics is not None:
        named |= objective.statistics.clean
    return named


def ten_steps(name, graph, between=lambda model, objective, step: None):
    """(weights and buffers, sums of the figures, clean averages, step) after ten steps of two epochs in float64."""
    torch.manual_seed(3)
    model, batches, x_q, y_q = setting(width=2)
    source = small(width=2).double().eval().requires_grad_(False)
    model, batches.dtype = model.double(), torch.float64
    objective = build(name, model, source, batches, x_q.double(), y_q)
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, graph=graph)
    step.halves = None
    if graph:
        step.recorder.record = Tape
    sums, rows = [], [row for seed in range(3) for row in rows_of(batches, objective, seed)][:10]
    for i, row in enumerate(rows):
        if i == 7:
            sums.append(step.take_sums())
            between(model, objective, step)
        step.rate.fill_(0.1 / (1 + i))
        step(row)
    clean = objective.statistics.state() if objective.statistics is not None else {}
    return model.state_dict(), [*sums, step.take_sums()], clean, step


@pytest.mark.parametrize("name", STATIC)
def test_replays_equal_ordinary_steps(name):
    weights, sums, clean, step = ten_steps(name, graph=True)
    assert step.recorder.recording.operations and not step.recorder.failed and step.recorder.warm_ups == WARM_UP
    plain = ten_steps(name, graph=False)
    assert all(torch.equal(value, plain[0][key]) for key, value in weights.items())
    assert sums == plain[1] and clean.keys() == plain[2].keys()
    assert all(torch.equal(value, plain[2][key]) for key, value in clean.items())


@pytest.mark.parametrize("name", ["margin, paper, joint", "margin, shared, sum", "reg"])
def test_evaluation_and_clean_twin_between_replays_change_nothing(name):
    """Between two epochs the model is evaluated and saved, also with its clean averages in place of its own."""

    def evaluate(model, objective, step):
        before = {key: t.data_ptr() for key, t in tensors_of(step, model, objective).items()}
        model.eval()
        with torch.no_grad():
            model(torch.rand(4, 3, 32, 32, dtype=torch.float64))
            if objective.statistics is not None and objective.statistics.clean:
                with objective.statistics.cleaned():
                    model(torch.rand(4, 3, 32, 32, dtype=torch.float64))
        model.train()
        assert {key: t.data_ptr() for key, t in tensors_of(step, model, objective).items()} == before

    weights, sums, *_ = ten_steps(name, True, evaluate)
    plain = ten_steps(name, False)
    assert all(torch.equal(value, plain[0][key]) for key, value in weights.items()) and sums == plain[1]


def counts_in_python():
    count = itertools.count(1)
    return lambda loss: loss * next(count)


def replaces_a_tensor():
    kept = [torch.ones((), dtype=torch.float64)]

    def planted(loss):
        kept[0] = kept[0] + 1
        return loss * kept[0]

    return planted


def reads_by_numpy():
    return lambda loss: loss * float(loss.detach().numpy())


class Planted(Objective):
    """Cross-entropy of float64 logits, changed by a function of the loss."""

    def __init__(self, change):
        self.change = change

    def __call__(self, forward, x, y, picks):
        loss = self.change(torch.nn.functional.cross_entropy(forward(x).double(), y))
        return loss, {"loss": loss.detach()}


@pytest.mark.parametrize("planted", [counts_in_python, replaces_a_tensor, reads_by_numpy], ids=lambda f: f.__name__)
def test_work_outside_the_recording_is_found(planted):
    """The stand-in loses what a CUDA graph loses: each of these steps differs from its replay."""
    results = []
    for graph in (True, False):
        torch.manual_seed(3)
        model, batches, *_ = setting(width=2)
        step = Step(model, Planted(planted()), batches, lr=0.1, weight_decay=0.0, graph=graph)
        if graph:
            step.recorder.record = Tape
        for row in [row for seed in range(3) for row in rows_of(batches, step.objective, seed)]:
            step(row)
        results.append(model.state_dict()["1.conv1.weight"])
    assert not torch.equal(*results)


def test_a_failed_recording_is_told_once_and_training_goes_on():
    said, plain = [], ten_steps("margin, paper, joint", graph=False)
    torch.manual_seed(3)
    model, batches, x_q, y_q = setting(width=2)
    model, batches.dtype = model.double(), torch.float64
    objective = watermark(model, x_q.double(), y_q, K)
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4, graph=True, log=said.append)
    step.halves = None

    def record(work):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    step.recorder.record = record
    rows = [row for seed in range(3) for row in rows_of(batches, objective, seed)][:10]
    for i, row in enumerate(rows):
        if i == 7:
            step.take_sums()
        step.rate.fill_(0.1 / (1 + i))
        step(row)
    assert said == ["no CUDA graph (RuntimeError: operation not permitted when stream is capturing): going on with "
                    "ordinary steps"]
    assert all(torch.equal(value, plain[0][key]) for key, value in model.state_dict().items())
    assert step.take_sums() == plain[1][1]


@pytest.mark.parametrize("name", STATIC)
def test_no_autograd_graph_outlives_its_step(name):
    """Else its gradient accumulators would bind the recording to another stream; see `training.cuda_graph`."""
    model, batches, x_q, y_q = setting(width=2)
    objective = build(name, model, small(width=2).eval().requires_grad_(False), batches, x_q, y_q)
    losses = []

    class Watched(Objective):
        def __call__(self, *inputs):
            loss, stats = objective(*inputs)
            losses.append(weakref.ref(loss))
            return loss, stats

    step = Step(model, Watched(), batches, lr=0.1, weight_decay=1e-4)
    for row in rows_of(batches, objective)[:2]:
        step(row)
        assert losses[-1]() is None
    assert all(value.grad_fn is None for value in step.sums.values())
