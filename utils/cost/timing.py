"""Timing and peak memory on a device.

Contenders are timed by turns, each once a round, so that a ratio of their times holds on a busy machine too.
"""

import math
import statistics
import time
from pathlib import Path

import torch

from utils.training.cuda_graph import WARM_UP


def wait_for_device(device):
    """Wait until the device has finished the work that was started on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_per_call(call, n, device) -> float:
    """Seconds a call, the mean over n calls in a row."""
    wait_for_device(device)
    began = time.perf_counter()
    for _ in range(n):
        call()
    wait_for_device(device)
    return (time.perf_counter() - began) / n


def time_by_turns(calls: dict, rounds: int, device, seconds: float) -> dict:
    """{name: [seconds of a call in each round]}: every call is warmed up, then repeated for about `seconds` a round."""
    repeats, times = {}, {name: [] for name in calls}
    for name, call in calls.items():
        seconds_per_call(call, WARM_UP + 1 if device.type == "cuda" else 1, device)
        repeats[name] = min(200, max(1, math.ceil(seconds / seconds_per_call(call, 1, device))))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_per_call(call, repeats[name], device))
            time.sleep(0.1)  # loader processes fill their queues now, not while the next contender is timed
    return times


def matrix_product(device, amp):
    """(call, FLOP of a call): a square matrix product, in bf16 with `amp`, else in float32."""
    n, dtype = (8192 if device.type == "cuda" else 1024), (torch.bfloat16 if amp else torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b, 2 * n**3


class PeakMemory:
    """Context manager that measures peak memory: `peak` in bytes afterwards, None where it is unknown.

    On CUDA the memory that is allocated on the device, elsewhere the resident memory of this process.
    """

    def __init__(self, device):
        self.device, self.peak = device, None

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak that VmHWM reports
            except OSError:
                pass
        return self

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
            return
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        except (OSError, StopIteration):
            pass


def median_ratio(slow, fast) -> float:
    """Median over the rounds of the ratio slow / fast; both are lists of seconds, one a round."""
    return statistics.median(a / b for a, b in zip(slow, fast))
