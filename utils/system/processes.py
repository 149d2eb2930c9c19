"""The processes that torchrun starts: which one this is, and how they meet, wait and part.

Without torchrun there is one process, and every function here returns at once.
"""

import contextlib
import os
import sys

import torch
import torch.distributed as dist

from utils.system.refusals import Refusal, exit_hooks


def rank() -> int:
    """This process's number; 0 where there is only one."""
    return int(os.environ.get("RANK", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def is_chief() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join_torchrun(device: torch.device) -> torch.device:
    """Meet the other ranks, if torchrun started this process, and return the device of this one.

    Raises Refusal where the device cannot be shared out over the processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if device.type not in ("cpu", "cuda"):
        raise Refusal(f"--device {device.type}: torchrun works with cuda and cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():  # every rank sees this; rank 0 says it
            raise Refusal(f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here")
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        store, number, world = next(dist.rendezvous("env://"))
        if os.environ["GROUP_WORLD_SIZE"] == "1":
            # torchrun keeps its store over a restart, and with it the addresses of processes that have ended. Not on
            # several machines, whose restart counts may differ: the ranks would not find one another
            store = dist.PrefixStore(f"restart {restart_count()}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=world)
        exit_hooks.append(leave_processes)
    return device


def restart_count() -> int:
    """How often torchrun has restarted the processes after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def leave_processes(status: int) -> None:
    """End this process at once, without the interpreter's teardown, in which torch 2.15 sometimes aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for_all() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.all_reduce(torch.zeros(1))


@contextlib.contextmanager
def chief_first():
    """Context in which rank 0 runs first and the others after it, for downloads, caches and folders."""
    if not is_chief():
        wait_for_all()
    yield
    if is_chief():
        wait_for_all()
