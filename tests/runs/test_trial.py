"""A network from outside is tried before anything is made; most refusals: tests/scripts/test_refused_networks.py."""

import pytest
import torch

import models
from utils.runs.networks import check_training
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("unnamed")


def tried(name, **more):
    """The trial of a network of own_networks.py, named as a command line does it."""
    return check_training("-dmt", models.architecture(f"own_networks:{name}"), 5, 32, 64, **more)


def test_autocast_is_tried_where_it_is_wanted():
    assert tried("OneKindOfFloat") and tried("Body", amp=torch.bfloat16, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()  # no longer
    with pytest.raises(Refusal, match="cannot be trained on cpu with --amp .RuntimeError"):
        tried("OneKindOfFloat", amp=torch.bfloat16)


def test_a_batch_of_one_and_a_missing_compiler_are_found_before_a_folder_is_made(monkeypatch):
    for name, size, width, words in (("tv:mobilenet_v3_small", 32, 64, "1 x 1"), ("res18", 8, 4, "at 8 pixels")):
        with pytest.raises(Refusal, match=f"--batch-size 1: BatchNorm in -mt {name} .* {words}"):
            check_training("-mt", name, 5, size, width, batch_size=1)
    assert check_training("-mt", "res18", 5, 32, 4, batch_size=1) is None  # 4 x 4 at its end

    def no_compiler(function):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(Refusal, match="--compile: torch.compile does not work on cpu here .*InvalidCxxCompiler"):
        check_training("-mt", "res18", 5, 32, 4, compile=True)
