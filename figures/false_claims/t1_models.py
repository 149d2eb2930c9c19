"""The models of figures.errors and their answers to one trigger set, on scikit-learn's digits.

One margin source and its trigger set; surrogates extracted from it; benign models of two architectures, trained on two
disjoint halves of the training images, a third of them for one epoch only, so that they answer the triggers wrongly
often.
"""

import torch

import models
from figures.in_memory import InMemoryRun
from utils.attacks.losses import hard_loss, soft_loss
from utils.attacks.objectives import ExtractionObjective
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.training.loop import fit
from utils.training.metrics import accuracy, predict
from utils.training.objective import PlainObjective
from utils.training.settings import TrainingSettings
from utils.watermark.objective import WatermarkObjective
from utils.watermark.triggers import draw_triggers

M = 60  # triggers
BENIGN = [(arch, half, seed) for arch in ("vgg11", "res18") for half in (0, 1) for seed in range(9)]
LOSSES = {"soft": soft_loss, "hard": hard_loss}
STOLEN = [(attack, seed) for attack in LOSSES for seed in range(4)]


def collect_stolen() -> dict:
    """Train the source and its surrogates: {"assigned", "true", "stolen", "source"}, labels (M,) and rows of models."""
    digits, triggers = _data_and_triggers()
    x, y = triggers.images.float().div(255), triggers.labels
    watermark = lambda model: WatermarkObjective(
        model, x, y, weight=1.0, reduction="sum", batch=25, bn_stats="paper", steps=5, step_size=4 / 255, eps=20 / 255)
    source = _train(digits, digits.train, "vgg11", 16, 12, 0, watermark)
    figures = {"assigned": y.tolist(), "true": triggers.true_labels[:, 0].tolist(), "stolen": []}
    figures["source"] = _answers(digits, triggers, source)
    for attack, seed in STOLEN:
        objective = ExtractionObjective(source, LOSSES[attack], needs_labels=False)
        surrogate = _train(digits, digits.train, "vgg11", 16, 12, 100 + seed, lambda _, objective=objective: objective)
        figures["stolen"].append(_answers(digits, triggers, surrogate, attack=attack, seed=100 + seed))
    return figures


def collect_benign() -> dict:
    """Train the benign models: {"benign": rows of models}."""
    digits, triggers = _data_and_triggers()
    rows = []
    for arch, half, seed in BENIGN:
        epochs = 1 if seed % 3 == 2 else 6
        images = digits.train.pick(range(half, len(digits.train.labels), 2))
        width = {"vgg11": 8, "res18": 4}[arch]
        model = _train(digits, images, arch, width, epochs, 1000 + seed, lambda _: PlainObjective())
        rows.append(_answers(digits, triggers, model, architecture=arch, half=half, seed=1000 + seed, epochs=epochs))
    return {"benign": rows}


def _data_and_triggers():
    torch.set_num_threads(1)
    digits = load_data("digits")
    return digits, draw_triggers(digits.held_out, M, 1, 10, seed=0)[0]


def _train(digits, images, arch, width, epochs, seed, objective_of):
    """A trained model; `objective_of` is a function of the untrained one."""
    torch.manual_seed(seed)
    model = models.place(models.build(arch, 10, digits.mean, digits.std, width), "cpu")
    fit(InMemoryRun(), model, objective_of(model), Batches(images, 32, flip=False), lambda _: {"val_accuracy": 0.0},
        lambda *_: {}, TrainingSettings(epochs, seed=seed))
    return model.eval().requires_grad_(False)


def _answers(digits, triggers, model, **description) -> dict:
    """A row of a model: its description, its test accuracy and its answers to the triggers (M,); also prints them."""
    answers = predict(model, triggers.images).argmax(1)
    test_accuracy = accuracy(model, digits.test.images, digits.test.labels)
    hits = int((answers == triggers.labels).sum())
    print(description, f"accuracy {100 * test_accuracy:.1f} %, {hits} of {M} hit", flush=True)
    return description | {"accuracy": test_accuracy, "answers": answers.tolist()}
