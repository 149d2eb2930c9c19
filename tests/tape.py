"""A stand-in for a CUDA graph on the CPU: the operations of a step, recorded once and repeated on the same tensors.

As in a CUDA graph, no line of Python runs in a replay: numbers are those of the recording, every operation reads and
writes the tensors, and so the addresses, of the recording. What a step does outside torch's operations, and whatever
it decides on data, is therefore lost, and a replay differs from an ordinary step.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """`Tape(work)` records `work`, and by that computes it; the first `replay()` is therefore that recording."""

    def __init__(self, work):
        super().__init__()
        self.operations, self.fresh = [], True
        with self:
            work()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.name().startswith("profiler::"):
            self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        if self.fresh:
            self.fresh = False
            return
        with torch.no_grad():
            for function, args, kwargs, result in self.operations:
                _copy_into(result, function(*args, **kwargs))


def _copy_into(old, new):
    """Give the recorded tensors the new values; views and in-place results share memory and have them already."""
    for before, after in zip(tree_leaves(old), tree_leaves(new)):
        if isinstance(before, torch.Tensor) and before.numel() and before.data_ptr() != after.data_ptr():
            before.copy_(after)
