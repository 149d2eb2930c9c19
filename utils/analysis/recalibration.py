"""A run's model under BatchNorm statistics that are estimated anew from natural images: does its mark live in them?"""

import copy

import torch

from utils.analysis.finished_run import FinishedRun
from utils.system.refusals import Refusal
from utils.training.metrics import predict


def recalibrate(model, images, batch_size: int = 500):
    """A copy of `model` whose running statistics are the mean over batches of uint8 images (N, 3, H, W).

    Raises Refusal for a model without BatchNorm layers.
    """
    model = copy.deepcopy(model)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    if not layers:
        raise Refusal("recalibrated: this model has no BatchNorm layers; name a run of another architecture")
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean
        layer.train()
    device = next(model.parameters()).device
    with torch.no_grad():
        for part in images.split(batch_size):
            model(part.to(device).float().div(255))
    return model.eval()


def report_recalibrated(run: FinishedRun) -> dict:
    """Accuracy on test images and triggers answered as assigned, before and after `recalibrate` on training images."""
    result = {"triggers": len(run.triggers)}
    for prefix, model in (("", run.model), ("recalibrated_", recalibrate(run.model, run.train.images))):
        on_test, on_triggers = (predict(model, of.images).cpu().argmax(1) for of in (run.test, run.triggers))
        result[f"{prefix}accuracy"] = float((on_test == run.test.labels).double().mean())
        result[f"{prefix}hits"] = int((on_triggers == run.triggers.labels).sum())
    return result
