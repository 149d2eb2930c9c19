"""Checks of single steps: a recorded step is the ordinary step, and no step waits for the device.

They train on noise images, see `utils.cost.contenders`; small models are enough, since every kernel of a step is used.
"""

import contextlib

import torch

from utils.attacks.losses import extraction_loss
from utils.attacks.objectives import ExtractionObjective
from utils.cost.contenders import LR, WEIGHT_DECAY, Contenders
from utils.gpu_checks.result import Check
from utils.training.cuda_graph import WARM_UP
from utils.training.step import Step, autocast_forward
from utils.watermark.objective import WatermarkObjective
from utils.watermark.running_statistics import BN_MODES

MARGINS = {f"margin, {mode}": mode for mode in BN_MODES}
THEFTS = ("soft", "hard", "reg")
OBJECTIVES = (*MARGINS, "ERM", *THEFTS)
TOLERANCE = 1e-5  # relative, where weights are not bit-equal
LOWER_RATE = 0.6  # of the steps, after which the learning rate falls


def build_objective(name: str, contenders: Contenders, model, amp: bool):
    """The objective `name` of `OBJECTIVES` for `model`, with the paper's eps = K/255."""
    if name in THEFTS:
        source = contenders.model().requires_grad_(False).eval()
        return ExtractionObjective(autocast_forward(source, amp), *extraction_loss(name, 0.3))
    k = contenders.settings.steps if name in MARGINS else 0
    return WatermarkObjective(
        model, contenders.x_q, contenders.y_q, weight=0.1, reduction="sum",
        batch=contenders.settings.trigger_batch, steps=k, step_size=1 / 255, eps=k / 255,
        bn_stats=MARGINS.get(name, "paper"))


class Training:
    """A model, its objective and its step on noise images."""

    def __init__(self, contenders: Contenders, name: str, amp: bool, graph: bool, record=None):
        self.model, self.said = contenders.model().train(), []
        self.objective = build_objective(name, contenders, self.model, amp)
        self.step = Step(self.model, self.objective, contenders.batches, lr=LR, weight_decay=WEIGHT_DECAY, amp=amp,
                         graph=graph, log=self.said.append)
        if record is not None and graph:
            self.step.recorder.record = record

    def state(self) -> dict:
        """{name: tensor} of weights, BatchNorm's averages, clean averages and sums, copies on the CPU."""
        clean = self.objective.statistics.state() if self.objective.statistics is not None else {}
        named = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        named |= {f"clean.{key}": value for key, value in clean.items()}
        named |= {f"sum.{key}": value for key, value in self.step.sums.items()}
        return {key: value.detach().cpu().clone() for key, value in named.items()}

    def take_over(self, state: dict) -> None:
        """Go on from what another training's `state()` gave."""
        part = lambda kind: {key[len(kind) :]: value for key, value in state.items() if key.startswith(kind)}
        self.model.load_state_dict(part("model."))
        if self.objective.statistics is not None:
            self.objective.statistics.restore(part("clean."))
        device = next(self.model.parameters()).device
        self.step.sums = {key: value.to(device) for key, value in part("sum.").items()}


def compare_recorded(contenders: Contenders, name: str, amp: bool, steps: int = 50, record=None) -> Check:
    """Whether ordinary steps and recorded steps, with a resume in the middle, end in the same weights.

    `record` replaces the recording of a CUDA graph, see `RecordedStep`. Run it where kernels are deterministic.
    """
    plain = Training(contenders, name, amp, graph=False)
    recorded = Training(contenders, name, amp, graph=True, record=record)
    rows = contenders.rows(plain.objective)
    for i in range(steps):
        row = next(rows)
        if i == steps // 2:
            fresh = Training(contenders, name, amp, graph=True, record=record)
            fresh.take_over(recorded.state())
            fresh.said = recorded.said + fresh.said
            recorded = fresh
        for training in (plain, recorded):
            training.step.rate.fill_(LR if i < LOWER_RATE * steps else LR / 10)
            training.step(row)
    what = f"recorded = ordinary steps ({name}, {'bf16' if amp else 'fp32'}, {steps} steps, resumed in the middle)"
    if recorded.step.recorder.recording is None:
        return Check(what, False, "; ".join(recorded.said) or "nothing was recorded")
    difference = largest_difference(plain.state(), recorded.state())
    seen = "bit-equal" if difference == 0 else f"largest relative difference {difference:.1e}"
    return Check(what, difference <= TOLERANCE, seen)


def largest_difference(one: dict, other: dict) -> float:
    """The largest difference of two states {name: tensor}, relative to each tensor's largest entry; inf where unlike.

    0 means bit-equal.
    """
    if one.keys() != other.keys():
        return float("inf")
    worst = 0.0
    for key, a in one.items():
        b = other[key]
        if not torch.equal(a, b):
            a, b = a.double(), b.double()
            gap = float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
            worst = max(worst, gap if gap == gap else float("inf"))  # NaN is not equal to anything
    return worst


@contextlib.contextmanager
def forbid_waiting():
    """Context in which an operation that waits for the GPU raises RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_waiting(contenders: Contenders, name: str, amp: bool, graph: bool, steps: int = 20, forbid=forbid_waiting,
                  record=None) -> Check:
    """Whether `steps` steps do not wait for the device; `forbid` is a context manager that forbids waiting."""
    what = f"no step waits for the GPU ({name}, {'bf16' if amp else 'fp32'}, {'recorded' if graph else 'ordinary'})"
    training = Training(contenders, name, amp, graph, record)
    rows = contenders.rows(training.objective)
    for _ in range(WARM_UP + 1):  # the last of them is the recording
        training.step(next(rows))
    if training.said:
        return Check(what, False, "; ".join(training.said))
    plan = [next(rows) for _ in range(steps)]
    try:
        with forbid():
            for row in plan:
                training.step(row)
    except RuntimeError as error:
        return Check(what, False, " ".join(str(error).split())[:200])
    return Check(what, True, f"{steps} steps")
