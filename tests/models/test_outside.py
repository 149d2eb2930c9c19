"""Architectures of torchvision and of the user."""

import own_networks
import pytest
import torch

import models
from models import outside
from utils.runs.checkpoints import load_checkpoint, pack_checkpoint, restore_model, save_checkpoint
from utils.runs.networks import check_architecture
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("unnamed")


@pytest.mark.parametrize("name", ["tv:squeezenet1_1", "tv:googlenet", "own_networks:plain"])
def test_a_network_from_outside_is_built_saved_and_restored(name, tmp_path):
    assert models.architecture(name) == name
    check_architecture("-mt", name, 5, 64, 64)
    model = models.place(models.build(name, 5, (0.4,) * 3, (0.2,) * 3, size=64), "cpu").eval()
    save_checkpoint(tmp_path / "one.pt", pack_checkpoint(model, name))
    again = restore_model(load_checkpoint(tmp_path / "one.pt"), "one.pt")
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(again(x), model(x)) and model(x).shape == (2, 5)
    assert (again.num_classes, again.size, again.name) == (5, 64, name)
    outside.named.clear()  # a user's function is imported because the command names it only
    if name.startswith("own"):
        with pytest.raises(Refusal, match=f"one.pt holds a model of {name}.*add -mt {name}"):
            restore_model(load_checkpoint(tmp_path / "one.pt"), "one.pt")
    assert not outside.named


@pytest.mark.parametrize("spoil", [
    lambda e: e.update(type="os:system"), lambda e: e.update(classes=10**12), lambda e: e.update(size=10**6),
    lambda e: e.pop("classes"), lambda e: e.update(type=["tv:resnet18"]), lambda e: e.update(classes=6),
])
def test_a_file_that_lies_about_its_architecture_is_refused_and_imports_nothing(spoil):
    checkpoint = pack_checkpoint(models.build("tv:shufflenet_v2_x0_5", 5), "tv:shufflenet_v2_x0_5")
    spoil(checkpoint["model"])
    with pytest.raises(Refusal, match="one.pt (does not hold|holds a model of)"):
        restore_model(checkpoint, "one.pt")
    assert not outside.named


def test_lazy_layers_learn_their_sizes_when_the_network_is_built():
    outside.named["own:lazy"] = own_networks.lazy
    for size, features in ((32, 1024), (48, 2304)):
        model = models.build("own:lazy", 5, size=size)
        assert all(layer.training for layer in model.modules())
        assert models.last_linear(model)[1].weight.shape == (5, features)
        assert models.place(model, "cpu")(torch.zeros(3, 3, size, size)).shape == (3, 5)
