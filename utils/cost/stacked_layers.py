"""Layers of stacked seeds under vmap, each one operation on the seeds' channels side by side.

vmap's own rules give the same numbers at a higher cost: they scale and shift after each BatchNorm in operations of
their own, copy what is pooled, know no channels-last, and call a convolution that a CPU's autocast does not know. Here
S seeds' images (n, S, C, H, W) are seen as (n, S * C, H, W), without a copy where a layer like these made them. A
convolution is then one of S groups; BatchNorm and pooling, which mix no channels, are the ordinary ones.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


def stack_layers(model: nn.Module, memory_format) -> None:
    """Make the layers of a model in train mode compute by the rules of this file; it then works under vmap alone."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.forward = lambda x, layer=layer: _Convolve.apply(x, layer.weight, layer.bias, layer, memory_format)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.forward = lambda x, layer=layer: _normalize(x, layer)
        elif isinstance(layer, nn.MaxPool2d):
            layer.forward = lambda x, layer=layer: _Pool.apply(x, layer)


def stack_weight(weight, memory_format):
    """A leaf of a weight (S, ...); a convolution's, (S, O, I, k, k), is in that format as (S * O, I, k, k)."""
    weight = weight.detach()
    if weight.dim() == 5:
        weight = weight.flatten(0, 1).contiguous(memory_format=memory_format).unflatten(0, weight.shape[:2])
    return weight.requires_grad_()


class _UnderVmap(torch.autograd.Function):
    """A function that is only called under vmap: its `vmap` is made of ordinary operations, which autograd follows."""

    @staticmethod
    def forward(*inputs):
        raise NotImplementedError("call it under vmap")

    @staticmethod
    def setup_context(context, inputs, output):
        pass


class _Convolve(_UnderVmap):
    """x (n, C, H, W), weight (O, C, k, k) and bias (O,) or None of a seed -> (n, O, H', W')."""

    @staticmethod
    def vmap(info, in_dims, x, weight, bias, layer, memory_format):
        x = x.movedim(in_dims[0], 1).flatten(1, 2).contiguous(memory_format=memory_format)
        bias = None if bias is None else bias.flatten()
        out = F.conv2d(x, weight.flatten(0, 1), bias, layer.stride, layer.padding, groups=info.batch_size)
        return out.unflatten(1, (info.batch_size, -1)), 1


def _normalize(x, layer):
    """BatchNorm in train mode; a pass that is not to enter the averages sees none, see `RunningStatistics`."""
    if not layer.track_running_stats:
        return _Normalize.apply(x, None, None, layer.weight, layer.bias, layer)
    layer.num_batches_tracked.add_(1)
    return _Normalize.apply(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer)


class _Normalize(_UnderVmap):
    """x (n, C, H, W) of a seed, its running averages (C,) or None, weight and bias (C,) -> (n, C, H, W)."""

    @staticmethod
    def vmap(info, in_dims, x, mean, var, weight, bias, layer):
        x = x.movedim(in_dims[0], 1).flatten(1, 2)
        # views of the stacked buffers (S, C), which are therefore changed in place
        mean, var = (None if t is None else t.view(-1) for t in (mean, var))
        out = F.batch_norm(x, mean, var, weight.flatten(), bias.flatten(), True, layer.momentum, layer.eps)
        return out.unflatten(1, (info.batch_size, -1)), 1


class _Pool(_UnderVmap):
    """x (n, C, H, W) of a seed -> its maxima (n, C, H', W')."""

    @staticmethod
    def vmap(info, in_dims, x, layer):
        x = x.movedim(in_dims[0], 1).flatten(1, 2)
        return F.max_pool2d(x, layer.kernel_size, layer.stride).unflatten(1, (info.batch_size, -1)), 1


class ReluApart(TorchFunctionMode):
    """Context in which no ReLU works in place: under vmap that changes a view, whose gradient autograd copies twice."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.relu:
            return torch.relu(args[0])
        return function(*args, **(kwargs or {}))
