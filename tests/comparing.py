"""Comparisons of two run folders, two checkpoints or two models."""

import torch
from commands import rows_of

from utils.runs.checkpoints import load_checkpoint


def same(a, b, where="checkpoint"):
    """Assert that two contents of files are bit-equal, but for times."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in ("seconds", "images_per_second"):
                same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b and type(a) is type(b), where


def same_runs(one, two):
    """Assert that two run folders hold the same rows and the same checkpoints, and no half-written file."""
    names = sorted(p.name for p in (one / "checkpoints").iterdir())
    assert names == sorted(p.name for p in (two / "checkpoints").iterdir())
    for name in names:
        if name == "checkpoint_previous.pt":  # after a signal it is from the middle of an epoch
            continue
        same(load_checkpoint(one / "checkpoints" / name), load_checkpoint(two / "checkpoints" / name), name)
    same(rows_of(one), rows_of(two), "metrics.jsonl")
    assert not list(one.rglob("*.partial")) and not list(two.rglob("*.partial"))


def equal_parameters(one, other):
    """Whether two models' parameters are bit-equal."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def apart(one, other):
    """Largest difference between two models' weights and buffers."""
    return max(float((a.double() - b.double()).abs().max()) for a, b in
               zip(one.state_dict().values(), other.state_dict().values()))
