"""False claims of Dataset Inference, measured on perceptrons, on which a walk to the boundary is cheap.

Every repeat draws source, images and points again: the source memorises 128 images, one benign model the same images,
another one 128 others. A third of all labels, private and unseen, is replaced at random: digits are so easy that with
true labels a model's distances show nothing of what it has memorised.
"""

import torch
from torch import nn

from figures.false_claims.settings import HALVES
from figures.false_claims.verdicts import verdict_row
from figures.in_memory import InMemoryRun
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.rivals.dataset_inference import DI_ALPHA, di_figures
from utils.training.loop import fit
from utils.training.objective import PlainObjective
from utils.training.settings import TrainingSettings

PERCEPTRON_IMAGES, HIDDEN, PERCEPTRON_EPOCHS = 128, 64, 200  # training images, hidden units, epochs
REDRAWN = 1 / 3  # share of random labels
PERCEPTRON_POINTS, PERCEPTRON_M = 100, 10  # private and as many unseen points; scores of one t-test


class StillBatches(Batches):
    """Batches without crops: a perceptron does not learn from so few images if they are augmented."""

    PAD = 0


def perceptron_figures(seed: int) -> dict:
    """Dataset Inference on a source, a model of the same images and one of others: {"source", "same", "other"}.

    The seed draws images, labels, points and models. The figures are those of `di_figures`.
    """
    digits, draw = load_data("digits"), torch.Generator().manual_seed(seed)

    def redrawn(images):
        y = images.labels
        is_redrawn = torch.rand(len(y), generator=draw) < REDRAWN
        return images._replace(labels=torch.where(is_redrawn, torch.randint(10, y.shape, generator=draw), y))

    order = torch.randperm(len(digits.train.labels), generator=draw)
    parts = [redrawn(digits.train.pick(order[i * PERCEPTRON_IMAGES : (i + 1) * PERCEPTRON_IMAGES])) for i in (0, 1)]
    points = [images.pick(torch.randperm(len(images.labels), generator=draw)[:PERCEPTRON_POINTS])
              for images in (parts[0], redrawn(digits.test))]

    def train(part, number):
        torch.manual_seed(3 * seed + number)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
        fit(InMemoryRun(), model, PlainObjective(), StillBatches(parts[part], 32, flip=False),
            lambda _: {"val_accuracy": 0.0}, lambda *_: {},
            TrainingSettings(PERCEPTRON_EPOCHS, lr=0.05, seed=3 * seed + number))
        return model.eval().requires_grad_(False)

    models = [train(0, 0), train(0, 1), train(1, 2)]
    return dict(zip(("source", "same", "other"), di_figures(models, *points, walk="blind", m=PERCEPTRON_M, seed=seed)))


def di_verdicts(repeats: list[dict]) -> list[dict]:
    """The verdicts on the benign models of `perceptron_figures`, one dictionary for each repeat."""
    return [verdict_row("DI", "Blind Walk", DI_ALPHA, shares, repeat[shares]["claim"],
                        log10_p=repeat[shares]["log10_p"]) for shares in HALVES for repeat in repeats]
