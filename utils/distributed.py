"""Several processes, one training: `torchrun --nproc_per_node N train.py ...`.

Every rank draws the same plan and holds the same global batch; a forward pass runs the rank's part of it through the
model and gathers the logits of all ranks. So objectives, their reductions and their figures are the global ones and
know nothing of ranks. What is left: BatchNorm with global statistics, gradients that are added up, rank 0 writes.
Without torchrun every function here does nothing.
"""

import contextlib
import os
import sys

import torch
import torch.distributed as dist
from torch import nn

from utils.refuse import Refusal, at_end

LOOK_EVERY = {"cpu": 1, "cuda": 10}  # steps between two looks at the other ranks' signals


def rank() -> int:
    """This process's number; 0 where there is only one."""
    return int(os.environ.get("RANK", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def chief() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def several() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join(device: torch.device) -> torch.device:
    """Meet the other ranks if torchrun started this process; the device of this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if device.type not in ("cpu", "cuda"):
        raise Refusal(f"--device {device.type}: torchrun works with cuda and cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():  # alike on all ranks: rank 0 says it
            raise Refusal(f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here")
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        store, number, world = next(dist.rendezvous("env://"))
        if os.environ["GROUP_WORLD_SIZE"] == "1":
            # torchrun keeps its store over a restart, and with it the addresses of the processes that are gone; on
            # several machines their counts of restarts may differ, so that no name is common to all
            store = dist.PrefixStore(f"restart {restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=world)
        at_end.append(leave)
    return device


def restarts() -> int:
    """How often torchrun has started the processes anew after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def leave(status: int) -> None:
    """Part from the other ranks and end at once: torch 2.15 now and then aborts where the interpreter tears down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def barrier() -> None:
    """Wait for all ranks."""
    if several():
        dist.all_reduce(torch.zeros(1))


@contextlib.contextmanager
def chief_first():
    """Within: rank 0 goes ahead, the others follow (downloads, caches, folders)."""
    if not chief():
        barrier()
    yield
    if chief():
        barrier()


def share(model: nn.Module) -> nn.Module:
    """The model with BatchNorm over the batches of all ranks; names of weights stay."""
    if not several():
        return model
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = _BatchNorm
    return model


def split(forward):
    """`forward` on this rank's part of a global batch (N, ...), then the logits (N, C) of all ranks."""
    if not several():
        return forward

    def parts(x):
        if len(x) < dist.get_world_size():
            raise Refusal(f"a batch of {len(x)} cannot be split over {dist.get_world_size()} processes: start fewer")
        return _Join.apply(forward(_Split.apply(x)), len(x))

    return parts


def add_gradients(parameters) -> None:
    """Replace the gradients by their sum over all ranks."""
    if not several():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def agree(received: list, device: torch.device, step: int = 0) -> int:
    """The signal that asks all ranks to end at this very step, or 0; `received` holds this rank's signals.

    Several ranks on GPUs look every few steps only, so that they need not wait for one another at each. On the CPU
    they do in any case, and torchrun leaves them 30 seconds to end.
    """
    signum = received[0] if received else 0
    if not several():
        return signum
    if step % LOOK_EVERY[device.type]:
        return 0
    signums = torch.tensor([signum])  # on the CPU: the device is not waited for
    dist.all_reduce(signums, op=dist.ReduceOp.MAX)
    return int(signums)


# ---- a batch's parts ------------------------------------------------------------------------------------------


def _bounds(n: int) -> list[int]:
    """Where the ranks' parts of n rows begin and end; parts differ by one row at most."""
    world = dist.get_world_size()
    return [n * r // world for r in range(world + 1)]


def _part(x):
    bounds, r = _bounds(len(x)), dist.get_rank()
    return x[bounds[r] : bounds[r + 1]]


def _gather(part, n: int):
    """The n rows of which this rank holds `part`."""
    bounds = _bounds(n)
    sizes = [end - begin for begin, end in zip(bounds, bounds[1:])]
    padded = part.new_zeros(max(sizes), *part.shape[1:])
    padded[: len(part)] = part
    pieces = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes)])


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.n = len(x)
        return _part(x).clone()

    @staticmethod
    def backward(ctx, gradient):
        return _gather(gradient, ctx.n)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part, n):
        return _gather(part, n)

    @staticmethod
    def backward(ctx, gradient):
        return _part(gradient).clone(), None


# ---- BatchNorm on the CPU (torch's SyncBatchNorm is for GPUs) ---------------------------------------------------


class _BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all ranks."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        y, mean, var, n = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (n / (n - 1)), self.momentum)
        return y


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with the statistics of all ranks: (y, mean, var, count)."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        kind, x = x.dtype, x.to(weight.dtype)
        mean = x.mean(dim=(0, 2, 3))
        squares = (x - _wide(mean)).square().sum(dim=(0, 2, 3))
        local = torch.stack([mean, squares, torch.full_like(mean, x.numel() // x.shape[1])])
        pieces = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, local)
        means, squares, counts = torch.stack(pieces).double().unbind(1)  # each (ranks, C)
        n = counts.sum(0)
        mean = (means * counts).sum(0) / n
        var = (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / n
        scale = (var + eps).rsqrt().to(x.dtype)
        mean, var, n = mean.to(x.dtype), var.to(x.dtype), n.to(x.dtype)
        normal = (x - _wide(mean)) * _wide(scale)
        ctx.save_for_backward(normal, weight, scale, n)
        ctx.mark_non_differentiable(mean, var, n)
        return torch.addcmul(_wide(bias), normal, _wide(weight)).to(kind), mean, var, n

    @staticmethod
    def backward(ctx, gradient, *_):
        normal, weight, scale, n = ctx.saved_tensors
        kind, gradient = gradient.dtype, gradient.to(weight.dtype)
        sums = torch.stack([gradient.sum(dim=(0, 2, 3)), (gradient * normal).sum(dim=(0, 2, 3))])
        g_bias, g_weight = sums.clone()  # this rank's part; `add_gradients` adds the others'
        dist.all_reduce(sums)
        inner = gradient - _wide(sums[0] / n) - normal * _wide(sums[1] / n)
        return (inner * _wide(weight * scale)).to(kind), g_weight, g_bias, None


def _wide(v):
    return v.view(1, -1, 1, 1)
