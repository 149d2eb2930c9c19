"""What makes a step faster: autocast, a CUDA graph that is recorded once and replayed, two halves side by side.

What CUDA and torch 2.6 to 2.15 ask of such a recording, and what meets it. `make gpu` checks it on a GPU;
tests/training/test_recorded_step.py replays on the CPU the steps that can be recorded, except those of `-at
adversarial` and `smooth`.

Streams    A gradient accumulator remembers the stream it was made on: warm-up and recording share the one side stream
           of `RecordedStep`, and no autograd graph outlives its step.
Warm-up    cuDNN's benchmarks, cuBLAS's workspaces and torch.compile (each batch size, mode and momentum) must have seen
           every pass of a step: `WARM_UP` whole steps.
Gradients  They are None at the beginning, so that the recorded backward pass makes them in the graph's own memory pool.
Memory     Every replay uses the same addresses: rows are copied into `buffers`; the rate, the sums, the weights and all
           running averages are changed in place. Garbage is collected before, not in the recording.
Host       No `.item()`, no branch on data, no copy from or to the host, no random number: a step has no generator.
Autocast   Its cache must not outlive the recording: a step enters and leaves every autocast, so replays cast anew.
Optimiser  Fused SGD reads the rate, a float32 tensor, in its kernel, and keeps no step count (Adam would).
Threads    One recording in a process, and no other thread of it may use the GPU meanwhile; none in several processes.
"""

import contextlib
import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import models
from models import AVERAGES, COUNTER
from models.outside import describe_error
from utils.system.machine import autocast, is_distributed
from utils.training.ranks import split_over_ranks

# fp16's smallest number is 6e-8, under which gradients of images and activations vanish: they are computed this many
# times as large and the weights' are divided again, both exact, as it is a power of two
FP16_SCALE = 1024.0
WARM_UP = 3  # steps before the recording; they are ordinary steps of the training


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


def cast_weights_once(device: torch.device):
    """Context of several passes under bf16 autocast that cast each weight once, in the first of them.

    Autocast drops its copies of the weights when its outermost context ends, and this is one around those of the
    passes, without effect of its own. Bit-equal where at most one of the passes is followed by gradients of weights;
    two would be added up in bf16.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=False)


class RecordedStep:
    """`recorded(step, row)` runs `step` on buffers that hold a copy of `row`, and on CUDA replays a recording of it.

    `step` is the same function at every call and reads and writes the same tensors. Where recording fails, `log` gets
    the reason once, and training continues with ordinary steps. Nothing is recorded on other devices or in several
    processes.

    record     work -> an object with `replay()`; None where nothing is recorded
    recording  that object, once there is one
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer, log=print):
        self.optimizer, self.log = optimizer, log
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.record = self._record_cuda_graph if self.stream is not None and not is_distributed() else None
        self.buffers, self.recording, self.warm_ups = None, None, 0

    def __call__(self, step, row) -> None:
        if self.buffers is None:
            self.buffers = [part.clone() for part in row]
        for buffer, part in zip(self.buffers, row):
            buffer.copy_(part)
        if self.recording is None and self.record is not None and self.warm_ups >= WARM_UP:
            self._try_to_record(step)
        if self.recording is not None:
            self.recording.replay()
            return
        self.warm_ups += 1
        if self.stream is None:
            step(self.buffers)
            return
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            step(self.buffers)
        current.wait_stream(self.stream)

    def _try_to_record(self, step) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        try:
            self.recording = self.record(lambda: step(self.buffers))
        except Exception as error:  # whatever a kernel, a hook or the allocator cannot do while recording
            self.log(f"no CUDA graph ({describe_error(error)}): going on with ordinary steps")
            self.record = None
            self.optimizer.zero_grad(set_to_none=True)

    def _record_cuda_graph(self, work):
        """A CUDA graph of `work`, which is not computed."""
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            work()
        return graph


# ---- two halves of a step side by side ----

NARROW = 32  # channels of the first stage; up to this width two threads were always faster (measured on two cores)
SLACK = 1.1  # the longer half may take this many times as long as an even share of the work


def halves_of(model, objective, batches, forward_of, compiled: bool):
    """The `HalvedStep` with which an objective's passes are faster on this machine, or None."""
    # a pass of another's network may draw random numbers, whose order would change
    if not objective.halves or is_distributed() or not models.is_own(model):
        return None
    device = next(model.parameters()).device
    if device.type == "cuda":
        return HalvedStep(model, objective, forward_of, SideStream(device), compiled)
    width = next((p.shape[0] for p in model.parameters() if p.dim() == 4), NARROW + 1)
    if device.type != "cpu" or compiled or width > NARROW:
        return None  # torch.compile compiles in one thread at a time
    threads = split_threads(torch.get_num_threads(), *objective.work(batches.batch_size))
    return HalvedStep(model, objective, forward_of, SideThread(threads)) if threads else None


