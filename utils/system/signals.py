"""SIGINT and SIGTERM: collected while a run trains, and agreed on by all processes."""

import contextlib
import signal

import torch
import torch.distributed as dist

from utils.system.processes import is_distributed

CHECK_EVERY = {"cpu": 1, "cuda": 10}  # steps between two exchanges of signals among the ranks


def agree_on_signal(received: list, device: torch.device, step: int = 0) -> int:
    """The signal at which all ranks end after this step, or 0; `received` holds this rank's signals.

    On GPUs the ranks exchange signals every few steps only, because an exchange makes them wait for one another. On
    the CPU they wait at every step anyway.
    """
    signum = received[0] if received else 0
    if not is_distributed():
        return signum
    if step % CHECK_EVERY[device.type]:
        return 0
    signums = torch.tensor([signum])  # on the CPU, so that nothing waits for the GPU
    dist.all_reduce(signums, op=dist.ReduceOp.MAX)
    return int(signums)


@contextlib.contextmanager
def catch_signals():
    """Context that yields a list for the first SIGINT or SIGTERM; a second signal raises KeyboardInterrupt."""
    received = []

    def handle(signum, frame):
        if received and not is_distributed():  # torchrun sends the terminal's signal a second time
            raise KeyboardInterrupt
        received.append(signum)

    old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
