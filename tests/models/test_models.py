"""Architectures: published sizes, official names, shapes."""

import pytest
import torch

import models


@pytest.mark.parametrize("name", models.NAMES)
def test_every_model_builds_and_learns(name):
    model = models.build(name, 7, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), width=4)
    x = torch.rand(2, 3, 32, 32)
    logits = model(x)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert models.build(name, 7, width=4, size=64)(torch.rand(2, 3, 64, 64)).shape == (2, 7)


def test_normalisation_is_the_first_layer():
    model = models.build("res18", 10, (0.5, 0.25, 0.125), (0.5, 0.25, 2.0), width=4)
    x = torch.full((1, 3, 32, 32), 0.75)
    assert model[0](x)[0, :, 0, 0].tolist() == [0.5, 2.0, 0.3125]
    assert not list(model[0].parameters())


def official_names(depths, bottleneck):
    """State-dict names of the official code's ResNets, written out."""
    def norm(prefix):
        return [f"{prefix}.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["0.mu", "0.std", "1.conv1.weight", *norm("1.bn1")]
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            prefix = f"1.layer{stage}.{block}"
            for i in range(1, 4 if bottleneck else 3):
                names += [f"{prefix}.conv{i}.weight", *norm(f"{prefix}.bn{i}")]
            if block == 0 and (stage > 1 or bottleneck):
                names += [f"{prefix}.shortcut.0.weight", *norm(f"{prefix}.shortcut.1")]
    return names + ["1.linear.weight", "1.linear.bias"]


@pytest.mark.parametrize("name, depths, bottleneck, size", [
    ("res18", (2, 2, 2, 2), False, 11.174), ("res34", (3, 4, 6, 3), False, 21.282),
    ("res50", (3, 4, 6, 3), True, 23.521), ("res101", (3, 4, 23, 3), True, 42.513),
    ("res152", (3, 8, 36, 3), True, 58.157)])
def test_names_and_sizes_are_those_of_the_official_code(name, depths, bottleneck, size):
    with torch.device("meta"):
        model, vgg = models.build(name, 10), models.build("vgg11", 10)
    assert sum(p.numel() for p in vgg.parameters()) == 9_231_114
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(size * 1e6, abs=500)
    assert sorted(model.state_dict()) == sorted(official_names(depths, bottleneck))
    assert model.state_dict()["1.conv1.weight"].shape == (64, 3, 3, 3)
    assert model.state_dict()["1.linear.weight"].shape == (10, 2048 if bottleneck else 512)


def test_shapes_inside_are_those_of_32x32_images():
    """A 3x3 stem of stride 1, no pooling: the four stages see 32, 16, 8 and 4 pixels."""
    model, seen = models.build("res18", 10, width=4), []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        getattr(model[1], stage).register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape[1:])))
    model(torch.rand(1, 3, 32, 32))
    assert seen == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]
