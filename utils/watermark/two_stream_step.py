"""The halves of a watermark step on two streams, on a CUDA GPU.

The ascent is a long chain of small kernels that leave most of a large GPU idle. In a recorded step the two streams
become two branches of the graph, and the clean pass fills what the ascent leaves.
"""

import torch

import models
from utils.system.machine import is_distributed
from utils.watermark.halved_step import HalvedStep, twin_of


class SideStream:
    """`side(work)` starts `work()` on a stream of its own; returns a function that lets the current stream wait for it.
    """

    def __init__(self, device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def __call__(self, work):
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            result = work()

        def wait():
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            return result

        return wait


class TwoStreamStep(HalvedStep):
    """The clean pass on the current stream, the triggers on another.

    With `compiled` the ascent passes through a second twin whose weights get no gradients: a compiled pass computes the
    gradients of all that can have some, wanted or not.
    """

    @classmethod
    def where_faster(cls, model, objective, forward_of, compiled: bool):
        """A `TwoStreamStep`, or None on another device, where the passes depend on each other, or where a pass may draw
        random numbers."""
        device = next(model.parameters()).device
        if device.type != "cuda" or objective.statistics.ascends_in_eval or is_distributed():
            return None
        if not models.is_own(model):
            return None
        return cls(model, objective, forward_of, SideStream(device), compiled)

    def __init__(self, model, objective, forward_of, side, compiled: bool = False):
        super().__init__(model, objective, forward_of)
        self.start = side
        if compiled:
            ascending = twin_of(self.twin, learns=False)
            for name, average in self.twin.named_buffers():  # both add to the same running averages
                owner, _, leaf = name.rpartition(".")
                ascending.get_submodule(owner)._buffers[leaf] = average
            self.forward_of_ascent = forward_of(ascending)
