"""Analyses of a finished run: `python -m utils.analyze WHAT RUN` writes RUN/WHAT.json.

energy  free energy of test images and triggers (Table 7), and what a filter at 5 % refused clean images would refuse
margin  upper bound of the margin of each trigger (Table 5): the smallest eps at which projected ascent flips it
traces  of the triggers in a source's answers to natural images, and what a copy, RUN, has learnt of them
tsne    features of test images and triggers in two dimensions (Figure 7), perplexity 5 and 10; and the share of
        triggers whose five nearest test images bear mostly the label that was assigned to the trigger
"""

import json
from pathlib import Path

import torch

from utils.data.sets import DATASETS, load_data
from utils.ownership.results import is_stale
from utils.runs.checkpoints import STATISTICS, find_checkpoint, load_checkpoint, restore_model, run_settings
from utils.runs.networks import add_named_architectures
from utils.system.files import read_json, write_json
from utils.system.machine import add_device_flag, choose_device
from utils.system.refusals import Parser, Refusal, refuse_in_one_sentence
from utils.training.metrics import count_hits, predict
from utils.watermark.carriers import last_features, nearest
from utils.watermark.margin import ascend
from utils.watermark.trigger_files import unpack_source


class FinishedRun:
    """A finished run of any of the three scripts.

    folder       the run's folder, an absolute path
    model        frozen, in eval mode, on `device`
    triggers     the owner's `TriggerSet`; of a surrogate, that of its source
    train, test  `Images` of the run's data set, with `classes`; `train` are those of the source

    The checkpoint is the one that the run itself reports. Raises Refusal where there is no run, or where `data_dir`
    holds other images than the run was trained on.
    """

    def __init__(self, folder, data_dir, device):
        self.folder = source = Path(folder).resolve()
        settings = (read_json(self.folder / "run.json") or {}).get("settings")
        if not isinstance(settings, dict) or settings.get("dataset") not in DATASETS:
            raise Refusal(f"there is no run in {folder}: name the folder of a finished run")
        if not (self.folder / "summary.json").exists():
            raise Refusal(f"{folder} is not finished: give its own command again, and it goes on")
        self.select, self.device = "last" if settings.get("select") == "last" else "val", device
        unpacked = lambda path: unpack_source(load_checkpoint(path), path, device)
        self.model, self.triggers = unpacked(find_checkpoint(source, self.select))
        if self.triggers is None:  # a surrogate: the triggers are its source's
            source = self.folder.parent
            if is_stale(settings, source):
                raise Refusal(f"{folder} is a copy of an earlier training of its source: make it anew by its command "
                              "and --overwrite")
            model, self.triggers = unpacked(find_checkpoint(source, self.select))
            if not self.triggers or (model.num_classes, model.size) != (self.model.num_classes, self.model.size):
                raise Refusal(f"{source} has no triggers, or other classes or images than {folder}: restore it")
        source_settings = run_settings(source)
        size = source_settings.get("train_size")
        if not isinstance(size, int | None):
            raise Refusal(f"{source / 'run.json'} is damaged: restore it")
        data = load_data(settings["dataset"], data_dir, train_size=size,
                         skip_bad_images=True, image_size=self.model.size)
        if source_settings.get("data_sha256") not in (None, data.sha256):
            raise Refusal(f"--data-dir {data_dir}: these are not the images of {folder}, or not in its order; name its "
                          "source's data")
        self.train, self.test, self.classes = data.train, data.test, data.classes


# ---- energy (Table 7) ----


def free_energy(logits):
    """-logsumexp(logits), (N, C) -> (N,); the lower, the more an input resembles the training data."""
    return -logits.logsumexp(1)


def refused_share(clean, suspect) -> float:
    """Share of the `suspect` energies (M,) above the threshold that refuses 5 % of the `clean` ones (N,).

    The filter is that of Liu et al. (2020): it refuses inputs of high energy.
    """
    return float((suspect > clean.quantile(1 - 0.05)).cpu().double().mean())


def report_energy(run: FinishedRun) -> dict:
    """A run's row of Table 7; mean energies, separately for triggers that the model answers as assigned and others."""
    clean_logits, trigger_logits = predict(run.model, run.test.images), predict(run.model, run.triggers.images)
    clean_energy, trigger_energy = free_energy(clean_logits), free_energy(trigger_logits)
    hit = trigger_logits.argmax(1) == run.triggers.labels.to(trigger_logits.device)
    mean = lambda values: round(float(values.mean()), 6) if len(values) else None
    return {"test_accuracy": count_hits(clean_logits, run.test.labels) / len(run.test.labels),
            "energy_clean": mean(clean_energy), "energy_success": mean(trigger_energy[hit]),
            "energy_failed": mean(trigger_energy[~hit]), "successes": int(hit.sum()), "triggers": len(hit),
            "refused_at_5_percent": refused_share(clean_energy, trigger_energy)}


# ---- margins (Table 5), distances in the maximum norm, in pixel units ----

GRID, CELLS = 1 / 2550, 512  # margins are resolved to a tenth of a grey level, up to 0.2
ASCENT = 20  # steps


def margin_bound(model, x, y):
    """Upper bound of the margin of x (N, 3, H, W) in [0, 1] under labels y (N,): eps (N,) in pixel units.

    Bisection over the multiples of `GRID` for the smallest eps at which `ASCENT` steps of ascent change the answer
    from y; 0 where the model does not answer y in the first place, GRID * CELLS where no eps of the grid changes the
    answer. The ascent, like any attack, may fail where another one succeeds: the true margin is at most this.
    """
    is_y = torch.no_grad()(lambda x: model(x).argmax(1) == y)
    low = torch.zeros(len(x), dtype=torch.long, device=x.device)
    high = torch.full_like(low, CELLS)
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        eps = (middle * GRID).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        holds = is_y(ascend(model, x, y, steps=ASCENT, step_size=eps * 2.5 / ASCENT, eps=eps))
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return high * GRID * is_y(x)


