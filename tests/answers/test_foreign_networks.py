"""Suspects whose architecture is somebody else's code: what it may do wrong, when it is built and when it is asked."""

import pytest
import torch
from commands import verify
from torch import nn

import models
from models import outside
from utils.runs.suspect_weights import read_suspect_model
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """No command before has named a user's function, and those of a test are forgotten after it."""
    monkeypatch.setattr(outside, "named", {})
    monkeypatch.setattr(models, "named", outside.named)


def claim_refused(capsys, folder, *flags) -> str:
    """The sentence, printable, in which a claim on a suspect is refused; it names no flag that a claim lacks."""
    status, _, err = verify(capsys, "claim", folder, "--trust-owner", "--suspect", *flags)
    assert status == 2 and len(err) < 700 and err.strip().isprintable()
    assert "--width" not in err and "--image-size" not in err
    return err


class _Odd(nn.Linear):
    def __init__(self, classes, raised=None):
        super().__init__(2, classes)
        self.raised = raised

    def forward(self, x):
        if self.raised and len(x) != 2:
            raise self.raised
        return torch.zeros(len(x) if len(x) == 2 else 1, 10)


def raises_later(classes):
    return _Odd(classes, KeyError("batch"))


def exits_later(classes):
    return _Odd(classes, SystemExit(0))


def exits(classes):
    raise SystemExit(0)


@pytest.mark.parametrize("function, words", [("raises_later", "KeyError: 'batch'"), ("exits_later", "SystemExit"),
                                             ("_Odd", "not with a row for each"), ("exits", "SystemExit")])
def test_code_of_somebody_elses_that_fails_later_is_refused_too(function, words, owner, tmp_path, capsys):
    torch.save(nn.Linear(2, 10).state_dict(), tmp_path / "w.pt")
    assert words in claim_refused(capsys, owner[0], tmp_path / "w.pt", "-mt", f"{__name__}:{function}")


def test_a_network_that_does_not_take_the_triggers_size_is_refused(owner, tmp_path, capsys):
    torch.save(models.build("tv:alexnet", 10, size=64).state_dict(), tmp_path / "w.pt")
    said = claim_refused(capsys, owner[0], tmp_path / "w.pt", "-mt", "tv:alexnet")
    assert "-mt tv:alexnet cannot be built" in said and "pass --predictions" in said
    torch.save(models.build("vgg11", 10, width=4).state_dict(), tmp_path / "w.pt")
    with pytest.raises(Refusal, match="w.pt: -mt vgg11 halves its images five times: name by -mt"):
        read_suspect_model(tmp_path / "w.pt", ["vgg11"], 10, 16, ([0.0] * 3, [1.0] * 3))
