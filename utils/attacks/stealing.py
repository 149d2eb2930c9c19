"""Extraction and distillation (Eqs. 2, 5, 6 and 7): losses, objective, and the report on a surrogate.

A loss is a function (s, t, y) of the surrogate's logits (N, C), the source's logits (N, C) and the true labels (N,).
"""

from functools import partial

import torch
import torch.nn.functional as F

from utils.data.sets import Data
from utils.ownership.results import TriggerTests, finished_surrogates, measure_checkpoint, rows_of_run
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, refuse_errors
from utils.runs.folder import finish_run
from utils.system.refusals import Refusal
from utils.training.loop import Objective, batch_accuracy


def kl_divergence(s, t, temperature: float = 1.0):
    """D_KL(softmax(t / T) || softmax(s / T)), mean over the batch; no T^2 factor. s, t (N, C)."""
    log_s, log_t = F.log_softmax(s / temperature, dim=1), F.log_softmax(t / temperature, dim=1)
    return F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


def soft_loss(s, t, y=None):
    """Eq. 2: imitate the source's probabilities; true labels are unused."""
    return kl_divergence(s, t)


def hard_loss(s, t, y=None):
    """Section 4.1, hard label: cross-entropy with the source's argmax; true labels are unused."""
    return F.cross_entropy(s, t.argmax(1))


def smooth_loss(s, t, y=None):
    """The source's argmax as a label of weight 0.7, the rest evenly over all classes (Lukas et al., S&P 2022)."""
    return F.cross_entropy(s, t.argmax(1), label_smoothing=0.3)


def reg_loss(s, t, y, alpha: float):
    """Eq. 5: alpha * KL + (1 - alpha) * cross-entropy with the true label (the paper: alpha = 0.3)."""
    return alpha * kl_divergence(s, t) + (1 - alpha) * F.cross_entropy(s, y)


def distill_loss(s, t, y, alpha: float, temperature: float):
    """Eq. 6: (1 - alpha) * cross-entropy + alpha * KL at a temperature (the paper: alpha = 0.7; code: T = 1)."""
    return (1 - alpha) * F.cross_entropy(s, y) + alpha * kl_divergence(s, t, temperature)


# -at of extraction.py -> (loss, whether it needs true labels in the source's classes)
EXTRACTIONS = {"soft": (soft_loss, False), "hard": (hard_loss, False), "reg": (reg_loss, True),
               "smooth": (smooth_loss, False), "margin": (soft_loss, False), "adversarial": (soft_loss, False)}


def extraction_loss(flags):
    """(loss, whether it needs true labels) of -at of extraction.py, or of distill.py."""
    if flags.attack == "distill":
        return partial(distill_loss, alpha=flags.alpha, temperature=flags.temp), True
    loss, needs_labels = EXTRACTIONS[flags.attack]
    return (partial(loss, alpha=flags.alpha) if flags.attack == "reg" else loss), needs_labels


class ExtractionObjective(Objective):
    """Train a surrogate on the answers of a frozen source.

    source  pixels -> logits; called under `no_grad`, must be in eval mode
    loss    one of the above with its numbers filled in
    ascent  `partial(ascend, steps=..., step_size=..., eps=...)`, which first moves each image to where the source is
            least sure of its own answer; both models see the moved images (Eq. 7). None for the other attacks
    robust  the ascent moves images to where the surrogate is least sure of the source's answer instead, and the source
            answers the unmoved ones: adversarial training (Madry et al., ICLR 2018) on stolen labels
    """

    def __init__(self, source, loss, needs_labels: bool, ascent=None, robust: bool = False):
        self.source, self.loss, self.needs_labels, self.ascent = source, loss, needs_labels, ascent
        self.robust = robust

    def __call__(self, forward, x, y, picks):
        with torch.no_grad():
            t = self.source(x)
        if self.ascent:
            x = self.ascent(forward if self.robust else self.source, x, t.argmax(1))
            if not self.robust:
                with torch.no_grad():
                    t = self.source(x)
        s = forward(x)
        loss = self.loss(s, t, y)
        stats = {"loss": loss.detach(), "agreement": batch_accuracy(s, t.argmax(1))}
        if self.needs_labels:
            stats["train_accuracy"] = batch_accuracy(s, y)
        return loss, stats


def check_thief_data(own: Data, home: Data, about: dict, classes: int, needs_labels: bool, batch_size: int) -> None:
    """Refuse data that do not go with the source: `home` of other classes than its `classes`, and the thief's `own` of
    others than `home`, where the attack `needs_labels`, or of fewer images than `batch_size` (0: nothing is trained).

    home   the data set of the source, whose validation and test images are used
    about  what the source's checkpoint says of its training
    """
    if len(home.classes) != classes or about.get("classes", home.classes) != home.classes:
        alike = "" if len(home.classes) != classes else ", but have other names or another order"
        raise Refusal(f"-dt {home.name}: its {len(home.classes)} classes are not the source's {classes}{alike}; "
                      "pass the -dt and --data-dir the source was trained on")
    if needs_labels and own.classes != home.classes:
        raise Refusal(f"-dsrc {own.name}: this attack needs true labels in the source's classes, and these are "
                      "others; use -at soft or hard, which need none")
    if batch_size > len(own.train.labels):
        raise Refusal(f"--batch-size {batch_size}: there are only {len(own.train.labels)} training images")


def report_surrogate(run, made: dict, tests: TriggerTests, test, device, source_folder) -> None:
    """Print the table of source and surrogates and write the summary; `made` is what the run was made with."""
    best = find_checkpoint(run.path, made["select"])
    summary = {"role": "surrogate", **made, "chosen_epoch": load_checkpoint(best)["epoch"] + 1,
               **measure_checkpoint(best, tests, test, device), "clean": None}
    rows = []
    for path in (source_folder, *sorted({*finished_surrogates(source_folder), run.path})):
        if path == run.path:
            rows += rows_of_run(path, tests, device, summary=summary)
            continue
        try:
            with refuse_errors(f"{path}: its summary.json is damaged"):
                rows += rows_of_run(path, tests, device, made["select"] if path == source_folder else None)
        except Refusal as refusal:  # another run's damage is no reason to lose this one
            run.log(f"left out of the table: {refusal}")
    finish_run(run, summary, rows + tests.benign_rows())
