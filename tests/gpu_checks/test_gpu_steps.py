"""The checks of single steps, on the CPU's stand-in for a CUDA graph: what is right passes, what is wrong is found."""

import contextlib
from dataclasses import replace

import pytest
import torch
from tape import Tape

from utils.cost.contenders import Contenders
from utils.gpu_checks.rates import settings_of
from utils.gpu_checks.steps import OBJECTIVES, check_waiting, compare_recorded, largest_difference


@pytest.fixture(scope="module")
def contenders():
    tiny = replace(settings_of("res18"), width=2, batch_size=8, trigger_batch=3, num_query=6, steps=2)
    return Contenders(tiny, torch.device("cpu"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_right_recording_is_bit_equal(contenders, name):
    check = compare_recorded(contenders, name, False, steps=10, record=Tape)
    assert check.holds and check.seen == "bit-equal"


class Forgets(Tape):
    """A recording that loses its last operation."""

    def replay(self):
        if not self.fresh:
            self.operations = self.operations[:-1]
        super().replay()


class Idle:
    def __init__(self, work):
        work()

    def replay(self):
        pass


@pytest.mark.parametrize("broken", [Forgets, Idle])
def test_a_wrong_recording_is_found(contenders, broken):
    check = compare_recorded(contenders, "margin, paper", False, steps=14, record=broken)
    assert check.holds is False and "relative difference" in check.seen


def refuse_to_record(work):
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_step_that_falls_back_is_found(contenders):
    check = compare_recorded(contenders, "soft", False, steps=10, record=refuse_to_record)
    assert check.holds is False and "no CUDA graph (RuntimeError: operation not permitted" in check.seen
    check = check_waiting(contenders, "soft", False, True, 3, contextlib.nullcontext, refuse_to_record)
    assert check.holds is False and "no CUDA graph" in check.seen
    check = compare_recorded(contenders, "soft", False, steps=10)  # nothing is recorded on the CPU
    assert check.holds is False and check.seen == "nothing was recorded"


def test_a_step_that_waits_is_found(contenders, monkeypatch):
    @contextlib.contextmanager
    def forbid():
        with monkeypatch.context() as patch:
            def fail(*_):
                raise RuntimeError("called a synchronizing CUDA operation")

            patch.setattr(torch.Tensor, "__float__", fail)
            patch.setattr(torch.Tensor, "item", fail)
            yield

    assert check_waiting(contenders, "margin, clean", False, False, 3, forbid).holds
    for module in ("objective", "halved_step"):
        monkeypatch.setattr(f"utils.watermark.{module}.batch_accuracy", lambda logits, y: logits.sum().item() + y)
    check = check_waiting(contenders, "margin, clean", False, False, 3, forbid)
    assert check.holds is False and "synchronizing" in check.seen


def test_differences_are_relative_and_never_hidden_by_nan():
    one = {"a": torch.tensor([4.0, 2.0]), "b": torch.tensor([1.0])}
    assert largest_difference(one, one) == 0
    assert largest_difference(one, one | {"a": torch.tensor([4.0, 1.0])}) == 0.25
    assert largest_difference(one, one | {"b": torch.tensor([float("nan")])}) == float("inf")
    assert largest_difference(one, {"a": one["a"]}) == float("inf")
