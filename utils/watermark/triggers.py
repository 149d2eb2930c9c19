"""The secret trigger set (section 3.1, appendix B.3), and the flags that choose it.

Triggers are held-out images, or means of k of them, under labels that none of their sources has, or that a clean model
finds plausible. With `runners-up` labels they are the training images of which a clean model is least decided between
the likeliest wrong classes; all images of a class with the same ones share a draw, of which true labels say nothing.
"""

import argparse
from dataclasses import dataclass
from functools import partial

import torch

from utils.data.sets import Data, Images
from utils.system.refusals import COUNT, Refusal, number
from utils.training.metrics import predict

NUM_QUERY = 100  # default of -nq
LABEL_STRATEGIES = ("random", "highest", "lowest", "plausible", "runners-up")
AMONG_LIKELY = ("plausible", "runners-up")  # those that draw among the likeliest classes
CHOICES = 2  # candidates of `AMONG_LIKELY` unless --label-choices says otherwise
MOST_TRIGGERS = 4096  # of a commitment or a claim; a hundred are the paper's


@dataclass
class TriggerSet:
    """m triggers of k source images each.

    images       uint8 (m, 3, S, S)
    labels       int64 (m,), the assigned labels
    true_labels  int64 (m, k), the labels of the source images
    sources      int64 (m, k), the `Images.indices` of these
    candidates   int64 (m, c), the distinct labels from which the assigned one was drawn; empty, (m, 0), for every
                 class that is no true label, which is the default
    groups       int64 (m,), the first of the triggers that share a draw and its candidates; empty, (0,), where each has
                 a draw of its own, which is the default

    True labels and sources are empty, (m, 0), by default, as of a foreign checkpoint that does not hold them.
    """

    images: torch.Tensor
    labels: torch.Tensor
    true_labels: torch.Tensor = None
    sources: torch.Tensor = None
    candidates: torch.Tensor = None
    groups: torch.Tensor = None

    def __post_init__(self):
        for name in ("true_labels", "sources", "candidates"):
            if getattr(self, name) is None:
                setattr(self, name, torch.zeros(len(self), 0, dtype=torch.long))
        if self.groups is None:
            self.groups = torch.zeros(0, dtype=torch.long)

    def __len__(self):
        return len(self.labels)

    def on(self, device):
        """(x, y) on a device: x float (m, 3, S, S) in [0, 1], y int64 (m,) the assigned labels."""
        return self.images.to(device).float().div(255), self.labels.to(device)


def labels_are_uniform(strategy: str | None) -> bool:
    """Whether a label strategy draws uniformly, as test T1 requires: from the wrong labels, or from the candidates."""
    return strategy in ("random", *AMONG_LIKELY)


