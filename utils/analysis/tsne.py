"""Features of test images and triggers in two dimensions by t-SNE, with perplexities 5 and 10 (Figure 7)."""

import torch
import torch.nn.functional as F

from utils.analysis.finished_run import FinishedRun
from utils.system.machine import figure_png, new_figure
from utils.system.refusals import Refusal
from utils.watermark.carriers import last_features

PERPLEXITIES = 5, 10
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442",
           "#0072B2", "#D55E00", "#CC79A7", "#999999", "#7F3C8D")


def tsne_points(features, perplexity: float, seed: int = 0):
    """Features (N, D) -> t-SNE coordinates (N, 2) as a numpy array; Refusal unless N exceeds the perplexity."""
    from sklearn.manifold import TSNE

    if len(features) <= perplexity:
        raise Refusal(f"tsne: perplexity {perplexity} needs more than {perplexity} test images and triggers, and there "
                      f"are {len(features)}; name a run on a data set with more")
    model = TSNE(perplexity=perplexity, random_state=seed, init="pca", learning_rate="auto")
    return model.fit_transform(features.double().cpu().numpy())


def among_their_label(features, labels, trigger_features, trigger_labels, k: int = 5) -> float:
    """Share of the triggers that lie among the images of the label assigned to them, in the space of the features.

    features (N, D) with labels (N,); trigger_features (m, D) with trigger_labels (m,). A trigger counts if more than
    half of the k images nearest to it, by cosine distance, bear its label.
    """
    similarity = F.normalize(trigger_features, dim=1) @ F.normalize(features, dim=1).T  # (m, N)
    nearest = labels[similarity.topk(min(k, len(labels))).indices]  # (m, k)
    return ((nearest == trigger_labels[:, None]).float().mean(1) > 0.5).float().mean().item()


def report_tsne(run: FinishedRun, shown: int = 500) -> dict:
    """A run's points of Figure 7: `shown` test images at even distances, then all triggers.

    At even distances, because a folder's images are sorted by class. {"points": {perplexity: [...]}, ...}
    """
    total = len(run.test.labels)
    chosen = torch.arange(min(shown, total)) * total // min(shown, total)
    features = last_features(run.model, torch.cat([run.test.images[chosen], run.triggers.images])).cpu()
    points = {p: [[round(float(v), 4) for v in xy] for xy in tsne_points(features, p)] for p in PERPLEXITIES}
    labels, assigned, n = run.test.labels[chosen].cpu(), run.triggers.labels.cpu(), len(chosen)
    among = among_their_label(features[:n], labels, features[n:], assigned)
    return {"among_their_label": among, "labels": labels.tolist(), "trigger_labels": assigned.tolist(),
            "points": points}


def draw_features(ax, found: dict, perplexity: int) -> None:
    """Draw what `report_tsne` found on `ax`: test images as dots, triggers as stars, coloured by (assigned) label."""
    points, n = found["points"].get(perplexity) or found["points"][str(perplexity)], len(found["labels"])
    for group, labels, look in ((points[:n], found["labels"], {"s": 7, "edgecolors": "none"}),
                                (points[n:], found["trigger_labels"],
                                 {"s": 75, "edgecolors": "black", "linewidths": 0.7, "marker": "*"})):
        if group:
            ax.scatter(*zip(*group), c=[COLOURS[c % len(COLOURS)] for c in labels], **look)
    ax.set(xticks=[], yticks=[])


def draw_tsne(found: dict) -> bytes:
    """A PNG of what `report_tsne` found, a panel for each perplexity."""
    figure, axes = new_figure(9, 4.6, 1, len(PERPLEXITIES))
    for ax, perplexity in zip(axes, PERPLEXITIES):
        draw_features(ax, found, perplexity)
        ax.set_title(f"perplexity {perplexity}")
    figure.suptitle("dots are test images, stars triggers; colour: label (of a trigger, the assigned one)", fontsize=9)
    return figure_png(figure)
