"""TODO (utils.inference)"""

import numpy as np
import torch
from torch import nn

from utils.ownership import pvalues
from utils.rivals.dataset_inference.distances import di_features
from utils.training.metrics import predict

LAYOUTS = ("image", "official")
DI_ALPHA, REPEATS = 0.01, 100


def di_embed(features, mean, std, layout: str):
    """(features - mean) / std, each (3,), as rows (N, 3 C): of one image each, or as the "official" code lays them out.

    There features (N, C, 3) are transposed to (3, C, N) before they are cut into N rows.
    """
    scaled = (features - mean) / std
    return (scaled if layout == "image" else scaled.permute(2, 1, 0)).reshape(len(features), -1)


def di_regressor(private, unseen, seed: int):
    """Learn scores, near -1 for rows like `private` (N, F) and near 1 like `unseen` (M, F): (K, F) -> (K,).

    F-100-ReLU-1-tanh, SGD at 0.1, 1,000 steps of the whole, loss mean(sign * score) in [-1, 1], as published.
    """
    rows = torch.cat([private, unseen])
    sign = torch.cat([torch.ones(len(private)), -torch.ones(len(unseen))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(rows.shape[1], 100), nn.ReLU(), nn.Linear(100, 1), nn.Tanh(), nn.Flatten(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(1000):
        optimizer.zero_grad()
        (sign * net(rows)).mean().backward()
        optimizer.step()
    return net.requires_grad_(False)


def score_difference(unseen, private, m: int, seed: int) -> dict:
    """Scores (N,) and (M,) -> their mean difference and the harmonic mean of Welch's p over 100 draws of m.

    The draws overlap: under H0 it falls below 0.05 in about 7 % of cases, below 0.01 in 1.2 %. None where either
    holds fewer than m scores.
    """
    n = min(len(unseen), len(private))
    if n < m:
        return {"points": n, "mean_difference": None, "log10_p": None}
    u, v = unseen.double().numpy(), private.double().numpy()
    p = pvalues.subset_pvalues(u[:n], v[:n], m, REPEATS, np.random.default_rng(seed))
    return {"points": n, "mean_difference": float(u.mean() - v.mean()), "log10_p": pvalues.harmonic_mean(p)}


class DatasetInference:
    """The source's private and unseen points and the regressor that its own distances taught.

    private, unseen: `Images` of the same, even length. The first halves teach the regressor, the second are tested.
    """

    def __init__(self, source, private, unseen, *, kind="mingd", layout="image", m=10, seed=0, svhn=False, bar=None):
        self.points, self.kind, self.layout, self.m, self.seed = (private, unseen), kind, layout, m, seed
        self.svhn, self.bar, self.half = svhn, bar, len(private.labels) // 2
        features = self.features(source)
        self.mean, self.std = features[0].mean((0, 1)), features[0].std((0, 1)).clamp_min(1e-12)
        rows = [di_embed(f, self.mean, self.std, layout)[:self.half] for f in features]
        self.score = di_regressor(*rows, seed)
        self.source = self.test(source, features)

    def features(self, model) -> list:
        """Distances of the private and of the unseen points; every model gets the same noise."""
        generator = torch.Generator().manual_seed(self.seed)
        return [di_features(model, p.images, p.labels, self.kind, generator, self.svhn, self.bar) for p in self.points]

    def test(self, model, features=None) -> dict:
        """A model's figures, on all points and on those alone that it classifies correctly.

        Where a model is right more often on its training images, a misclassified point's distance (0 or the least)
        shows that alone. Official rows hold many images, so there are no correct ones among them.
        """
        features = features or self.features(model)
        scores = [self.score(di_embed(f, self.mean, self.std, self.layout))[self.half:] for f in features]
        right = [predict(model, p.images).argmax(1).cpu() == p.labels for p in self.points]
        private, unseen = [s[r[self.half:]] for s, r in zip(scores, right)]
        correct = score_difference(unseen, private, self.m, self.seed) if self.layout == "image" else None
        found = score_difference(scores[1], scores[0], self.m, self.seed)
        accuracies = {f"{k}_accuracy": float(r.double().mean()) for k, r in zip(("private", "unseen"), right)}
        return found | {"claim": bool(found["log10_p"] < np.log10(DI_ALPHA)), "correct": correct} | accuracies
