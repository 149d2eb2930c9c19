"""One objective of every kind that training knows, on a small model; for tests that all of them must pass."""

from argparse import Namespace
from functools import partial

import torch
from small_steps import T, watermark

from utils.attacks.editing import FineTuningObjective
from utils.attacks.stealing import ExtractionObjective, distill_loss, extraction_loss
from utils.rivals.ewe import EntangledObjective
from utils.rivals.randomized_smoothing import SmoothedObjective
from utils.training.loop import PlainObjective
from utils.watermark.margin import ascend
from utils.watermark.triggers import TriggerSet

MARGINS = {f"margin, {mode}, {reduction}": (3, mode, reduction)
           for mode in ("paper", "clean", "shared", "eval") for reduction in ("joint", "sum")}
ERM = {f"ERM, {reduction}": (0, "paper", reduction) for reduction in ("joint", "sum")}
STOLEN = ("soft", "hard", "reg", "margin")
NAMES = ("plain", *ERM, *MARGINS, *STOLEN, "distillation", "fine-tuning", "fine-tuning, last layer", "RS")
EWE = {"EWE, normal batch": 0, "EWE, watermark batch": 1}  # name -> an epoch whose first step is of that kind


def build(name: str, model, source, batches, x_q, y_q):
    """The objective `name` of `NAMES` for `model`; `source` maps pixels to logits."""
    if name == "plain":
        return PlainObjective()
    if name in ERM | MARGINS:
        steps, mode, reduction = (ERM | MARGINS)[name]
        return watermark(model, x_q, y_q, steps, mode, reduction)
    if name in STOLEN:
        ascent = partial(ascend, steps=2, step_size=1 / 255, eps=2 / 255) if name == "margin" else None
        return ExtractionObjective(source, *extraction_loss(Namespace(attack=name, alpha=0.3)), ascent)
    if name == "distillation":
        return ExtractionObjective(source, partial(distill_loss, alpha=0.7, temperature=2.0), True)
    if name == "RS":
        return SmoothedObjective(x_q, y_q, sigmas=[0.0, 0.1], draws=1, warmup=9, batch=T)
    return FineTuningObjective(model, "last layer" in name)


def build_ewe(model, batches):
    """EWE's objective after its phase 2 (its triggers are there); its phase 3 begins with a watermark batch."""
    pixels = torch.randint(0, 256, (T, 3, 32, 32), dtype=torch.uint8)
    triggers = TriggerSet(pixels, torch.arange(T) % 3 + 1, torch.zeros(T, 0), torch.zeros(T, 0))
    return EntangledObjective(model, batches, triggers, target=0, made=False, patch=False, epochs=1, w_epochs=1.0,
                              ratio=0.0, factor=8.0, temperature=1.0, temperature_lr=0.1, bn_stats="paper", making={})
