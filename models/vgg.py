"""VGG-11 with BatchNorm for 32x32 images (Simonyan & Zisserman, 2015): eight convolutions, one linear layer."""

from torch import nn

STAGES = (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool")  # channels in units of the width


class VGG11(nn.Module):
    """Normalised x (N, 3, 32, 32) -> logits (N, num_classes)."""

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        layers, planes = [], 3
        for stage in STAGES:
            if stage == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(planes, stage * width, 3, padding=1), nn.BatchNorm2d(stage * width)]
            layers += [nn.ReLU(inplace=True)]
            planes = stage * width
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(planes, num_classes)

    def features(self, x):
        """Features before the last layer, (N, D)."""
        return self.layers(x).flatten(1)

    def forward(self, x):
        return self.linear(self.features(x))
