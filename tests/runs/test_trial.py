"""A network from outside is tried before anything is made."""

import pytest
import torch

import models
from utils.runs.networks import check_training, require_gradient_of_images, require_two_passes
from utils.system.refusals import Refusal


@pytest.fixture(autouse=True)
def by_name(unnamed):
    """Networks of own_networks.py, named as a command line does it."""
    for name in ("Body", "RandomInEvaluation", "FrozenBackbone", "ChangesInPlace", "OneKindOfFloat"):
        models.architecture(f"own_networks:{name}")


def tried(name, **more):
    return check_training("-dmt", f"own_networks:{name}", 5, 32, 64, **more)


def test_the_projects_own_are_not_tried_and_others_come_back():
    assert check_training("-mt", "res18", 5, 32, 64) is None
    assert check_training("-mt", "tv:squeezenet1_1", 5, 32, 64).name == "tv:squeezenet1_1"
    for kind in ("Body", "RandomInEvaluation", "FrozenBackbone", "ChangesInPlace", "OneKindOfFloat"):
        assert tried(kind, deterministic=True).num_classes == 5
    assert not torch.are_deterministic_algorithms_enabled()


def test_autocast_is_tried_where_it_is_wanted():
    tried("Body", amp=torch.bfloat16)
    with pytest.raises(Refusal, match="cannot be trained on cpu with --amp .RuntimeError"):
        tried("OneKindOfFloat", amp=torch.bfloat16)


def test_what_an_ascent_and_a_watermark_step_need():
    for kind in ("Body", "RandomInEvaluation"):
        require_gradient_of_images("-tt margin", tried(kind))
        require_two_passes("-tt margin", tried(kind))
    with pytest.raises(Refusal, match="-tt margin moves images along the gradient.*FrozenBackbone"):
        require_gradient_of_images("-tt margin", tried("FrozenBackbone"))
    with pytest.raises(Refusal, match="ChangesInPlace does not allow.*or pass --bn-stats shared"):
        require_two_passes("-tt margin", tried("ChangesInPlace"))


def test_a_batch_of_one_and_a_missing_compiler_are_found_before_a_folder_is_made(monkeypatch):
    with pytest.raises(Refusal, match="--batch-size 1: BatchNorm in -mt tv:mobilenet_v3_small has .* of 1 x 1"):
        check_training("-mt", "tv:mobilenet_v3_small", 5, 32, 64, batch_size=1)
    with pytest.raises(Refusal, match="--batch-size 1: BatchNorm in -mt res18 .* at 8 pixels"):
        check_training("-mt", "res18", 5, 8, 4, batch_size=1)
    assert check_training("-mt", "res18", 5, 32, 4, batch_size=1) is None  # 4 x 4 at its end

    def no_compiler(function):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(Refusal, match="--compile: torch.compile does not work on cpu here .*InvalidCxxCompiler"):
        check_training("-mt", "res18", 5, 32, 4, compile=True)
