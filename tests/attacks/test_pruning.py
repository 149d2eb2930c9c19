"""Pruning, quantisation and fine-tuning, on a small model."""

import copy
from argparse import Namespace

import pytest
import torch
from torch import nn

import models
from utils.attacks.editing import channel_activations, check_edit, layer_weights, prune, pruning_masks, quantize
from utils.system.refusals import Refusal

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
X = IMAGES.float().div(255)


def small():
    torch.manual_seed(0)
    model = models.build("res18", 10, width=4).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.bias, 0.1, 0.5)
    return model


def test_activation_pruning_of_one_layer_removes_its_least_active_channels(monkeypatch):
    model = small()
    monkeypatch.setattr("utils.attacks.editing.pass_length", lambda *_: 5)
    measured = channel_activations(model, IMAGES)["1.bn1"]
    out = model[1].bn1(model[1].conv1(model[0](X))).relu().mean(dim=(0, 2, 3))
    assert torch.allclose(measured.float(), out, atol=1e-5)
    dead = prune(copy.deepcopy(model), pruning_masks(model, 1.0, "activation", {"1.bn1": measured}))
    assert dead[1].bn1(dead[1].conv1(dead[0](X))).abs().max() == 0
    kept = pruning_masks(model, 0.5, "activation", {"1.bn1": measured})["1.bn1.weight"]
    assert kept.sum() == 2 and measured[kept].min() >= measured[~kept].max()


BLOCKS = {"res18": (2, 2, 2, 2), "res50": (3, 4, 6, 3), "tv:resnet18": (2, 2, 2, 2)}  # the last adds in place
LINEAR = {f"1.features.{i}.block.{2 if i < 4 else 3}.1" for i in range(1, 12)}  # ends of the blocks of MobileNetV3


@pytest.mark.parametrize("name, inner", [("res18", ("bn1",)), ("res50", ("bn1", "bn2")), ("vgg11", None),
                                         ("tv:resnet18", ("bn1",)), ("tv:mobilenet_v3_small", None)])
def test_channels_without_an_activation_of_their_own_are_not_pruned(name, inner):
    """What a block adds to its shortcut, or a linear bottleneck gives, is no activation; Fig. 8 prunes neurons."""
    model = models.build(name, 10, width=4)
    found, layers = channel_activations(model, IMAGES[:2]), dict(model.named_modules())
    blocks = [(stage, i) for stage, n in enumerate(BLOCKS.get(name, ()), 1) for i in range(n)]
    expected = {"1.bn1", *(f"1.layer{stage}.{i}.{layer}" for stage, i in blocks for layer in inner)} if inner else {
        n for n, m in layers.items() if isinstance(m, nn.BatchNorm2d)} - LINEAR
    assert found.keys() == expected and all(len(mean) == layers[n].num_features for n, mean in found.items())


def from_outside(*layers):
    return models.Classifier("own:net", 10, 32, models.Normalize((0.0,) * 3, (1.0,) * 3),
                             nn.Sequential(*layers, nn.Flatten()))


def edit_flags(attack, criterion="activation"):
    return Namespace(attack=attack, finetune="ftal", criterion=criterion, compile=False, batch_size=64, width=None)


@pytest.mark.parametrize("layers, criterion, words", [
    ((nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), "activation", "has none: pass --criterion magnitude"),
    ((nn.GroupNorm(1, 3),), "magnitude", "has none: pass -at finetune"),
    ((nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 1)),), "magnitude", "computes or shares some of them"),
])
def test_what_would_prune_nothing_is_refused(layers, criterion, words):
    with pytest.raises(Refusal, match=f"-at prune.*a own:net {words}"):
        check_edit(edit_flags("prune", criterion), from_outside(*layers))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_model_that_cannot_be_copied_is_not_edited():
    check_edit(edit_flags("finetune"), from_outside(nn.Conv2d(3, 4, 1)))
    with pytest.raises(Refusal, match="-at finetune edits a copy of the model, and a own:net cannot be copied"):
        check_edit(edit_flags("finetune"), from_outside(nn.utils.weight_norm(nn.Conv2d(3, 4, 1))))


def test_magnitude_pruning_removes_the_smallest_weights_of_all_layers():
    model = small()
    kept = pruning_masks(model, 0.3, "magnitude")
    weights = {n: p.abs() for n, p in model.named_parameters()}
    total = sum(m.numel() for m in kept.values())
    assert sum(int((~m).sum()) for m in kept.values()) == round(0.3 * total)
    largest = max(weights[n][~m].max() for n, m in kept.items() if (~m).any())
    assert largest <= min(weights[n][m].min() for n, m in kept.items() if m.any())


@pytest.mark.parametrize("bits", (8, 2))
def test_quantised_weights_are_on_their_grid(bits):
    before, after = small(), quantize(small(), bits)
    levels = 2 ** (bits - 1) - 1
    for old, new in zip(layer_weights(before).values(), layer_weights(after).values()):
        scale = old.abs().flatten(1).amax(1).view(-1, *[1] * (old.dim() - 1)) / levels
        units = new / scale
        assert torch.allclose(units, units.round(), atol=1e-3) and units.abs().max() <= levels + 1e-3
        assert ((new - old).abs() <= scale / 2 + 1e-7).all()
