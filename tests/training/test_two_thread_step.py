"""The two-thread step computes what one thread computes, and is chosen only where it is faster."""


import pytest
import torch
from commands import good
from comparing import apart
from small_steps import rows_of, setting, watermark

from utils.runs.checkpoints import load_checkpoint
from utils.training.loop import Step, autocast_forward
from utils.training.speed import HalvedStep, SideThread


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(mode, steps, reduction, amp, how, restarts=()):
    """(model, sums, clean averages) after four steps; before each step in `restarts` a new `Step` takes over."""
    torch.manual_seed(7)
    model, batches, x_q, y_q = setting(width=16, placed=True)
    objective = watermark(model, x_q, y_q, steps, mode, reduction)
    rows, sums = rows_of(batches, objective), {}
    make = lambda: Step(model, objective, batches, lr=0.1, weight_decay=1e-4, amp=amp)
    step = make()
    for i, row in enumerate(rows):
        step = make() if i in restarts else step
        if how == "two threads" and not steps:  # with an ascent it is chosen by itself
            step.halves = HalvedStep(model, objective, lambda twin: autocast_forward(twin, amp), SideThread((1, 1)))
        assert bool(step.halves) == (how == "two threads")
        step(row)
        sums = {name: sums.get(name, 0) + value for name, value in step.take_sums().items()}
    return model, sums, objective.statistics.state()


@pytest.mark.parametrize("mode, steps, reduction, amp", [
    ("paper", 2, "joint", None), ("paper", 2, "sum", torch.bfloat16), ("clean", 2, "sum", None),
    ("paper", 0, "joint", None)])
def test_two_threads_compute_what_one_thread_computes(mode, steps, reduction, amp, two_threads):
    """Weights, losses and clean averages are bit-equal; averages over triggers are equal up to rounding."""
    torch.set_num_threads(1)
    model, sums, clean = trained(mode, steps, reduction, amp, "one thread")
    torch.set_num_threads(2)
    other, other_sums, other_clean = trained(mode, steps, reduction, amp, "two threads")
    assert sums == other_sums and sums["loss_wat"] > 0
    assert all(torch.equal(clean[name], other_clean[name]) for name in clean)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert apart(model, other) <= (0 if mode == "clean" else 1e-6)  # including the counters of batches
    assert torch.get_num_threads() == 2


def test_a_resumed_run_with_two_threads_is_bit_equal(two_threads):
    whole, sums, _ = trained("paper", 2, "joint", None, "two threads")
    parts, other_sums, _ = trained("paper", 2, "joint", None, "two threads", restarts=(1, 3))
    assert apart(whole, parts) == 0 and sums == other_sums


def test_two_threads_need_no_batch_norm(two_threads):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(8)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 4), torch.nn.ReLU(), torch.nn.Flatten(),
                                    torch.nn.Linear(16 * 64, 5))
        _, batches, x_q, y_q = setting()
        objective = watermark(model, x_q, y_q, 2)
        step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
        step(rows_of(batches, objective)[0])
        assert bool(step.halves) == (threads == 2)
        results.append(model)
    assert apart(*results) == 0


def test_train_py_computes_the_same_with_two_threads(two_threads, tmp_path, monkeypatch):
    called, call = [], HalvedStep.__call__
    monkeypatch.setattr(HalvedStep, "__call__", lambda self, *a: called.append(self) or call(self, *a))
    weights = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        good("train", "-d", tmp_path, "-dt", "digits", "-tt", "margin", "-mt", "res18", "--width", 16, "-nq", 8,
             "--train-size", 96, "--batch-size", 32, "--trigger-batch", 14, "--steps", 2, "-ep", 1,
             "--device", "cpu", "-msg", threads)
        checkpoint = load_checkpoint(tmp_path / f"digits_res18_margin_8_{threads}/checkpoints/checkpoint_latest.pt")
        state = checkpoint["model"]["state_dict"]
        weights.append({name: t for name, t in state.items() if "running" not in name})
    assert len(called) == 3  # steps
    assert all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())


def test_an_error_in_the_trigger_thread_is_raised(two_threads):
    model, batches, x_q, y_q = setting(width=16, placed=True)
    objective = watermark(model, x_q, y_q + 5, 2)  # labels beyond the classes of the model
    step = Step(model, objective, batches, lr=0.1, weight_decay=1e-4)
    with pytest.raises(IndexError):
        step(rows_of(batches, objective)[0])
    assert step.halves and torch.get_num_threads() == 2
