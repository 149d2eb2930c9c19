"""What depends on the machine: processes of torchrun, device, torch's switches, signals, pictures without a screen.

Without torchrun there is one process, and the functions about others do nothing.
"""

import contextlib
import ctypes
import io
import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from utils.system.refusals import Refusal, exit_hooks, rank

ROOT = Path(__file__).resolve().parents[2]
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}  # --amp
CHECK_EVERY = {"cpu": 1, "cuda": 10}  # steps between two exchanges of signals among the ranks


def add_device_flag(parser) -> None:
    """Declare --device."""
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"), help="where to compute")


def choose_device(name: str, deterministic: bool = False, tf32: bool = True) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; Refusal for a device that is not there.

    Whether convolutions may be in TF32 is set here, before any model answers. Under torchrun this call also makes the
    processes meet; each gets a GPU of its own.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise Refusal(f"--device {name}: this machine or this PyTorch has none; pass --device auto or cpu")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first use of cuBLAS
    torch.backends.cudnn.allow_tf32 = tf32
    return join_torchrun(torch.device(name))


def prepare_torch(seed: int, deterministic: bool) -> None:
    """Seed torch and set its global switches; `deterministic` forbids kernels whose results vary between runs."""
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        torch.use_deterministic_algorithms(True)
    # glibc keeps freed memory; else each step on the CPU asks the kernel for it again: a tenth of its time
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def autocast(kind: str, amp: torch.dtype | None):
    """Autocast to bf16 or fp16 on a kind of device ("cuda", "cpu"); one that does nothing where `amp` is None."""
    return torch.autocast(kind, amp or torch.bfloat16, enabled=amp is not None)


def describe_process(device: torch.device) -> dict:
    """Command line, commit, device and versions of this process, for `run.json`."""
    try:
        git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
        commit = git.stdout.strip() or None
    except OSError:  # no git on this machine
        commit = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"command": sys.argv, "git_commit": commit, "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "device": device.type, "device_name": name, "threads": torch.get_num_threads(), **versions}


def is_rank_0() -> bool:
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
        exit_hooks.append(_leave)
    return device


def restart_count() -> int:
    """How often torchrun has restarted the processes after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _leave(status: int) -> None:
    """End this process at once, without the interpreter's teardown, in which torch 2.15 sometimes aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def rank_0_first():
    """Context in which rank 0 runs first and the others after it, for downloads, caches and folders."""
    meet = (lambda: dist.all_reduce(torch.zeros(1))) if is_distributed() else (lambda: None)
    if not is_rank_0():
        meet()
    yield
    if is_rank_0():
        meet()


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
    """Context that yields a list for the first SIGINT, SIGTERM or SIGHUP; a second signal raises KeyboardInterrupt.

    But not a second SIGHUP: a terminal that closes sends it, and so does its shell. Under nohup it stays ignored.
    """
    received = []

    def handle(signum, frame):
        # torchrun sends the terminal's signal a second time
        if received and signum != signal.SIGHUP and not is_distributed():
            raise KeyboardInterrupt
        received.append(signum)

    caught = [signal.SIGINT, signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
    old = {s: signal.signal(s, handle) for s in caught}
    try:
        yield received
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def new_figure(width: float, height: float, rows: int = 0, columns: int = 0):
    """A matplotlib figure of width x height inches that needs no screen, and its axes row by row; none by default."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat) if rows else []


def figure_png(figure, dpi: int = 110) -> bytes:
    """The matplotlib figure as the content of a PNG file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names may have letters that the font lacks
        figure.savefig(buffer := io.BytesIO(), dpi=dpi, format="png")
    return buffer.getvalue()
