"""EWE's entanglement where the answer is known: its gradient on real layers, and phase 3 without the cross-entropy."""

import math

import pytest
import torch

import models
from utils.rivals.ewe.snnl import entanglement, observe_features

HALF = torch.arange(16) < 8


def planted(name):
    torch.manual_seed(0)
    model = models.build(name, 4, (0.5,) * 3, (0.25,) * 3, 4).double().train()
    images = torch.rand(16, 3, 32, 32, dtype=torch.double)
    images[8:, :, :, 16:] *= 0.2  # the two groups differ in what a network can see
    return model, images


def layers(model, images, temperatures):
    return entanglement([f.double() for f in observe_features(model, model, images)[1]], HALF, temperatures)


@pytest.mark.parametrize("name", ["res18", "vgg11"])
def test_gradient_of_each_layer_equals_a_numerical_one(name, monkeypatch):
    # the features are cast to float32 in training: too coarse for differences
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model, images = planted(name)
    weight = next(p for p in model.parameters() if p.dim() == 4)  # the first convolution: all three layers follow it
    temperatures = torch.tensor([100.0, 300.0, 1000.0], dtype=torch.double)  # SNNL temperatures of 1, 1/3 and 1/10
    direction = torch.randn(weight.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    slopes = [torch.autograd.grad(v, weight, retain_graph=True)[0].mul(direction).sum().item()
              for v in layers(model, images, temperatures)]
    step, values = 1e-8, {}  # so small that hardly any ReLU switches
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * step * direction
            values[sign] = layers(model, images, temperatures)
            weight -= sign * step * direction
    numerical = ((values[1] - values[-1]) / (2 * step)).tolist()
    assert min(map(abs, slopes)) > 1e-6
    assert slopes == pytest.approx(numerical, rel=1e-3)


@pytest.mark.parametrize("name", ["res18", "vgg11"])
def test_ascent_on_the_entanglement_alone_mixes_the_groups_in_every_layer(name):
    model, images = planted(name)
    model, images = model.float(), images.float()
    temperatures = torch.full((3,), 1000.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.9, 0.99), eps=1e-5)
    before = layers(model, images, temperatures)
    for _ in range(60):
        optimizer.zero_grad()
        (-layers(model, images, temperatures).sum()).backward()
        optimizer.step()
    after = layers(model, images, temperatures)
    most = math.log(15 / 7)  # of 15 others, 7 are of one's own group: all distances equal
    assert (before < after).all() and (after > most - 0.005).all(), (before, after)
