"""Steps on a CUDA device that is not there: torch's fake tensors have a device and a shape, and no data.

`NoHostWork` is a context in which a step fails at the first line of this project that waits for the device or uses
the host's memory. Everything that asks for the device's kind (autocast, the fused update) takes its CUDA way.

The backward pass is not run, because torch's engine wants a real device for it: gradients are empty tensors of the
right shape. Its operations are torch's own; tests/training/test_recorded_step.py runs them on the CPU.
"""

import contextlib
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parent.parent


class HostWork(AssertionError):
    """A line of a step waits for the device or uses the host's memory."""


def to_cuda(tensor):
    """A fake tensor on the device with the shape, strides and type of `tensor`."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


def move(module: nn.Module) -> nn.Module:
    """The module with fake weights and buffers; `Module.to` cannot replace real tensors by fake ones."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(to_cuda(weight), weight.requires_grad)
        part._buffers.update({name: to_cuda(t) for name, t in part._buffers.items() if t is not None})
    return module


def without_reading_the_rate(make_optimizer):
    """`objective.optimizer`, whose constructor reads the rate once: fake tensors have none to be read."""

    def make(parameters, rate, weight_decay, fused):
        optimizer = make_optimizer(parameters, 0.1, weight_decay, fused)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return optimizer

    return make


class FakeCuda(TorchFunctionMode):
    """Context in which tensors are fake ones, and CUDA a device to make them on.

    Some methods of tensors ask for a real device, in some releases: they are replaced by the operations they call.
    """

    OPERATIONS = {torch.Tensor.contiguous: torch.ops.aten.contiguous, torch.Tensor.nonzero: torch.ops.aten.nonzero,
                  torch.Tensor.__invert__: torch.ops.aten.bitwise_not}

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode()

    def __enter__(self):
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self.fake.__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__:
            return _index(*args)
        if function is torch.Tensor.__setitem__ and isinstance(args[1], torch.Tensor):
            return torch.ops.aten.index_put_(args[0], [args[1]], torch.full((), args[2], device=args[0].device))
        return self.OPERATIONS.get(function, function)(*args, **(kwargs or {}))


def _index(x, index):
    """x[index], where `index` holds numbers, slices, None, tensors and a leading `...`."""
    index = index if isinstance(index, tuple) else (index,)
    tensors, dim = [], 0
    if index[0] is Ellipsis:
        index = (slice(None),) * (x.dim() - sum(part is not None for part in index[1:])) + index[1:]
    for part in index:
        if isinstance(part, int):
            x = torch.ops.aten.select(x, dim, part)
            continue
        if part is None:
            x = torch.ops.aten.unsqueeze(x, dim)
        elif isinstance(part, slice):
            x = torch.ops.aten.slice(x, dim, part.start, part.stop, part.step or 1)
        tensors.append(part if isinstance(part, torch.Tensor) else None)
        dim += 1
    return x if all(t is None for t in tensors) else torch.ops.aten.index(x, tensors)


class NoHostWork(TorchDispatchMode):
    """Raises `HostWork`, with file and line, at an operation that a recorded step must not contain.

    These are operations whose result Python sees (`.item()`, `bool`, a shape that depends on data), masks as indices,
    tensors on the host, copies from and to them, and numbers drawn by a generator. `parameters` get the gradients of a
    backward pass. `seen` holds the names of the operations that were let through, `convolved` the types of what was
    convolved.
    """

    def __init__(self, parameters):
        super().__init__()
        self.parameters, self.seen, self.convolved = parameters, set(), set()

    def __enter__(self):
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(torch.no_grad())
        self.patches.enter_context(mock.patch("torch.autograd.grad", _grad))
        self.patches.enter_context(mock.patch("torch.Tensor.backward", self._backward))
        self.patches.enter_context(mock.patch("torch.cuda.synchronize", _synchronize))
        # what autocast asks; there is no device to ask
        common = "torch.cuda.amp.common.amp_definitely_not_available"
        self.patches.enter_context(mock.patch(common, lambda: False))
        self.patches.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *a, **k: True))
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.name()
        if name.startswith(("profiler::", "prim::")):
            return function(*args, **kwargs)
        inputs = tree_leaves((args, kwargs))
        if any(isinstance(value, torch.Generator) for value in inputs):
            _fail(f"{name} draws numbers from a generator")
        _check_device(name, inputs)
        if name.startswith(("aten::index.", "aten::index_put")):
            if any(t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1]) if isinstance(t, torch.Tensor)):
                _fail(f"{name} has a mask as index, and its result a shape that depends on data")
        self.seen.add(name)
        if name == "aten::convolution":
            self.convolved.add(args[0].dtype)
        if name.startswith(("aten::_fused_", "aten::_foreach_zero_")):  # in place; without a kernel for fake tensors
            return None
        try:
            if name == "aten::convolution" or name.endswith("batch_norm"):
                result = _shapes_only(function, args, kwargs)
            else:
                result = function(*args, **kwargs)
        except Exception as error:
            _fail(f"{name} needs data ({type(error).__name__})", error)
        _check_device(name, tree_leaves(result))
        return result


    def _backward(self, *_):
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)


def _shapes_only(function, args, kwargs):
    """What the function gives for tensors without data; fake tensors ask for a real device here in some releases."""
    meta = lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
    with _disable_current_modes():
        inputs = tree_map_only(torch.Tensor, meta, (args, kwargs))
        result = function(*inputs[0], **inputs[1])
    return tree_map_only(torch.Tensor, to_cuda, result)


def _check_device(name, values) -> None:
    for value in values:
        if isinstance(value, torch.Tensor) and value.device.type != "cuda":
            _fail(f"{name} has a tensor on the host")


def _grad(outputs, inputs, **_):
    return tuple(torch.empty_like(t) for t in ([inputs] if isinstance(inputs, torch.Tensor) else inputs))


def _synchronize(*_):
    _fail("torch.cuda.synchronize waits for the device")


def _fail(what: str, error=None):
    """Raise `HostWork` with the innermost line of this project outside this file."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__):
            raise HostWork(f"{path.relative_to(ROOT)}:{frame.f_lineno}: {what}") from error
        frame = frame.f_back
    raise HostWork(what) from error
