"""DI's regressor, which learns on the source to tell private from unseen images by their distances, and its test.

A suspect on which the regressor still tells them apart knows the private images (Maini et al., 2021).

Departures from the authors' code, which the layout "official" undoes where it can: a row of the regressor's input is
one image; their transposition made it 30 images under one metric and class rank. Thus regressor and test see disjoint
images. Scores that do not vary give p = 1 or a p near 0, according to the sign; theirs raised an exception that
counted as 1.
"""

import numpy as np
import torch
from torch import nn

from utils.ownership import pvalues
from utils.rivals.dataset_inference.distances import di_features
from utils.training.metrics import predict

LAYOUTS = ("image", "official")
DI_ALPHA, REPEATS = 0.01, 100  # level of a claim; t-tests, whose p-values are aggregated
CURVE = range(2, 45, 3)  # scores of one test, from the fewest to the most in the authors' curves


def di_embed(features, mean, std, layout: str):
    """Features (N, C, 3), scaled by mean (3,) and std (3,), as rows (N, 3 C).

    Layout "image": a row is one image. Layout "official": as in the authors' code, the features are transposed to
    (3, C, N) before they are cut into N rows, so that a row mixes images.
    """
    scaled = (features - mean) / std
    return (scaled if layout == "image" else scaled.permute(2, 1, 0)).reshape(len(features), -1)


def di_regressor(private, unseen, seed: int):
    """Train a network, rows (K, F) -> scores (K,): near -1 for rows like `private` (N, F), near 1 like `unseen` (M, F).

    As published: F-100-ReLU-1-tanh, 1,000 full-batch steps of SGD at rate 0.1, loss mean(sign * score) in [-1, 1].
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
    """{"points", "mean_difference", "log10_p"} of scores `unseen` (N,) and `private` (M,).

    p is the harmonic mean of the p-values of Welch's t-tests on `REPEATS` draws of m scores from each. The draws
    overlap: under H0 it falls below 0.05 in about 7 % of cases, below 0.01 in 1.2 %. Difference and p are None where
    either has fewer than m scores.
    """
    n = min(len(unseen), len(private))
    if n < m:
        return {"points": n, "mean_difference": None, "log10_p": None}
    u, v = unseen.double().numpy(), private.double().numpy()
    p = pvalues.subset_pvalues(u[:n], v[:n], m, REPEATS, np.random.default_rng(seed))
    return {"points": n, "mean_difference": float(u.mean() - v.mean()), "log10_p": pvalues.harmonic_mean(p)}


class DatasetInference:
    """A regressor that is trained on the source's distances, and the points on which it tests models.

    private, unseen  `Images` of the same, even length: training images of the source, and images it has not seen. The
                     first halves train the regressor, the second halves test models
    kind             "mingd" or "blind", see `di_features`
    layout           one of `LAYOUTS`, see `di_embed`
    m                scores of one t-test
    svhn             whether the images are those of SVHN, see `di_features`
    source           the figures of the source itself, see `test`
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
        """[distances of private points, of unseen points], (N, C, 3) each; all models get the same noise."""
        generator = torch.Generator().manual_seed(self.seed)
        return [di_features(model, p.images, p.labels, self.kind, generator, self.svhn, self.bar) for p in self.points]

    def test(self, model, features=None) -> dict:
        """A model's figures on all points, in "correct" on those that it classifies correctly, and its "curve":
        [m, log10 p] for each m of `CURVE` that there are scores for.

        A model that is right more often on its training images has more unseen points at distance 0 or at the
        smallest distance; the figures on all points may show nothing but that. "correct" is None with the official
        layout, whose rows hold many images.
        """
        features = features or self.features(model)
        scores = [self.score(di_embed(f, self.mean, self.std, self.layout))[self.half:] for f in features]
        right = [predict(model, p.images).argmax(1).cpu() == p.labels for p in self.points]
        private, unseen = [s[r[self.half:]] for s, r in zip(scores, right)]
        correct = score_difference(unseen, private, self.m, self.seed) if self.layout == "image" else None
        figures = score_difference(scores[1], scores[0], self.m, self.seed)
        curve = [[m, score_difference(scores[1], scores[0], m, self.seed)["log10_p"]]
                 for m in CURVE if m <= figures["points"]]
        accuracies = {f"{k}_accuracy": float(r.double().mean()) for k, r in zip(("private", "unseen"), right)}
        claim = bool(figures["log10_p"] < np.log10(DI_ALPHA))
        return figures | {"claim": claim, "correct": correct, "curve": curve} | accuracies
