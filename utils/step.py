"""One step of training: batch, objective, backward pass, update and sums of the figures.

The training loop and the benchmark share it. On CUDA the whole step, ascent included, is one graph that is recorded
once and replayed: a step is then one launch instead of thousands.
"""

import contextlib

import torch

from utils import distributed
from utils.halves import Halves

WARM_UP = 3  # steps before the recording; they are ordinary steps of the training


class Step:
    """`step(row)` trains on one row of an epoch's plan: (order, shift, flip, picks), see `data.Plan`.

    `forward` maps pixels to logits, see `precise`; `rate` is the learning rate, a tensor on the device that
    `rate.fill_` sets; `sums` adds up what the objective reports and stays on the device: nothing here waits for it.

    With `graph` the row is copied into fixed buffers, and after a few ordinary steps the step is recorded as a CUDA
    graph; where that fails `log` says so once and the ordinary steps go on. Elsewhere, and where several processes
    train together, nothing is recorded.
    """

    def __init__(self, model, objective, batches, *, lr, weight_decay, amp=False, compile=False, graph=False,
                 log=print):
        self.objective, self.forward, self.batches = objective, precise(model, amp, compile), batches
        self.halves = None
        if not compile:  # which compiles in one thread at a time
            self.halves = Halves.where_faster(model, objective, batches, lambda twin: precise(twin, amp))
        device = next(model.parameters()).device
        fused = device.type in ("cpu", "cuda")
        # a rate on the device: a recorded step reads it anew at every replay; CUDA's fused kernel wants a float
        exact = torch.float32 if device.type == "cuda" else torch.float64
        self.rate = torch.tensor(float(lr), dtype=exact, device=device if fused else "cpu")
        self.optimizer = objective.optimizer(model.parameters(), self.rate, weight_decay, fused)
        self.sums = {}
        self.parameters = list(model.parameters())
        self.device, self.graph, self.log = device, graph, log
        self.fixed, self.recorded, self.done = None, None, 0

    def __call__(self, row) -> None:
        if not self.graph:
            self._step(row)
            return
        if self.fixed is None:
            self.fixed = [part.clone() for part in row]
        for fixed, part in zip(self.fixed, row):
            fixed.copy_(part)
        if self.recorded is not None:
            self.recorded.replay()
            return
        if self.device.type == "cuda" and self.done >= WARM_UP and not distributed.several():
            self._record()
            if self.recorded is not None:
                self.recorded.replay()
                return
        self._beside(self._step, self.fixed)
        self.done += 1

    def _step(self, row) -> None:
        *place, picks = row
        with self.halves or contextlib.nullcontext():
            x, y = self.batches.batch(*place)
            self.optimizer.zero_grad(set_to_none=True)
            if self.halves is not None:
                stats = self.halves(self.forward, x, y, picks)
            else:
                loss, stats = self.objective(self.forward, x, y, picks)
                loss.backward()
            distributed.add_gradients(self.parameters)
            self.optimizer.step()
        for name, value in stats.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value)
            self.sums[name].add_(value)

    def _beside(self, call, *arguments) -> None:
        """Call on a stream of its own, as what comes before a recording has to be."""
        if self.device.type != "cuda":
            call(*arguments)
            return
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            call(*arguments)
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def _record(self) -> None:
        """Record the step; nothing is computed meanwhile."""
        graph = torch.cuda.CUDAGraph()
        try:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize(self.device)
            with torch.cuda.graph(graph):
                self._step(self.fixed)
        except Exception as error:  # whatever a kernel, a hook or the allocator cannot do while recording
            why = " ".join(str(error).split())[:120]
            self.log(f"no CUDA graph ({type(error).__name__}: {why}): going on with ordinary steps")
            self.graph = False
            self.optimizer.zero_grad(set_to_none=True)
            return
        self.recorded = graph

    def state(self) -> dict:
        """The optimiser's memory, {position of a parameter: its tensors}; empty for SGD without momentum."""
        return self.optimizer.state_dict()["state"]

    def restore(self, state: dict) -> None:
        """Take the optimiser's memory back from `state()`."""
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # loading has made a copy of it

    def take_sums(self) -> dict:
        """The sums as numbers; they start from zero again. This waits for the device."""
        taken = {name: float(value) for name, value in self.sums.items()}
        if not self.graph:
            self.sums = {}
        for value in self.sums.values():
            value.zero_()  # in place: a recorded step adds to these very tensors
        return taken


def precise(model, amp: bool, compile: bool = False):
    """`forward`: pixels -> float logits, under bf16 autocast where `amp` is set; losses stay in full precision."""
    kind = next(model.parameters()).device.type
    if compile:
        model = torch.compile(model)

    def forward(x):
        with torch.autocast(kind, torch.bfloat16, enabled=amp):
            return model(x).float() if amp else model(x)

    return distributed.split(forward)
