"""A checkpoint as the official code writes it."""

import numpy as np
import torch

import models
from utils.watermark.triggers import TriggerSet


def trigger_set(m=6):
    """m trigger images of noise, each with a source image."""
    g = torch.Generator().manual_seed(0)
    return TriggerSet(torch.randint(0, 256, (m, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(m) % 10,
                      torch.randint(0, 7, (m, 1), generator=g), torch.arange(m)[:, None])


def official(path):
    """Write a checkpoint as the official code pickles it; returns its model and trigger set."""
    torch.manual_seed(5)
    model = models.build("res18", 10, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2), width=4)
    model(torch.rand(16, 3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    optimizer.param_groups[0]["lr"] = np.interp(7, [0, 100, 150], [0.1, 0.01, 0.001])  # a numpy float64
    triggers = trigger_set()
    state = {"query": triggers.images.float() / 255, "response": triggers.labels,
             "original_response": triggers.true_labels[:, 0], "dummy_param": torch.zeros(0)}
    torch.save({"model": {"state_dict": model.state_dict(), "type": "res18"},
                "query_model": {"state_dict": state, "type": "stochastic"}, "optimizer": optimizer.state_dict(),
                "epoch": 41, "best": np.float64(0.88), "seen": np.int64(3), "rate": np.float32(0.5)}, path)
    return model.eval(), triggers
