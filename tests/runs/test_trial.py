"""A network from outside is tried before anything is made."""

import pytest
import torch
from torch import nn

import models
from models import outside
from utils.runs.networks import check_training, require_gradient_of_images, require_two_passes
from utils.system.refusals import Refusal


class Body(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 4, 4), nn.Linear(1024, classes)

    def hidden(self, x):
        return self.first(x).relu().flatten(1)

    def forward(self, x):
        return self.last(self.hidden(x))


class OutsideTheStateDict(Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.signs = torch.randn(1024)

    def hidden(self, x):
        return super().hidden(x) * self.signs


class RandomInEvaluation(Body):
    def hidden(self, x):
        return nn.functional.dropout(super().hidden(x), training=True)


class ExtraState(Body):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


class ComplexBuffer(Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))


class EndsInTraining(Body):
    def forward(self, x):
        if self.training:
            raise SystemExit("no training")
        return super().forward(x)


class FrozenBackbone(Body):
    def hidden(self, x):
        with torch.no_grad():
            return super().hidden(x)


class NoGradient(Body):
    def forward(self, x):
        return super().forward(x).detach()


class ChangesInPlace(Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("scale", torch.ones(1024))

    def hidden(self, x):
        hidden = super().hidden(x)
        self.scale.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        return hidden * self.scale


class OneKindOfFloat(Body):
    def hidden(self, x):
        hidden = super().hidden(x)
        return torch.zeros(len(x), 1024).index_add(0, torch.arange(len(x)), hidden)


@pytest.fixture(autouse=True)
def by_name(monkeypatch):
    """The networks of this file, as if the command line had named them."""
    kinds = {f"{__name__}:{name}": kind for name, kind in globals().items() if isinstance(kind, type)}
    monkeypatch.setattr(outside, "named", kinds)
    monkeypatch.setattr(models, "named", kinds)


def tried(kind, **more):
    return check_training("-dmt", f"{__name__}:{kind.__name__}", 5, 32, 64, **more)


def test_the_projects_own_are_not_tried_and_others_come_back():
    assert check_training("-mt", "res18", 5, 32, 64) is None
    assert check_training("-mt", "tv:squeezenet1_1", 5, 32, 64).name == "tv:squeezenet1_1"
    for kind in (Body, RandomInEvaluation, FrozenBackbone, ChangesInPlace, OneKindOfFloat):
        assert tried(kind, deterministic=True).num_classes == 5
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("kind, words", [
    (OutsideTheStateDict, "keeps tensors that are in no state dict; make them parameters or buffers"),
    (ExtraState, "cannot be saved and read again .AttributeError"),
    (ComplexBuffer, "cannot be saved and read again .ValueError.*ComplexFloatStorage"),
    (EndsInTraining, "cannot be trained on cpu .SystemExit: it ends the program with no training"),
    (NoGradient, "cannot be trained: its logits have no gradient with respect to its weights"),
])
def test_what_cannot_be_trained_or_kept_is_refused(kind, words):
    with pytest.raises(Refusal, match=f"^-dmt {__name__}:{kind.__name__} .*{words}"):
        tried(kind)


def test_autocast_is_tried_where_it_is_wanted():
    tried(Body, amp=torch.bfloat16)
    with pytest.raises(Refusal, match="cannot be trained on cpu with --amp .RuntimeError"):
        tried(OneKindOfFloat, amp=torch.bfloat16)


def test_what_an_ascent_and_a_watermark_step_need():
    for kind in (Body, RandomInEvaluation):
        require_gradient_of_images("-tt margin", tried(kind))
        require_two_passes("-tt margin", tried(kind))
    with pytest.raises(Refusal, match="-tt margin moves images along the gradient.*FrozenBackbone"):
        require_gradient_of_images("-tt margin", tried(FrozenBackbone))
    with pytest.raises(Refusal, match="ChangesInPlace does not allow.*or pass --bn-stats shared"):
        require_two_passes("-tt margin", tried(ChangesInPlace))


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
