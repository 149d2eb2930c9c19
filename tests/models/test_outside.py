"""Architectures of torchvision and of the user."""


import own_networks
import pytest
import torch
from torch import nn

import models
from models import outside
from utils.runs.checkpoints import load_checkpoint, pack_checkpoint, restore_model, save_checkpoint
from utils.runs.networks import check_architecture
from utils.system.refusals import Refusal

SMALL = ("tv:mobilenet_v3_small", "tv:shufflenet_v2_x0_5", "tv:squeezenet1_1", "tv:googlenet")


@pytest.fixture
def unnamed(monkeypatch):
    monkeypatch.setattr(outside, "named", {})
    monkeypatch.setattr(models, "named", outside.named)


@pytest.mark.parametrize("name", SMALL)
def test_a_classifier_of_torchvision_is_built_saved_and_restored(name, tmp_path):
    check_architecture("-mt", name, 5, 64, 64)
    model = models.place(models.build(name, 5, (0.4,) * 3, (0.2,) * 3, size=64), "cpu").eval()
    save_checkpoint(tmp_path / "one.pt", pack_checkpoint(model, name))
    again = restore_model(load_checkpoint(tmp_path / "one.pt"), "one.pt")
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(again(x), model(x)) and model(x).shape == (2, 5)
    assert (again.num_classes, again.size, again.name) == (5, 64, name)


def test_a_transformer_of_torchvision_takes_the_images_size():
    with torch.device("meta"):
        assert models.build("tv:vit_b_16", 5, size=64)(torch.empty(2, 3, 64, 64)).shape == (2, 5)


def test_the_users_function_is_imported_because_the_command_names_it_only(unnamed, tmp_path):
    name = "own_networks:plain"
    assert models.architecture(name) == name and outside.named == {name: own_networks.plain}
    model = models.place(models.build(name, 4), "cpu")
    save_checkpoint(tmp_path / "one.pt", pack_checkpoint(model, name))
    assert torch.equal(restore_model(load_checkpoint(tmp_path / "one.pt"), "x")(torch.zeros(1, 3, 32, 32)),
                       model.eval()(torch.zeros(1, 3, 32, 32)))
    outside.named.clear()
    with pytest.raises(Refusal, match="one.pt holds a model of own_networks:plain.*add -mt own_networks:plain"):
        restore_model(load_checkpoint(tmp_path / "one.pt"), "one.pt")
    assert not outside.named


@pytest.mark.parametrize("spoil", [
    lambda e: e.update(type="os:system"), lambda e: e.update(type="tv:nothing"), lambda e: e.update(classes=1),
    lambda e: e.update(classes=10**12), lambda e: e.update(size=10**6), lambda e: e.pop("classes"),
    lambda e: e.update(classes="5"), lambda e: e.update(type=["tv:resnet18"]), lambda e: e.update(classes=6),
    lambda e: e["state_dict"].popitem(), lambda e: e.update(type="tv:resnet18"),
])
def test_a_file_that_lies_about_its_architecture_is_refused_and_imports_nothing(spoil, unnamed):
    checkpoint = pack_checkpoint(models.build("tv:shufflenet_v2_x0_5", 5), "tv:shufflenet_v2_x0_5")
    spoil(checkpoint["model"])
    with pytest.raises(Refusal, match="one.pt (does not hold|holds a model of)"):
        restore_model(checkpoint, "one.pt")
    assert not outside.named


def test_lazy_layers_learn_their_sizes_when_the_network_is_built(unnamed):
    outside.named["own:lazy"] = lambda classes: nn.Sequential(nn.LazyConv2d(4, 8, 8), nn.LazyBatchNorm2d(),
                                                              nn.Flatten(), nn.LazyLinear(classes))
    for size, features in ((32, 64), (48, 144)):
        model = models.build("own:lazy", 5, size=size)
        assert model.training and all(layer.training for layer in model.modules())
        assert models.last_linear(model)[1].weight.shape == (5, features)
        assert models.place(model, "cpu")(torch.zeros(3, 3, size, size)).shape == (3, 5)


@pytest.mark.parametrize("error, said", [
    (ValueError("one\n two"), "ValueError: one two"), (KeyError(), "KeyError"),
    (SystemExit(), "SystemExit: it ends the program"), (SystemExit(0), "SystemExit: it ends the program"),
    (SystemExit("usage:\nx"), "SystemExit: it ends the program with usage: x"),
])
def test_an_error_of_somebodys_code_is_described_in_one_line(error, said):
    assert models.describe_error(error) == said
