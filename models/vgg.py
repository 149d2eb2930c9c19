"""VGG-11 with BatchNorm for small images (Simonyan & Zisserman, 2015): eight convolutions, one linear layer."""

from torch import nn

STAGES = (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool")  # channels in units of the width


class VGG11(nn.Module):
    """Normalised x (N, 3, S, S) -> logits (N, num_classes)."""

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        layers, planes = [], 3
        for stage in STAGES:
            if stage == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(planes, stage * width, 3, padding=1), nn.BatchNorm2d(stage * width)]
                layers.append(nn.ReLU(inplace=True))
                planes = stage * width
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(planes, num_classes)

    def forward(self, x):
        out = self.layers(x)  # of images larger than 32 pixels more than one place is left
        return self.linear(out.flatten(1) if out.shape[-1] == 1 else out.mean(dim=(2, 3)))
