"""Suspects whose weights are at hand: which model a file gives, files that do not fit, and code of somebody else's."""

import json

import own_networks
import pytest
import torch
from commands import refused, verify
from comparing import same
from torch import nn

import models
from models import outside
from utils.answers.ask import check_pixels
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, pack_checkpoint, save_checkpoint
from utils.runs.weights import read_suspect_model
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")
MEAN_STD = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
OTHER = ([0.1, 0.1, 0.1], [0.5, 0.5, 0.5])
NAMES = ("vgg11", "res18", "tv:shufflenet_v2_x0_5", "own_networks:plain")
PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """The user's functions that -mt named; those of a test are forgotten after it."""
    monkeypatch.setattr(outside, "named", {"own_networks:plain": own_networks.plain})
    monkeypatch.setattr(models, "named", outside.named)


def network(name="res18", classes=10, mean_std=MEAN_STD, width=4, size=32):
    """A model with random weights and statistics, in eval mode."""
    model = models.build(name, classes, *mean_std, **({"width": width} if name in models.NAMES else {}), size=size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def write(path, model, kind="state dict"):
    """Its weights in a file: "state dict", "network alone" without normalisation, "checkpoint" or "safetensors"."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if kind == "network alone":
        weights = {name.removeprefix("1."): tensor for name, tensor in weights.items() if name.startswith("1.")}
    if kind == "checkpoint":
        save_checkpoint(path, pack_checkpoint(model))
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def read(path, *architectures, mean_std=OTHER, classes=10, size=32):
    return read_suspect_model(path, list(architectures), classes, size, mean_std)[0]


def refusal(path, *architectures, **settings) -> str:
    with pytest.raises(Refusal) as caught:
        read(path, *architectures, **settings)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def claim_refused(owner, *flags) -> str:
    """The sentence in which a claim on a suspect is refused; it names no flag that a claim lacks."""
    err = refused("utils.verify", "claim", owner[0], "--trust-owner", "--suspect", *flags)
    assert len(err) < 700 and "--width" not in err and "--image-size" not in err
    return err


@pytest.mark.parametrize("kind", ["state dict", "safetensors", "checkpoint"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_model_that_was_saved_frozen_and_with_its_own_normalisation(name, kind, tmp_path):
    model = network(name)
    found = read(write(tmp_path / "w.pt", model, kind), *(NAMES if kind != "checkpoint" else []))  # that one which fits
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    assert found.name == name
    same(found.state_dict(), model.state_dict())  # weights, statistics and normalisation
    assert torch.allclose(found(PIXELS), model(PIXELS), atol=1e-5)


def test_every_kind_of_file_leads_to_the_same_verdict(owner, bank, tmp_path):
    weights = load_checkpoint(find_checkpoint(owner[0]))["model"]["state_dict"]
    torch.save(weights, tmp_path / "dict.pt")
    torch.save({name[2:]: tensor for name, tensor in weights.items() if name[0] == "1"}, tmp_path / "alone.pt")

    def figures(*flags):
        status, *_ = verify("claim", owner[0], "--trust-owner", "--benign", *bank, "--suspect", *flags,
                            "--json", tmp_path / "c.json")
        report = json.loads((tmp_path / "c.json").read_text())
        return status, report["hits"], report["decision"], report["tests"]

    run = figures(owner[0])
    assert run[3]["T3"]["log10_p"] is not None  # which the normalisation changes
    for file in ("dict.pt", "alone.pt"):
        assert figures(tmp_path / file, "-mt", "res18", "-mt", "vgg11") == run


def test_a_state_dict_needs_its_architecture_by_name(tmp_path):
    for kind in ("network alone", "safetensors"):
        assert "name its architecture by -mt" in refusal(write(tmp_path / "w.pt", network(), kind))
    path = write(tmp_path / "w.pt", network())
    assert "pass the -mt that" in refusal(path, "vgg11")
    assert "the model has no 1.conv1.weight" in refusal(path, "vgg11", "res34")  # says why the first does not fit


def test_another_number_of_classes_or_another_image_size_is_refused(owner, tmp_path):
    for name in NAMES:
        assert "answers with 7 classes, not 10" in refusal(write(tmp_path / "w.pt", network(name, 7)), name)
    path = write(tmp_path / "c.pt", network("vgg11", size=48), "checkpoint")
    assert "images of 48 x 48 pixels, the triggers are 32 x 32" in refusal(path) and read(path, size=48).size == 48
    said = claim_refused(owner, write(tmp_path / "w.pt", network("vgg11")), "-mt", "tv:alexnet")
    assert "-mt tv:alexnet cannot be built" in said and "pass --predictions" in said


@pytest.mark.parametrize("spoil, words", [
    (lambda w: [1, 2], "no checkpoint"), (lambda w: {("a", 1): torch.ones(1)}, "w.pt"),
    (lambda w: {"model": {"type": "res18", "state_dict": w, "size": float("inf")}}, "does not hold a model"),
    (lambda w: {"model": {"type": "res18", "state_dict": w | {"1.bn1.running_var": torch.full((4,), torch.inf)}}},
     "weights are not finite"),
    (lambda w: w | {"1.linear.bias": torch.full((10,), torch.nan)}, "1.linear.bias is not finite"),
    (lambda w: w | {"1.conv1.weight": torch.ones(0, 3, 3, 3)}, "the shape (0, 3, 3, 3)"),
])
def test_damaged_or_hostile_weights_are_refused_in_one_sentence(spoil, words, owner, tmp_path):
    torch.save(spoil(dict(network().state_dict())), tmp_path / "w.pt")
    assert words in claim_refused(owner, tmp_path / "w.pt", "-mt", "res18")
    assert "absent.pt" in claim_refused(owner, tmp_path / "absent.pt", "-mt", "res18")


def test_a_small_file_cannot_ask_for_much_memory(tmp_path, monkeypatch):
    def build(*arguments, **more):
        assert torch.empty(0).is_meta, "memory before the file has shown that it holds as much"
        return whole(*arguments, **more)

    whole = models.build
    torch.save({"conv1.weight": torch.ones(1024, 1, 1, 1)}, tmp_path / "w.pt")
    monkeypatch.setattr(models, "build", build)
    assert "the shape (1024, 1, 1, 1)" in refusal(tmp_path / "w.pt", "res152")


def test_code_of_somebody_elses_that_fails_later_is_refused_too(owner, tmp_path):
    """It gives logits for the two images of the trial, and for no other number."""
    torch.save(own_networks.Body(10).state_dict(), tmp_path / "w.pt")
    assert "SystemExit" in claim_refused(owner, tmp_path / "w.pt", "-mt", "own_networks:FailsLater")


def test_the_judge_says_which_pixels_plain_weights_want_and_a_checkpoint_says_it_itself(tmp_path):
    """(255 x - 51) / 102 are (x - 0.2) / 0.4; they replace the normalisation of the triggers and of the file."""
    pixels, model = check_pixels([51.0], [102.0], 255.0), network(mean_std=([0.2] * 3, [0.4] * 3))
    for kind in ("network alone", "state dict"):
        path = write(tmp_path / "w.pt", model if kind == "network alone" else network(mean_std=MEAN_STD), kind)
        found = read_suspect_model(path, ["res18"], 10, 32, OTHER, pixels)[0]
        assert torch.allclose(found[0](PIXELS), (PIXELS - 0.2) / 0.4, atol=1e-6)
    with pytest.raises(Refusal, match="c.pt normalises its pixels itself: leave out --mean"):
        read_suspect_model(write(tmp_path / "c.pt", model, "checkpoint"), [], 10, 32, OTHER, pixels)
