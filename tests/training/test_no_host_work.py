"""No step waits for a CUDA device or uses the host's memory; shown without a device, see `fake_cuda`."""

from unittest import mock

import fake_cuda
import pytest
import torch
from every_objective import EWE, NAMES, build, build_ewe
from fake_cuda import CUDA, FakeCuda, HostWork, NoHostWork
from small_steps import AtOnce, setting, small

from utils.training.loop import Objective, Step, autocast_forward
from utils.watermark.batchnorm import RunningStatistics

NEEDS_BUILD = pytest.mark.skipif(torch.version.cuda is None, reason="autocast for CUDA needs torch built for CUDA")
BOTH_PRECISIONS = pytest.mark.parametrize(
    "amp", [pytest.param(None, id="fp32"), pytest.param(torch.bfloat16, id="bf16", marks=NEEDS_BUILD)])


class Setting:
    """A model, a source, batches and triggers on the fake device; use it inside `mode`."""

    def __init__(self, ewe=False):
        model, self.batches, x_q, y_q = setting()
        source = small().eval().requires_grad_(False)
        self.objective = build_ewe(model, self.batches) if ewe else None
        self.mode = FakeCuda()
        with self.mode:
            self.model, self.source = fake_cuda.move(model), fake_cuda.move(source)
            for name in ("padded", "labels", "span"):
                setattr(self.batches, name, fake_cuda.to_cuda(getattr(self.batches, name)))
            self.batches.device = CUDA
            self.x_q, self.y_q = fake_cuda.to_cuda(x_q), fake_cuda.to_cuda(y_q)

    def move_ewe(self):
        """Move what EWE's objective keeps: it is built on the host, because it counts labels."""
        o = self.objective
        o.x_q, o.y_q, o.temperatures = (fake_cuda.to_cuda(t) for t in (o.x_q, o.y_q, o.temperatures))
        o.members = self.mode.fake.from_tensor(o.members)
        o.statistics = RunningStatistics(self.model, o.statistics.mode)

    def step(self, objective, amp=None):
        objective.optimizer = fake_cuda.without_reading_the_rate(objective.optimizer)
        with mock.patch("utils.training.speed.SideStream", lambda device: AtOnce()):
            return Step(self.model, objective, self.batches, lr=0.1, weight_decay=1e-4, amp=amp)

    def first_row(self, objective, epoch=0):
        return [part[0] for part in objective.plan(self.batches, epoch, torch.Generator().manual_seed(0))]


@BOTH_PRECISIONS
@pytest.mark.parametrize("name", [*NAMES, *EWE])
def test_a_step_does_no_work_on_the_host(name, amp):
    place = Setting(ewe=name in EWE)
    with place.mode:
        if name in EWE:
            place.move_ewe()
            objective = place.objective
        else:
            source = autocast_forward(place.source, amp)
            objective = build(name, place.model, source, place.batches, place.x_q, place.y_q)
        step, row = place.step(objective, amp), place.first_row(objective, EWE.get(name, 0))
        twin = list(step.halves.twin.parameters()) if step.halves else []
        assert bool(twin) == (name.startswith(("ERM", "margin, paper", "margin, clean")))
        with NoHostWork(step.parameters + twin) as watched:
            step(row)
        assert all(value.device == CUDA for value in step.sums.values()) and "loss" in step.sums
    assert watched.convolved == {amp or torch.float32}
    assert any(op.startswith("aten::_fused_") for op in watched.seen)  # the update ran, and in its CUDA way


# ---- every kind of work on the host is found, and named by its line ----


def item(x, y):
    return x.mean().item()


def branch(x, y):
    return 1 if x.sum() > 0 else 2


def positions(x, y):
    return (y > 2).nonzero()


def mask(x, y):
    return x[y > 2]


def masked_write(x, y):
    x[y > 2] = 0


def host_index(x, y):
    return x[torch.arange(4)]


def host_scalar(x, y):
    return x * torch.tensor(0.5)


def numbers(x, y):
    return torch.tensor([0.5, 1.0], device=x.device)


def copy_to_host(x, y):
    return x.cpu()


def listed(x, y):
    return y.tolist()


def own_generator(x, y):
    return torch.rand(3, generator=torch.Generator())


def wait(x, y):
    torch.cuda.synchronize()


def repeats(x, y):
    return x.repeat_interleave(y, dim=0)


HOST = torch.ones(8)


def pageable(x, y):
    return HOST.to(x.device)


@BOTH_PRECISIONS
@pytest.mark.parametrize("planted", [item, branch, positions, mask, masked_write, host_index, host_scalar, numbers,
                                     copy_to_host, listed, own_generator, wait, repeats, pageable],
                         ids=lambda f: f.__name__)
def test_work_on_the_host_is_found(planted, amp):
    class Planted(Objective):
        def __call__(self, forward, x, y, picks):
            loss = forward(x).square().mean()
            planted(x, y)
            return loss, {"loss": loss.detach()}

    place = Setting()
    with place.mode:
        objective = Planted()
        step, row = place.step(objective, amp), place.first_row(objective)
        line = planted.__code__.co_firstlineno + 1
        with pytest.raises(HostWork, match=rf"tests/training/test_no_host_work.py:{line}: "), NoHostWork([]):
            step(row)


def test_a_row_on_the_host_is_found():
    place = Setting()
    with place.mode:
        objective = build("ERM, sum", place.model, None, place.batches, place.x_q, place.y_q)
        step, row = place.step(objective), place.first_row(objective)
        row[3] = torch.zeros(4, dtype=torch.long)
        with pytest.raises(HostWork, match="utils/watermark/margin.py"), NoHostWork([]):
            step(row)