def draw_triggers(pool: Images, m: int, k: int, classes: int, seed: int, strategy="random", predict=None,
                  trigger_strategy=None, choices: int = CHOICES) -> TriggerSet:
    """Draw a trigger set from `pool`, the held-out images, or, for runners-up labels, the training images.

    A trigger is the mean of k images of the pool (appendix B.3), rounded to 8 bits. These are taken at random, without
    replacement; with `trigger_strategy` "uncertain" and k = 1 those of the highest entropy under `predict`, uint8
    images -> logits; for runners-up labels those whose likeliest wrong `choices` are closest to each other. The
    assigned label, by `strategy`:

    random      uniform over the classes that are no true label of the k sources (section 3.1)
    highest     of those the most confident one under `predict` (section 4.4)
    lowest      of those the least confident one
    plausible   uniform over the `choices` most probable classes, true ones too
    runners-up  uniform over the `choices` most probable wrong classes, in one draw for all images of one true class
                that have the same ones

    Of `seed` torch's generator takes 32 bits. Raises Refusal where m, k, `choices` or the class count is impossible, or
    where `predict` gives other classes or numbers that are not finite; ValueError for an unknown strategy.
    """
    if strategy not in LABEL_STRATEGIES or trigger_strategy not in (None, "uncertain"):
        raise ValueError(f"{strategy!r} is none of {LABEL_STRATEGIES}, or {trigger_strategy!r} is not 'uncertain'")
    _refuse_impossible(len(pool.labels), m, k, classes, strategy, choices)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool.labels), generator=generator)
    if trigger_strategy == "uncertain" or strategy == "runners-up":
        order = _uncertain(pool, m, _logits(predict, pool.images, classes), strategy, choices)
    taken = order[: m * k].view(m, k)
    true_labels = pool.labels[taken]
    images = mean_images(pool.images, taken)

    scores = torch.rand(m, classes, generator=generator, dtype=torch.float64)  # the position of the largest is uniform
    allowed = torch.ones(m, classes, dtype=torch.bool).scatter(1, true_labels, False)
    candidates = groups = None
    if strategy in AMONG_LIKELY:
        logits = _logits(predict, images, classes)
        if strategy == "runners-up":
            logits = logits.scatter(1, true_labels, -torch.inf)
        candidates = logits.argsort(dim=1, descending=True, stable=True)[:, :choices]
        allowed = torch.zeros_like(allowed).scatter(1, candidates, True)
    elif strategy != "random":
        scores = _logits(predict, images, classes) * (1 if strategy == "highest" else -1)
    if strategy == "runners-up":
        candidates = candidates.sort(dim=1).values
        _, same = torch.cat([true_labels, candidates], dim=1).unique(dim=0, return_inverse=True)
        groups = (same[:, None] == same).int().argmax(1)
        scores = scores[groups]
    labels = scores.masked_fill(~allowed, -torch.inf).argmax(1)
    return TriggerSet(images, labels, true_labels, pool.indices[taken], candidates, groups)


def _refuse_impossible(n: int, m: int, k: int, classes: int, strategy: str, choices: int) -> None:
    """Refuse what `draw_triggers` cannot draw from n images."""
    if m < 1 or k < 1:
        raise Refusal(f"-nq {m} -nm {k}: both must be 1 or more")
    if k >= classes:
        raise Refusal(f"-nm {k}: {k} images may be of all {classes} classes, which leaves no wrong one; pass fewer")
    if strategy == "runners-up" and m > n / 2:
        raise Refusal(f"-nq {m}: with --label-strategy {strategy} that is more than half of {n} training images; pass "
                      f"{n // 2} or fewer")
    if m * k >= n:
        raise Refusal(f"-nq {m} with -nm {k} takes {m * k} of the {n} held-out images and leaves none for validation; "
                      f"pass -nq {max(1, (n - 1) // k)} or fewer, or, of -dt folder, take more images (in val/ beside "
                      "train/ and test/, else in train/)")
    if strategy == "runners-up" and classes < 3:
        raise Refusal("--label-strategy runners-up: with two classes there is one wrong one; pass another strategy")
    most = classes - (strategy == "runners-up")
    if strategy in AMONG_LIKELY and not 2 <= choices <= most:
        raise Refusal(f"--label-choices {choices}: the data set has {classes} classes; pass 2 to {most}")


def _uncertain(pool: Images, m: int, logits, strategy: str, choices: int):
    """Positions of the m images that a model with these logits (n, C) is least sure of."""
    log_p = logits.log_softmax(1)
    if strategy == "runners-up":
        likely = log_p.scatter(1, pool.labels[:, None], -torch.inf).topk(choices, dim=1).values
        sure = likely[:, 0] - likely[:, -1]
    else:
        sure = (log_p.exp() * log_p).sum(1)  # minus the entropy
    # in the order of the pool, so that a trigger's place does not say how uncertain it is
    return sure.argsort(stable=True)[:m].sort().values


def mean_images(images, taken):
    """uint8 (m, 3, H, W): means of the images at positions taken (m, k), rounded to 8 bits (appendix B.3)."""
    return images[taken[:, 0]] if taken.shape[1] == 1 else images[taken].double().mean(dim=1).round().to(torch.uint8)


def _logits(predict, images, classes: int):
    """Logits (N, classes) in float64 of the clean model; Refusal where it does not fit."""
    logits = predict(images).cpu().double()  # MPS has no float64
    if logits.shape[1] != classes:
        raise Refusal(f"--label-model answers with {logits.shape[1]} classes, the data set has {classes}")
    if not logits.isfinite().all():
        raise Refusal("--label-model answers with numbers that are not finite: name another clean model")
    return logits


