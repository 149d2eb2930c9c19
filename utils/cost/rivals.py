"""What the rivals cost beside plain training: the parts that `utils.benchmark --rivals` times, and their sums.

The constants are the authors' settings for CIFAR-10. "Counted" figures are those of the specification that this
project was built from, counted in image passes.
"""

import torch

from utils.data.batches import Batches
from utils.rivals.embedded_features.gradient_signs import grad_sign_vector
from utils.rivals.ewe.objective import EntangledObjective
from utils.rivals.randomized_smoothing.noise import noisy_gradient
from utils.training.objective import PlainObjective
from utils.watermark.triggers import TriggerSet

EWE_EPOCHS, EWE_W_EPOCHS, EWE_RATIO = 50, 6.0, 4.0  # of phase 1; of phase 3; normal batches to a watermark batch
RS_LEVELS, RS_DRAWS, RS_BATCH = 21, 100, 64  # noise levels; draws a level; triggers of a robust pass
DI_POINTS, DI_CHECKS = 2000, 10 * 3 * 50  # points; queries a point at most: restarts * metrics * checks
EEF_IMAGES, EEF_AT_ONCE = 2 * 5000, 8  # gradients of victim and benign model; images of one timed call


def rival_parts(contenders, step_of) -> dict:
    """{part: call} on the models and images of `contenders`, in fp32.

    `step_of(objective, model, batches)` gives a call that makes one training step.
    """
    device, n = contenders.device, len(contenders.y_q)
    # all images are of EWE's target class, 0
    images = contenders.images._replace(labels=torch.zeros_like(contenders.images.labels))
    batches = Batches(images, contenders.settings.batch_size, True, device)
    unknown = torch.zeros(n, 0, dtype=torch.long)
    pixels = contenders.x_q.mul(255).round().to(torch.uint8).cpu()
    triggers = TriggerSet(pixels, torch.zeros(n, dtype=torch.long), unknown, unknown)

    def ewe_step(watermark: bool):
        model = contenders.model().train()
        objective = EntangledObjective(
            model, batches, triggers, target=0, made=False, patch=False, epochs=0 if watermark else 1, w_epochs=2.0,
            ratio=0.0, factor=1e5, temperature=1.0, temperature_lr=0.1, making={}, bn_stats="paper")
        return step_of(objective, model, batches)

    model, smoothed = contenders.model().eval(), contenders.model().train()
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(contenders.settings.batch_size, 3, 32, 32, device=device)
    y = torch.zeros(len(x), dtype=torch.long, device=device)

    def query():
        with torch.no_grad():
            model(x)

    return {
        "plain step": step_of(PlainObjective(), contenders.model().train(), batches),
        "EWE normal step": ewe_step(False),
        "EWE watermark step": ewe_step(True),
        "RS noisy gradient": lambda: noisy_gradient(
            smoothed, contenders.x_q[:RS_BATCH], contenders.y_q[:RS_BATCH], 0.5, 1, generator),
        "DI question to a batch": query,
        "EEF signs of 8 images": lambda: grad_sign_vector(model, x[:EEF_AT_ONCE], y[:EEF_AT_ONCE]),
    }


def rival_sums(ms: dict, steps: int, batch: int) -> dict:
    """{what: (measured, counted in the specification or None)} from the milliseconds of the parts.

    Trainings are relative to plain training of as many epochs; queries and gradients are in epochs of plain training.
    `steps` is the number of steps of an epoch, `batch` its batch size.
    """
    plain = ms["plain step"]
    watermark_epoch = ms["EWE watermark step"] + EWE_RATIO * ms["EWE normal step"]
    phases = EWE_EPOCHS * ms["EWE normal step"] + EWE_W_EPOCHS * watermark_epoch
    return {
        "EWE, whole training": (phases / (EWE_EPOCHS * plain), 1.6),
        "RS, an epoch with its robust pass":
            (1 + RS_LEVELS * RS_DRAWS * ms["RS noisy gradient"] / (steps * plain), 3.7),
        "DI, training": (1.0, 1.0),
        "DI, Blind Walk of a model at most, plain epochs":
            (DI_POINTS * DI_CHECKS / batch * ms["DI question to a batch"] / (steps * plain), None),
        "EEF, training of victim and benign model": (2.0, 2.0),
        "EEF, gradients of both, plain epochs":
            (EEF_IMAGES / EEF_AT_ONCE * ms["EEF signs of 8 images"] / (steps * plain), None),
    }
