"""Features of test images and triggers in two dimensions by t-SNE, with perplexities 5 and 10 (Figure 7)."""

import torch

from utils.analysis.finished_run import FinishedRun
from utils.system.refusals import Refusal
from utils.watermark.carriers import last_features


def tsne_points(features, perplexity: float, seed: int = 0):
    """Features (N, D) -> t-SNE coordinates (N, 2) as a numpy array; Refusal unless N exceeds the perplexity."""
    from sklearn.manifold import TSNE

    if len(features) <= perplexity:
        raise Refusal(f"tsne: perplexity {perplexity} needs more than {perplexity} test images and triggers, and there "
                      f"are {len(features)}; name a run on a data set with more")
    model = TSNE(perplexity=perplexity, random_state=seed, init="pca", learning_rate="auto")
    return model.fit_transform(features.double().cpu().numpy())


def report_tsne(run: FinishedRun, shown: int = 500) -> dict:
    """A run's points of Figure 7: `shown` test images at even distances, then all triggers.

    At even distances, because a folder's images are sorted by class. {"points": {perplexity: [...]}, ...}
    """
    total = len(run.test.labels)
    chosen = torch.arange(min(shown, total)) * total // min(shown, total)
    images = torch.cat([run.test.images[chosen], run.triggers.images])
    features = last_features(run.model, images)
    points = {p: [[round(float(v), 4) for v in xy] for xy in tsne_points(features, p)] for p in (5, 10)}
    labels = {"labels": run.test.labels[chosen].tolist(), "trigger_labels": run.triggers.labels.tolist()}
    return labels | {"points": points}
