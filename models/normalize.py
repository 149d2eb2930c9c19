"""Normalisation as a layer, so that eps, clamps and saved triggers stay in pixel units everywhere else."""

import torch
from torch import nn


class Normalize(nn.Module):
    """(x - mean) / std per channel; x (N, 3, H, W) in [0, 1]."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mu", torch.tensor(mean, dtype=torch.get_default_dtype()).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).view(3, 1, 1))
        self.memory_format = torch.contiguous_format  # of what leaves this layer; see models.place

    def forward(self, x):
        return ((x - self.mu) / self.std).contiguous(memory_format=self.memory_format)
