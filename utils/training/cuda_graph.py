"""A training step as one CUDA graph: recorded once, then replayed, one launch instead of thousands.

What CUDA and torch 2.6 to 2.15 ask of such a recording, and what meets it. `make gpu` checks it on a GPU (done on an
H100 with torch 2.11), and tests/training/test_recorded_step.py replays a recording of every objective on the CPU.

Streams       Warm-up runs on a side stream, the recording on another than the default one. A gradient accumulator
              remembers the stream it was made on, and one that is left over from another stream breaks the recording:
              warm-up and recording share the one stream of `RecordedStep`, and no autograd graph outlives its step.
Warm-up       cuDNN's benchmarks, cuBLAS's workspaces and torch.compile must have seen every pass of a step before:
              `WARM_UP` whole steps, in which torch.compile meets each batch size, mode and momentum. A compilation
              during the recording fails, and the training goes on with ordinary steps.
Gradients     They are None at the beginning, so that the recorded backward pass makes them in the graph's own memory
              pool, where `zero_grad(set_to_none=True)`, which is no work of the GPU, leaves them to the next replay.
              Those of the twin in `watermark.halved_step` are set to None by the step itself, before its passes.
Memory        Every replay uses the same addresses: rows are copied into `buffers`; the rate, the sums, the weights and
              all running averages are changed in place. Garbage is collected before, since freeing it during a
              recording is work of the GPU that the recording does not hold.
Host          No `.item()`, no branch on data, no copy from or to the host, no tensor made on the host:
              tests/training/test_no_host_work.py.
Autocast      Its cache of bf16 weights must not outlive the recording: a step enters and leaves every autocast, so
              the casts are recorded, and each replay casts the current weights.
Random        numbers are drawn on the CPU before an epoch, so a step has no generator.
Optimiser     The rate is a float32 tensor on the device, which fused SGD reads in its kernel. SGD keeps no step count,
              so it needs no `capturable`, as Adam would.
BatchNorm     `num_batches_tracked` and the averages are tensors on the device; the momentum is a number, set to the
              same values in the same order at every step.
One at a time Only one recording may run in a process, and no other thread of it may use the GPU meanwhile: none does.
Two streams   The halves of a watermark step run on two streams, which wait for each other at its beginning and end:
              the recording forks and joins there (`watermark.two_stream_step`).
NCCL          Not recorded in several processes.
"""

import gc

import torch

from utils.system.machine import is_distributed

WARM_UP = 3  # steps before the recording; they are ordinary steps of the training


class RecordedStep:
    """`recorded(step, row)` runs `step` on buffers that hold a copy of `row`, and on CUDA replays a recording of it.

    `step` is the same function at every call and reads and writes the same tensors. Where recording fails, `log` gets
    the reason once, and training continues with ordinary steps. Nothing is recorded on other devices or in several
    processes.

    record     work -> an object with `replay()`; None where nothing is recorded
    recording  that object, once there is one
    failed     whether recording has failed
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer, log=print):
        self.optimizer, self.log = optimizer, log
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.record = self._record_cuda_graph if self.stream is not None and not is_distributed() else None
        self.buffers, self.recording, self.failed, self.warm_ups = None, None, False, 0

    def __call__(self, step, row) -> None:
        if self.failed:
            step(row)
            return
        if self.buffers is None:
            self.buffers = [part.clone() for part in row]
        for buffer, part in zip(self.buffers, row):
            buffer.copy_(part)
        if self.recording is None and self.record is not None and self.warm_ups >= WARM_UP:
            self._try_to_record(step)
        if self.recording is not None:
            self.recording.replay()
            return
        self._on_side_stream(step)
        self.warm_ups += 1

    def _on_side_stream(self, step) -> None:
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
            why = " ".join(str(error).split())[:120]
            self.log(f"no CUDA graph ({type(error).__name__}: {why}): going on with ordinary steps")
            self.failed = True
            self.optimizer.zero_grad(set_to_none=True)

    def _record_cuda_graph(self, work):
        """A CUDA graph of `work`, which is not computed."""
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            work()
        return graph