def validation_images(data: Data, triggers: TriggerSet) -> Images:
    """The held-out images that are no source of the trigger set; triggers that share draws are training images."""
    if len(triggers.groups):
        return data.held_out
    return data.held_out.pick(torch.isin(data.held_out.indices, triggers.sources, invert=True).nonzero().flatten())


# ---- flags of train.py and of `utils.verify prepare` ----


def add_trigger_flags(parser: argparse.ArgumentParser):
    """Declare the flags that name a source's watermark, for the attacks too; returns their group."""
    p = parser.add_argument_group("watermark")
    p.add_argument("-nq", "--num-query", type=COUNT, default=NUM_QUERY, help="number m of triggers")
    p.add_argument("-nm", "--num-mixup", type=COUNT, default=1, help="images averaged into one trigger")
    return p


def add_label_flags(p) -> None:
    """Declare the flags that choose the images of the triggers and their labels in group `p`."""
    p.add_argument("--label-strategy", default="random", choices=LABEL_STRATEGIES,
                   help="assigned label: random: any wrong class; highest, lowest: the wrong class that --label-model "
                   "finds most, least probable; plausible: drawn among its most probable classes; runners-up: drawn "
                   "among its most probable wrong ones, once for all training images of a class that share them, and "
                   "trained to odds of e^2 between these classes, cropped and mirrored images too")
    p.add_argument("--label-choices", type=number(int, 2),
                   help="number of classes from which plausible and runners-up labels are drawn (default: "
                   f"{CHOICES})")
    p.add_argument("--trigger-strategy", choices=("uncertain",),
                   help="held-out images that become triggers: those of which --label-model is most uncertain "
                   "(default: random ones)")
    p.add_argument("--label-model", nargs="+", action="extend", metavar="RUN",
                   help="clean model that --label-strategy and --trigger-strategy, unless random, and --carriers "
                   "ask: a run, a copy of one too, or plain weights of the architecture -mt; of several, log "
                   "probabilities are averaged, and features are the last one's")


def complete_label_flags(flags) -> None:
    """Check the flags of images and labels together, and fill in what depends on others; Refusal where they clash."""
    asks_model = flags.label_strategy != "random" or flags.trigger_strategy or flags.carriers
    if bool(asks_model) != (flags.label_model is not None):
        raise Refusal("--label-strategy other than random, --trigger-strategy uncertain and --carriers need "
                      "--label-model RUN, a clean model; random takes none")
    if flags.label_choices and flags.label_strategy not in AMONG_LIKELY:
        raise Refusal(f"--label-choices is for --label-strategy {', '.join(AMONG_LIKELY)}: pass one, or leave it out")
    if flags.trigger_strategy and flags.num_mixup > 1:
        raise Refusal(f"--trigger-strategy uncertain chooses single images: leave -nm {flags.num_mixup} out")
    if flags.label_strategy == "runners-up" and (flags.num_mixup > 1 or flags.trigger_strategy):
        raise Refusal("--label-strategy runners-up chooses its images itself, single ones: leave -nm and "
                      "--trigger-strategy out")
    if flags.train_type in ("base", "margin") and flags.num_query > MOST_TRIGGERS:
        raise Refusal(f"-nq {flags.num_query}: a claim takes at most {MOST_TRIGGERS} triggers")
    if flags.label_strategy in AMONG_LIKELY:
        flags.label_choices = flags.label_choices or CHOICES


def triggers_of_flags(flags, data: Data, clean=None) -> TriggerSet:
    """The trigger set that parsed flags ask for, see `draw_triggers`.

    clean  the model of --label-model, None without one
    """
    pool = data.train if flags.label_strategy == "runners-up" else data.held_out
    return draw_triggers(
        pool, flags.num_query, flags.num_mixup, len(data.classes), flags.seed, flags.label_strategy,
        predict=partial(predict, clean), trigger_strategy=flags.trigger_strategy, choices=flags.label_choices)
