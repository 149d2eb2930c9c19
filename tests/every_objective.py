"""One objective of every kind that training knows, on a small model; for tests that all of them must pass."""

from argparse import Namespace
from functools import partial

from small_steps import T, watermark

from utils.attacks.editing import FineTuningObjective
from utils.attacks.stealing import ExtractionObjective, distill_loss, extraction_loss
from utils.rivals.randomized_smoothing import SmoothedObjective
from utils.training.loop import PlainObjective
from utils.watermark.margin import ascend

MARGINS = {f"margin, {mode}, sum": (3, mode, "sum") for mode in ("paper", "clean", "shared", "eval")}
MARGINS |= {"margin, paper, joint": (3, "paper", "joint"), "ERM, sum": (0, "paper", "sum")}
STOLEN = ("soft", "hard", "reg", "margin")
NAMES = ("plain", *MARGINS, "margin, candidates", *STOLEN, "distillation", "fine-tuning", "fine-tuning, last layer",
         "RS")


def build(name: str, model, source, batches, x_q, y_q):
    """The objective `name` of `NAMES` for `model`; `source` maps pixels to logits."""
    if name == "plain":
        return PlainObjective()
    if name in MARGINS:
        steps, mode, reduction = MARGINS[name]
        return watermark(model, x_q, y_q, steps, mode, reduction)
    if name == "margin, candidates":
        return watermark(model, x_q, y_q, 2, candidates=(y_q[:, None] + y_q.new_tensor([0, 1])) % (y_q.max() + 1))
    if name in STOLEN:
        ascent = partial(ascend, steps=2, step_size=1 / 255, eps=2 / 255) if name == "margin" else None
        return ExtractionObjective(source, *extraction_loss(Namespace(attack=name, alpha=0.3)), ascent)
    if name == "distillation":
        return ExtractionObjective(source, partial(distill_loss, alpha=0.7, temperature=2.0), True)
    if name == "RS":
        return SmoothedObjective(x_q, y_q, sigmas=[0.0, 0.1], draws=1, warmup=9, batch=T)
    return FineTuningObjective(model, "last layer" in name)
