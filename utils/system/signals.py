"""TODO (utils.distributed utils.fit)"""

import contextlib
import signal

import torch
import torch.distributed as dist

from utils.system.processes import is_distributed

LOOK_EVERY = {"cpu": 1, "cuda": 10}  # steps between two looks at the other ranks' signals


def agree_on_signal(received: list, device: torch.device, step: int = 0) -> int:
    """The signal that asks all ranks to end at this very step, or 0; `received` holds this rank's signals.

    Several ranks on GPUs look every few steps only, so that they need not wait for one another at each. On the CPU
    they do in any case, and torchrun leaves them 30 seconds to end.
    """
    signum = received[0] if received else 0
    if not is_distributed():
        return signum
    if step % LOOK_EVERY[device.type]:
        return 0
    signums = torch.tensor([signum])  # on the CPU: the device is not waited for
    dist.all_reduce(signums, op=dist.ReduceOp.MAX)
    return int(signums)


@contextlib.contextmanager
def catch_signals():
    """Collect the first SIGINT or SIGTERM in the list that is yielded; a second one ends at once."""
    received = []

    def handle(signum, frame):
        if received and not is_distributed():  # torchrun passes on what the terminal has sent already
            raise KeyboardInterrupt
        received.append(signum)

    old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