def report_margin(run: FinishedRun) -> dict:
    """A run's cell of Table 5: the mean over all triggers, of which the model answers those above 0 as assigned."""
    x = run.triggers.images.to(run.device).float().div(255)
    bound = margin_bound(run.model, x, run.triggers.labels.to(run.device)).cpu()
    return {"mean": round(float(bound.mean()), 6), "triggers": len(bound),
            "margins": [round(v, 6) for v in bound.tolist()]}


# ---- traces: a thief asks natural images only, so whatever he learns of the triggers lies in these answers ----

NEIGHBOURS = 20  # natural images around a trigger


def report_traces(copy: FinishedRun) -> dict:
    """The traces of a surrogate's source, and what the surrogate made of them; Refusal for a run that is no surrogate.

    `assigned_near_for_*` is the source's mean probability of the assigned label on the `NEIGHBOURS` training images
    that are nearest to a trigger, by the features of the source or of the copy, which never saw the trigger;
    `assigned_everywhere` is that on all images of other labels.
    """
    summary = read_json(copy.folder / "summary.json") or {}
    statistics = summary.get("teacher_bn")
    if summary.get("role") != "surrogate" or statistics not in STATISTICS:
        raise Refusal(f"{copy.folder} is no finished run of distill.py or extraction.py: traces compares a copy with "
                      "its source")
    stolen = find_checkpoint(copy.folder.parent, copy.select, statistics)
    models = {"source": restore_model(load_checkpoint(stolen), stolen, copy.device), "copy": copy.model}
    triggers, train = copy.triggers, copy.train
    probability = predict(models["source"], train.images).cpu().softmax(1)
    result = {"statistics": statistics, "attack": summary.get("attack"), "triggers": len(triggers)}
    for name, model in models.items():
        around = nearest(last_features(model, train.images), last_features(model, triggers.images), NEIGHBOURS)
        near = probability[around].gather(2, triggers.labels[:, None, None].expand(-1, NEIGHBOURS, 1))
        result[f"assigned_near_for_{name}"] = float(near.mean())
        result[f"{name}_hits"] = count_hits(predict(model, triggers.images), triggers.labels)
    everywhere = torch.stack([probability[train.labels != label, label].mean() for label in triggers.labels])
    return result | {"assigned_everywhere": float(everywhere.mean())}


# ---- t-SNE (Figure 7) ----

PERPLEXITIES = 5, 10


def tsne_points(features, perplexity: float):
    """Features (N, D) -> t-SNE coordinates (N, 2) as a numpy array; Refusal unless N exceeds the perplexity."""
    from sklearn.manifold import TSNE

    if len(features) <= perplexity:
        raise Refusal(f"tsne: perplexity {perplexity} needs more than {perplexity} test images and triggers, and there "
                      f"are {len(features)}; name a run on a data set with more")
    model = TSNE(perplexity=perplexity, random_state=0, init="pca", learning_rate="auto")
    return model.fit_transform(features.double().cpu().numpy())


def among_their_label(features, labels, trigger_features, trigger_labels, k: int = 5) -> float:
    """Share of the triggers that lie among the images of the label assigned to them, in the space of the features.

    features (N, D) with labels (N,); trigger_features (m, D) with trigger_labels (m,). A trigger counts if more than
    half of the k images nearest to it, by cosine distance, bear its label.
    """
    found = labels[nearest(features, trigger_features, min(k, len(labels)))]  # (m, k)
    return ((found == trigger_labels[:, None]).float().mean(1) > 0.5).float().mean().item()


def report_tsne(run: FinishedRun, shown: int = 500) -> dict:
    """A run's points of Figure 7: `shown` test images at even distances, then all triggers.

    At even distances, because a folder's images are sorted by class. {"points": {perplexity as text: [...]}, ...}
    """
    total = len(run.test.labels)
    chosen = torch.arange(min(shown, total)) * total // min(shown, total)
    features = last_features(run.model, torch.cat([run.test.images[chosen], run.triggers.images]))
    points = {str(p): [[round(float(v), 4) for v in xy] for xy in tsne_points(features, p)] for p in PERPLEXITIES}
    labels, assigned, n = run.test.labels[chosen].cpu(), run.triggers.labels.cpu(), len(chosen)
    return {"among_their_label": among_their_label(features[:n], labels, features[n:], assigned),
            "labels": labels.tolist(), "trigger_labels": assigned.tolist(), "classes": run.classes, "points": points}


# ---- the command ----

REPORTS = {"energy": report_energy, "margin": report_margin, "traces": report_traces, "tsne": report_tsne}


@refuse_in_one_sentence
def main(argv=None):
    parser = Parser(prog="python -m utils.analyze", description=__doc__)
    parser.add_argument("what", choices=tuple(REPORTS))
    parser.add_argument("run", help="folder of a finished run of train.py, distill.py or extraction.py")
    add_named_architectures(parser)
    parser.add_argument("--data-dir", default="data", help="folder of the source's data set")
    add_device_flag(parser)
    flags = parser.parse_args(argv)
    run = FinishedRun(flags.run, flags.data_dir, choose_device(flags.device))
    result = {"what": flags.what, **REPORTS[flags.what](run)}
    write_json(run.folder / f"{flags.what}.json", result)
    print(json.dumps({k: v for k, v in result.items() if not isinstance(v, (list, dict))}))


if __name__ == "__main__":
    main()
