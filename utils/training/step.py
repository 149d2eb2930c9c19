"""One step of training: batch, objective, backward pass, update, and sums of the figures.

The training loop and the benchmark share it.
"""

import contextlib

import torch

from utils.system.machine import autocast
from utils.training.cuda_graph import RecordedStep
from utils.training.global_batch import split_over_ranks, sum_gradients

# fp16's smallest number is 6e-8, under which gradients of images and activations vanish: they are computed this many
# times as large and the weights' are divided again, both exact, as it is a power of two
FP16_SCALE = 1024.0


class Step:
    """`step(row)` trains on one row of an epoch's plan: (order, shift, flip, picks), see `data.batches.EpochPlan`.

    amp      torch.bfloat16 or torch.float16 of autocast, None: full precision
    forward  pixels -> logits, see `autocast_forward`
    rate     the learning rate, a tensor on the device; set it with `rate.fill_`
    sums     what the objective reports, added up over steps; on the device, so no step waits for the device

    With `graph` the step is recorded and replayed on CUDA, see `RecordedStep`; where that fails, `log` gets the reason.
    """

    def __init__(self, model, objective, batches, *, lr, weight_decay, amp=None, compile=False, graph=False,
                 log=print):
        self.objective, self.forward, self.batches = objective, autocast_forward(model, amp, compile), batches
        self.halves = objective.halved_step(model, batches, lambda twin: autocast_forward(twin, amp, compile), compile)
        device = next(model.parameters()).device
        fused = device.type in ("cpu", "cuda")
        # the rate lives on the device, where every replay of a recorded step reads it; CUDA's fused SGD wants float32
        exact = torch.float32 if device.type == "cuda" else torch.float64
        self.rate = torch.tensor(float(lr), dtype=exact, device=device if fused else "cpu")
        self.optimizer = objective.optimizer(model.parameters(), self.rate, weight_decay, fused)
        self.sums = {}
        self.parameters, self.scale = list(model.parameters()), FP16_SCALE if amp == torch.float16 else None
        self.recorder = RecordedStep(device, self.optimizer, log) if graph else None

    def __call__(self, row) -> None:
        if self.recorder is None:
            self._train(row)
        else:
            self.recorder(self._train, row)

    def _train(self, row) -> None:
        *place, picks = row
        with self.halves or contextlib.nullcontext():
            x, y = self.batches.batch(*place)
            self.optimizer.zero_grad(set_to_none=True)
            if self.halves is not None:
                stats = self.halves(self.forward, x, y, picks)
            else:
                loss, stats = self.objective(self.forward, x, y, picks)
                loss.backward()
            sum_gradients(self.parameters)
            if self.scale:
                torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], self.scale)
            self.optimizer.step()
        for name, value in stats.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value)
            self.sums[name].add_(value)

    def state(self) -> dict:
        """The optimiser's memory, {position of a parameter: its tensors}; empty for SGD without momentum."""
        return self.optimizer.state_dict()["state"]

    def restore(self, state: dict) -> None:
        """Take the optimiser's memory back from `state()`."""
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # loading replaced the tensor by a copy

    def take_sums(self) -> dict:
        """The sums as numbers; they start from zero again. This waits for the device."""
        taken = {name: float(value) for name, value in self.sums.items()}
        if self.recorder is None or self.recorder.failed:
            self.sums = {}
        for value in self.sums.values():
            value.zero_()  # in place: a recorded step adds to these very tensors
        return taken


def cast_weights_once(device: torch.device):
    """Context of several passes under bf16 autocast that cast each weight once, in the first of them.

    Autocast drops its copies of the weights when its outermost context ends, and this is one around those of the
    passes, without effect of its own. Bit-equal where at most one of the passes is followed by gradients of weights;
    two would be added up in bf16.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=False)


def autocast_forward(model, amp: torch.dtype | None, compile: bool = False):
    """`forward`: pixels -> float logits, under autocast to `amp` unless it is None; losses stay in full precision.

    With fp16 all gradients behind the logits are `FP16_SCALE` times as large; an ascent sees their signs alone.
    """
    kind = next(model.parameters()).device.type
    if compile:
        model = torch.compile(model, dynamic=False)  # few batch sizes: kernels for each are faster

    def forward(x):
        with autocast(kind, amp):
            logits = model(x).float() if amp else model(x)
        if amp == torch.float16 and logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * FP16_SCALE)
        return logits

    return split_over_ranks(forward)
