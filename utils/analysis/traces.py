"""What of the triggers a copy could have learnt: traces that they leave in a source's answers to natural images.

A thief asks natural images only, so whatever he learns of the triggers lies in these answers. The report compares the
source, with the BatchNorm statistics that were copied, and the copy.
"""

import torch

from utils.analysis.finished_run import FinishedRun
from utils.runs.checkpoints import load_source, restore_model
from utils.system.files import read_json
from utils.system.refusals import Refusal
from utils.training.metrics import predict
from utils.watermark.carriers import last_features, nearest

NEIGHBOURS = 20  # natural images around a trigger


def entropy(logits):
    """Entropy of softmax answers in nats, (N, C) -> (N,)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def assigned_margin(logits, assigned):
    """Logit of the assigned label minus the largest other, (m, C) and (m,) -> (m,); positive where it is answered."""
    own = logits.gather(1, assigned[:, None])
    return own[:, 0] - logits.scatter(1, assigned[:, None], -torch.inf).amax(1)


def copied_errors(source, copy, labels) -> dict:
    """How a copy errs, from answers and labels (N,): the shares of images on which it gives the source's wrong label,
    where the source is wrong, and on which it errs itself, where the source is right; None where there are none.
    """
    wrong = source != labels
    share = lambda hits, of: float(hits[of].double().mean()) if of.any() else None
    return {"source_wrong": float(wrong.double().mean()), "same_wrong_label": share(copy == source, wrong),
            "wrong_where_source_is_right": share(copy != labels, ~wrong)}


def class_lift(probability, labels, true_labels, assigned) -> dict:
    """The source's probability of assigned labels on training images of the trigger's own class.

    probability (N, C) on training images with labels (N,); triggers of true labels (m,), assigned ones (m,). Means
    over triggers: of the assigned label, and of the other labels that neither trigger nor image has.
    """
    classes = probability.shape[1]
    means = torch.stack([probability[labels == c].mean(0) for c in range(classes)])
    own = means[true_labels]
    mine = own.gather(1, assigned[:, None])[:, 0]
    others = (own.sum(1) - own.gather(1, true_labels[:, None])[:, 0] - mine) / (classes - 2)
    apart = true_labels != assigned  # plausible labels may be the true ones
    return {"assigned": float(mine[apart].mean()), "other": float(others[apart].mean())}


def report_traces(copy: FinishedRun) -> dict:
    """The traces of a surrogate's source, and what the surrogate made of them; Refusal for a run that is no surrogate.

    `assigned_near_for_*` is the source's mean probability of the assigned label on the training images nearest to the
    trigger in the features of the source or the copy; `assigned_everywhere` that on all images of other labels.
    """
    summary = read_json(copy.folder / "summary.json") or {}
    statistics = summary.get("teacher_bn")
    if summary.get("role") != "surrogate" or statistics is None:
        raise Refusal(f"{copy.folder} is no finished run of distill.py or extraction.py: traces compares a copy with "
                      "its source")
    source = restore_model(*load_source(copy.folder.parent, copy.select, statistics), copy.device)
    triggers, train, test = copy.triggers, copy.train, copy.test
    answers = {name: [predict(model, images).cpu() for images in (train.images, test.images, triggers.images)]
               for name, model in (("source", source), ("copy", copy.model))}
    probability = answers["source"][0].softmax(1)
    foreign = train.labels[:, None] != triggers.labels
    everywhere = torch.stack([probability[foreign[:, i], label].mean() for i, label in enumerate(triggers.labels)])
    result = {"statistics": statistics, "attack": summary.get("attack"), "triggers": len(triggers)}
    for name, model in (("source", source), ("copy", copy.model)):
        # the source has learnt where a trigger lies; the copy shows where it lies for who never saw it
        around = nearest(last_features(model, train.images), last_features(model, triggers.images), NEIGHBOURS)
        near = probability[around].gather(2, triggers.labels[:, None, None].expand(-1, NEIGHBOURS, 1))
        result[f"assigned_near_for_{name}"] = float(near.mean())
    for name, (_, on_test, on_triggers) in answers.items():
        hits = on_triggers.argmax(1) == triggers.labels
        result[f"{name}_accuracy"] = float((on_test.argmax(1) == test.labels).double().mean())
        result[f"{name}_hits"] = int(hits.sum())
        result[f"{name}_margin"] = float(assigned_margin(on_triggers, triggers.labels).mean())
    result["entropy"] = float(entropy(answers["source"][0]).mean())
    errors = copied_errors(*(answers[name][1].argmax(1) for name in ("source", "copy")), test.labels)
    lift = class_lift(probability, train.labels, triggers.true_labels[:, 0], triggers.labels)
    return result | errors | {
        "assigned_everywhere": float(everywhere.mean()),
        "assigned_in_own_class": lift["assigned"], "other_in_own_class": lift["other"],
    }
