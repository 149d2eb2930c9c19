"""What the rivals cost beside plain training: the parts that `utils.benchmark --rivals` times, and what they sum to."""

import torch

from utils import ewe, features, smoothing
from utils.data import Batches
from utils.losses import Plain
from utils.triggers import Trigger

# the authors' settings for CIFAR-10
EPOCHS, W_EPOCHS, RATIO = 50, 6.0, 4.0  # EWE
LEVELS, DRAWS, BATCH = 21, 100, 64  # RS
POINTS, CHECKS = 2000, 10 * 3 * 50  # DI by the Blind Walk: points, and questions a point at most
IMAGES, AT_ONCE = 2 * 5000, 8  # EEF: gradients of victim and benign model


def parts(bench, step_of) -> dict:
    """{part: call} on the models and images of a benchmark; `step_of(objective, model, batches)` is a training step."""
    device, n = bench.device, len(bench.y_q)
    images = bench.images._replace(labels=torch.zeros_like(bench.images.labels))  # all of EWE's target class
    batches = Batches(images, bench.args.batch_size, True, device)
    none = torch.zeros(n, 0, dtype=torch.long)
    trigger = Trigger(bench.x_q.mul(255).round().to(torch.uint8).cpu(), torch.zeros(n, dtype=torch.long), none, none)

    def entangled(watermark: bool):
        model = bench.model().train()
        objective = ewe.Entangled(
            model, batches, trigger, target=0, made=False, patch=False, epochs=0 if watermark else 1, w_epochs=2.0,
            ratio=0.0, factor=1e5, temperature=1.0, temperature_lr=0.1, making={}, bn_stats="paper")
        return step_of(objective, model, batches)

    model, smoothed = bench.model().eval(), bench.model().train()
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(bench.args.batch_size, 3, 32, 32, device=device)
    y = torch.zeros(len(x), dtype=torch.long, device=device)

    def ask():
        with torch.no_grad():
            model(x)

    return {
        "plain step": step_of(Plain(), bench.model().train(), batches),
        "EWE normal step": entangled(False),
        "EWE watermark step": entangled(True),
        "RS noisy gradient": lambda: smoothing.noisy_gradient(
            smoothed, bench.x_q[:BATCH], bench.y_q[:BATCH], 0.5, 1, generator),
        "DI question to a batch": ask,
        "EEF signs of 8 images": lambda: features.grad_sign_vector(model, x[:AT_ONCE], y[:AT_ONCE]),
    }


def sums(ms: dict, steps: int, batch: int) -> dict:
    """{what: (measured, counted in the specification)} from milliseconds of the parts, with `steps` an epoch.

    Trainings in those of plain training of as many epochs; questions in plain epochs.
    """
    plain = ms["plain step"]
    phases = EPOCHS * ms["EWE normal step"] + W_EPOCHS * (ms["EWE watermark step"] + RATIO * ms["EWE normal step"])
    return {
        "EWE, whole training": (phases / (EPOCHS * plain), 1.6),
        "RS, an epoch with its robust pass": (1 + LEVELS * DRAWS * ms["RS noisy gradient"] / (steps * plain), 3.7),
        "DI, training": (1.0, 1.0),
        "DI, Blind Walk of a model at most, plain epochs":
            (POINTS * CHECKS / batch * ms["DI question to a batch"] / (steps * plain), None),
        "EEF, training of victim and benign model": (2.0, 2.0),
        "EEF, gradients of both, plain epochs":
            (IMAGES / AT_ONCE * ms["EEF signs of 8 images"] / (steps * plain), None),
    }
