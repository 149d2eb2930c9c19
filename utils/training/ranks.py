"""A batch split over several processes, so that objectives see the global batch and know nothing of ranks.

Every rank draws the same plan and holds the same global batch. A forward pass runs the rank's part of it through the
model and gathers the logits of all ranks; gradients are added up over ranks; BatchNorm uses global statistics. Without
torchrun these functions change nothing.

Why not DistributedDataParallel: it averages the gradients of the ranks with equal weights, and 25 triggers over two
ranks are 12 and 13. The averaged gradient of a margin step is then 17 % off that of Eq. 4 (relative norm; ResNet-18 of
width 4, batch 128 + 25, K = 5, float64), because the ascent's signs change too; this module is 6e-14 off. To be exact
with any split, each objective would have to weight its terms by rank. Gathering logits costs 5 KB a pass (128 images,
10 classes). No two GPUs have run this yet.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from utils.system.machine import is_distributed
from utils.system.refusals import Refusal


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """The model with BatchNorm over the batches of all ranks; the names of its weights stay the same."""
    if not is_distributed():
        return model
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = GatheredBatchNorm
    return model


def split_over_ranks(forward):
    """`forward` on this rank's part of a global batch (N, ...), then the logits (N, C) of all ranks."""
    if not is_distributed():
        return forward

    def parts(x):
        if len(x) < dist.get_world_size():
            raise Refusal(f"a batch of {len(x)} cannot be split over {dist.get_world_size()} processes: start fewer")
        return _Join.apply(forward(_Split.apply(x)), len(x))

    return parts


def sum_gradients(parameters) -> None:
    """Replace the gradients by their sum over all ranks."""
    if not is_distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


class GatheredBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks on a CPU, where torch has none, so that ranks are tested without GPUs."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        count = torch.tensor(len(x))
        dist.all_reduce(count)
        averages = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
        everything = _Join.apply(x.to(self.weight.dtype), int(count))
        normal = F.batch_norm(everything, *averages, training=True, momentum=self.momentum, eps=self.eps)
        # weight and bias see this rank's part only: `sum_gradients` adds those of the others
        own, shape = _Split.apply(normal), (1, -1, 1, 1)
        return torch.addcmul(self.bias.view(shape), own, self.weight.view(shape)).to(x.dtype)


def _own_rows(n: int) -> slice:
    """Which of n rows are this rank's; the ranks' numbers of rows differ by at most one."""
    rank, world = dist.get_rank(), dist.get_world_size()
    return slice(n * rank // world, n * (rank + 1) // world)


def _gather_rows(part, n: int):
    """The n rows of which each rank holds its `part`: added up, as parts of different sizes cannot be gathered."""
    rows = part.new_zeros(n, *part.shape[1:])
    rows[_own_rows(n)] = part
    dist.all_reduce(rows)
    return rows


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.n = len(x)
        return x[_own_rows(len(x))].clone()

    @staticmethod
    def backward(ctx, gradient):
        return _gather_rows(gradient, ctx.n)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part, n):
        return _gather_rows(part, n)

    @staticmethod
    def backward(ctx, gradient):
        return gradient[_own_rows(len(gradient))].clone(), None
