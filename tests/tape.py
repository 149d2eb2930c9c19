"""A stand-in for a CUDA graph on the CPU: what is not an operation of torch is lost in a replay, as it is there."""

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
                for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                    # views and in-place results share memory and have the new values already
                    if isinstance(old, torch.Tensor) and old.numel() and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