class HalvedStep:
    """`halved(forward, x, y, picks)` adds the gradients of the objective's loss to the model's and returns its stats.

    One half is the clean pass; the other, ascent and trigger pass, is computed by a twin, which shares the weights'
    memory and has its own gradients and running averages. Call it inside `with halved.side:`, to which batch and update
    belong too. Gradients are bit-equal to those of the ordinary step where the kernels are; running averages are equal
    up to rounding.

    forward_of  turns a module into the function that maps pixels to logits
    side        `SideStream` or `SideThread`: `start(work)` begins work() beside what follows, and returns a function
                that waits for its result and gives it
    compiled    the ascent passes through a second twin whose weights get no gradients: a compiled pass computes the
                gradients of all that can have some, wanted or not
    """

    def __init__(self, model, objective, forward_of, side, compiled: bool = False):
        self.objective, self.side, self.twin = objective, side, twin_of(model)
        for layer in self.twin.modules():  # `add_batches` counts; a kernel for each layer and pass is saved
            if hasattr(layer, COUNTER):
                layer.num_batches_tracked = None
        self.parameters = list(model.parameters())
        self.averages = [t for name, t in self.twin.named_buffers() if name.endswith(AVERAGES)]
        self.forward = self.forward_of_ascent = forward_of(self.twin)
        if compiled:
            ascending = twin_of(self.twin, learns=False)
            for name, average in self.twin.named_buffers():  # both add to the same running averages
                owner, _, leaf = name.rpartition(".")
                ascending.get_submodule(owner)._buffers[leaf] = average
            self.forward_of_ascent = forward_of(ascending)

    def __call__(self, forward, x, y, picks) -> dict:
        objective, n = self.objective, len(y)
        result_of_triggers = self.side.start(lambda: self._trigger_half(picks, n))
        clean = objective.clean_pass(forward, x, y)
        objective.total(clean[0], torch.zeros_like(clean[0]), n).backward()
        marked = result_of_triggers()
        objective.statistics.add_batches(self.twin, objective.steps + 1)
        torch._foreach_add_([p.grad for p in self.parameters], [q.grad for q in self.twin.parameters()])
        return objective.report(clean, marked, n)

    def _trigger_half(self, picks, n: int):
        self.twin.zero_grad(set_to_none=True)
        torch._foreach_zero_(self.averages)
        marked = self.objective.trigger_pass(self.forward, picks, self.forward_of_ascent)
        self.objective.total(torch.zeros_like(marked[0]), marked[0], n).backward()
        return marked


def twin_of(model: nn.Module, learns: bool = True) -> nn.Module:
    """A copy in train mode with its own parameters over the same memory, and its own running averages.

    Own parameters keep gradients and autocast's copies of the weights separate; unless the copy `learns`, none of them
    gets a gradient.
    """
    memo = {id(p): nn.Parameter(p.detach(), p.requires_grad and learns) for p in model.parameters()}
    counted = (*AVERAGES, COUNTER)
    memo |= {id(t): t.clone() if name.endswith(counted) else t for name, t in model.named_buffers()}
    return copy.deepcopy(model, memo).train()


class SideStream(contextlib.nullcontext):
    """The halves on two streams of a CUDA GPU, which become two branches of a recorded graph.

    The ascent is a long chain of small kernels that leave most of a large GPU idle; the clean pass fills that.
    """

    def __init__(self, device):
        super().__init__()
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, work):
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            result = work()

        def wait():
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            return result

        return wait


class SideThread:
    """The halves in two threads of the CPU, in the process that created it: a forked process lacks the second thread.

    In a narrow model two threads that share each layer of a small batch wait much for each other: on two cores a step
    of ResNet-18 of width 16 takes an eighth less time this way, at full width a little more. OpenMP
    threads that have just worked keep spinning for some milliseconds and would slow down the other half: hence the
    context gives this thread its share of them from the beginning of the step to its end.
    """

    def __init__(self, threads: tuple[int, int]):
        self.threads = threads
        self.pool = ThreadPoolExecutor(1, "triggers", torch.set_num_threads, (threads[1],))

    def __enter__(self):
        torch.set_num_threads(self.threads[0])

    def __exit__(self, *_):
        torch.set_num_threads(sum(self.threads))

    def start(self, work):
        return self.pool.submit(work).result


def split_threads(threads: int, clean: float, triggers: float) -> tuple[int, int] | None:
    """Threads for each of the two halves, whose work is given in any unit; None where one would wait too long."""
    if threads < 2:
        return None
    longer = lambda first: max(clean / first, triggers / (threads - first))
    first = min(range(1, threads), key=longer)
    return (first, threads - first) if longer(first) <= SLACK * (clean + triggers) / threads else None
