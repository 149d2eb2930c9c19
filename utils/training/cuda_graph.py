"""A training step as one CUDA graph: recorded once, then replayed, one launch instead of thousands."""

import torch

from utils.system.processes import is_distributed

WARM_UP = 3  # steps before the recording; they are ordinary steps of the training


class RecordedStep:
    """`recorded(step, row)` runs `step` on buffers that hold a copy of `row`, and on CUDA replays a recording of it.

    `step` is the same function at every call and reads and writes the same tensors. Gradients are dropped before the
    recording, so that they live in the graph's own memory. Where recording fails, `log` gets the reason once, and
    training continues with ordinary steps. Nothing is recorded on other devices or in several processes.
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer, log=print):
        self.device, self.optimizer, self.log = device, optimizer, log
        self.buffers, self.graph, self.failed, self.warm_ups = None, None, False, 0

    def __call__(self, step, row) -> None:
        if self.failed:
            step(row)
            return
        if self.buffers is None:
            self.buffers = [part.clone() for part in row]
        for buffer, part in zip(self.buffers, row):
            buffer.copy_(part)
        if self.graph is None and self.device.type == "cuda" and self.warm_ups >= WARM_UP and not is_distributed():
            self._record(step)
        if self.graph is not None:
            self.graph.replay()
            return
        self._on_side_stream(step)
        self.warm_ups += 1

    def _on_side_stream(self, step) -> None:
        """Run the step on a stream of its own, as CUDA requires of the steps before a recording."""
        if self.device.type != "cuda":
            step(self.buffers)
            return
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            step(self.buffers)
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def _record(self, step) -> None:
        """Record the step; recording computes nothing."""
        graph = torch.cuda.CUDAGraph()
        try:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize(self.device)
            with torch.cuda.graph(graph):
                step(self.buffers)
        except Exception as error:  # whatever a kernel, a hook or the allocator cannot do while recording
            why = " ".join(str(error).split())[:120]
            self.log(f"no CUDA graph ({type(error).__name__}: {why}): going on with ordinary steps")
            self.failed = True
            self.optimizer.zero_grad(set_to_none=True)
            return
        self.graph = graph
