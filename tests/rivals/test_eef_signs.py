"""Embedded external features: the signs of gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from utils.rivals.embedded_features.gradient_signs import grad_sign_vector, sign_dimension


@pytest.mark.parametrize("name, classes, d", [("res34", 10, 24_778), ("res34", 100, 24_868), ("res18", 10, 16_586)])
def test_sign_dimension_at_the_published_sizes(name, classes, d):
    with torch.device("meta"):
        assert sign_dimension(models.build(name, classes)) == d


def test_sign_dimension_of_a_small_net():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(8, 2))
    assert sign_dimension(net) == 12 + 16
    signs = grad_sign_vector(net, torch.rand(2, 3, 6, 6), torch.tensor([0, 1]))
    assert signs.shape == (2, 28) and signs.dtype == torch.int8 and set(signs.unique().tolist()) <= {-1, 0, 1}


def test_linear_gradient_by_hand():
    """At W = 0 both classes have 1/2, so dW = (-x / 2, x / 2) under label 0."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    nn.init.zeros_(net[1].weight), nn.init.zeros_(net[1].bias)
    x, y = torch.tensor([1.0, -2.0, 0.0]).view(1, 3, 1, 1), torch.tensor([0])
    assert grad_sign_vector(net, x, y).tolist() == [[-1, 1, 0, 1, -1, 0]]
    # above the threshold the largest of each output: max(-.5, 1, 0) and max(.5, -1, 0)
    assert grad_sign_vector(net, x, y, threshold=5).tolist() == [[1, 1]]


@pytest.mark.parametrize("pixels, sign", [((1, 2, 3, 4), -1), ((1, 2, 0, 4), 0), ((1, -0.1, 3, 4), 1)])
def test_convolution_gradients_take_the_largest_position_before_the_sign(pixels, sign):
    """A larger output lowers the loss, so the kernel's gradient is a negative multiple of the pixels."""
    net = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(0.1)
        net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    signs = grad_sign_vector(net, torch.tensor(pixels).view(1, 1, 2, 2), torch.tensor([0]))
    assert signs[0, 0] == sign
    assert sign_dimension(net, threshold=0) == 2  # the convolution is left out, the linear layer pooled


@pytest.mark.parametrize("name, width", [("res18", 4), ("vgg11", 4), ("res18", 16)])
def test_signs_equal_those_of_each_image_alone(name, width):
    model = models.place(models.build(name, 10, (0.4,) * 3, (0.3,) * 3, width), "cpu").double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3), layer.running_var.uniform_(0.5, 2)
    x, y = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.tensor([1, 4, 9])
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    signs = grad_sign_vector(model, x, y, threshold=600, batch=2)
    assert model.training and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

    model.eval()
    for i in range(3):
        loss = F.cross_entropy(model(x[i : i + 1].double() / 255), y[i : i + 1])
        row = []
        for g in torch.autograd.grad(loss, list(model.parameters())):
            large = g.dim() > 1 and g.shape[0] * g.shape[1] > 600
            if g.dim() == 4 and not large:
                row.append(g.flatten(2).max(2).values.flatten())
            elif g.dim() == 2:
                row.append(g.max(1).values if large else g.flatten())
        assert torch.equal(torch.cat(row).sign().to(torch.int8), signs[i])
    assert signs.shape[1] == sign_dimension(model, 600)
