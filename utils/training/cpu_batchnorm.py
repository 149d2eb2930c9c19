"""Synchronised BatchNorm on the CPU: a stand-in for tests.

torch's SyncBatchNorm works on GPUs only, and GPUs use it. This one computes the same on the CPU, so that training in
several processes can be tested on a machine without a GPU.
"""

import torch
import torch.distributed as dist
from torch import nn


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        y, mean, var, n = _SyncNormalize.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (n / (n - 1)), self.momentum)
        return y


class _SyncNormalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with the statistics of all ranks: (y, mean, var, count)."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        kind, x = x.dtype, x.to(weight.dtype)
        mean = x.mean(dim=(0, 2, 3))
        squares = (x - _per_channel(mean)).square().sum(dim=(0, 2, 3))
        local = torch.stack([mean, squares, torch.full_like(mean, x.numel() // x.shape[1])])
        pieces = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, local)
        means, squares, counts = torch.stack(pieces).double().unbind(1)  # each (ranks, C)
        n = counts.sum(0)
        mean = (means * counts).sum(0) / n
        var = (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / n
        scale = (var + eps).rsqrt().to(x.dtype)
        mean, var, n = mean.to(x.dtype), var.to(x.dtype), n.to(x.dtype)
        normal = (x - _per_channel(mean)) * _per_channel(scale)
        ctx.save_for_backward(normal, weight, scale, n)
        ctx.mark_non_differentiable(mean, var, n)
        return torch.addcmul(_per_channel(bias), normal, _per_channel(weight)).to(kind), mean, var, n

    @staticmethod
    def backward(ctx, gradient, *_):
        normal, weight, scale, n = ctx.saved_tensors
        kind, gradient = gradient.dtype, gradient.to(weight.dtype)
        sums = torch.stack([gradient.sum(dim=(0, 2, 3)), (gradient * normal).sum(dim=(0, 2, 3))])
        g_bias, g_weight = sums.clone()  # of this rank; `sum_gradients` adds those of the others
        dist.all_reduce(sums)
        inner = gradient - _per_channel(sums[0] / n) - normal * _per_channel(sums[1] / n)
        return (inner * _per_channel(weight * scale)).to(kind), g_weight, g_bias, None


def _per_channel(v):
    return v.view(1, -1, 1, 1)
