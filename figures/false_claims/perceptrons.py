"""TODO (figures.rivals)"""

import torch
from torch import nn

from figures.false_claims.settings import HALVES
from figures.false_claims.verdicts import verdict_row
from figures.in_memory import InMemoryRun
from utils.data.batches import Batches
from utils.data.sets import load_data
from utils.rivals.dataset_inference.regressor import DI_ALPHA, DatasetInference
from utils.training.loop import fit
from utils.training.objective import PlainObjective
from utils.training.settings import TrainingSettings

# of Dataset Inference
PERCEPTRON_IMAGES, HIDDEN, PERCEPTRON_EPOCHS, REDRAWN, PERCEPTRON_POINTS, PERCEPTRON_M = 128, 64, 200, 1 / 3, 100, 10


class StillBatches(Batches):
    """Without crops and mirrors, which a perceptron cannot learn from so few images."""

    PAD = 0


def perceptron_figures(seed: int) -> dict:
    """Figures of Dataset Inference for a source, a model of its images and one of others, all drawn by the seed."""
    digits, draw = load_data("digits"), torch.Generator().manual_seed(seed)

    def redrawn(images):
        y = images.labels
        anew = torch.rand(len(y), generator=draw) < REDRAWN
        return images._replace(labels=torch.where(anew, torch.randint(10, y.shape, generator=draw), y))

    order = torch.randperm(len(digits.train.labels), generator=draw)
    parts = [redrawn(digits.train.pick(order[i * PERCEPTRON_IMAGES : (i + 1) * PERCEPTRON_IMAGES])) for i in (0, 1)]
    points = [images.pick(torch.randperm(len(images.labels), generator=draw)[:PERCEPTRON_POINTS])
              for images in (parts[0], redrawn(digits.test))]

    def learn(part, number):
        torch.manual_seed(3 * seed + number)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3072, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
        fit(InMemoryRun(), model, PlainObjective(), StillBatches(parts[part], 32, flip=False),
            lambda _: {"val_accuracy": 0.0}, lambda *_: {},
            TrainingSettings(PERCEPTRON_EPOCHS, lr=0.05, seed=3 * seed + number))
        return model.eval().requires_grad_(False)

    judge = DatasetInference(learn(0, 0), *points, kind="blind", m=PERCEPTRON_M, seed=seed)
    return {"source": judge.source, "same": judge.test(learn(0, 1)), "other": judge.test(learn(1, 2))}


def di_verdicts(repeats: list[dict]) -> list[dict]:
    """Verdicts of Dataset Inference."""
    return [verdict_row("DI", "Blind Walk", DI_ALPHA, shares, repeat[shares]["claim"],
                    log10_p=repeat[shares]["log10_p"]) for shares in HALVES for repeat in repeats]
