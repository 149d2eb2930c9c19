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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        if name.startswith("aten::_fused_"):  # updates in place; without a kernel for fake tensors
            return None
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            _fail(f"{name} needs data ({type(error).__name__})", error)
        _check_device(name, tree_leaves(result))
        return result


    def _backward(self, *_):
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)


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
