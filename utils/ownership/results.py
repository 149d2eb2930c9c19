"""Hits and p-values of finished models on a trigger set, and the report with which train.py ends."""

from pathlib import Path

from utils.data.sets import Data, Images
from utils.ownership import pvalues
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model, read_other
from utils.runs.folder import RunFolder, finish_run
from utils.system.files import read_json, sha256_of_file
from utils.system.refusals import Refusal
from utils.training.metrics import accuracy, count_hits, predict
from utils.watermark.triggers import TriggerSet

LOG_ALPHA = -3  # log10 p at or below which a model is claimed
MUCH = 0.03  # loss of test accuracy against --init that is warned of


class TriggerTests:
    """One trigger set and the benign models it is compared with; gives hits and p-values of any suspect.

    uniform   whether the labels were drawn uniformly, as T1 requires
    benign    run folders or checkpoints of benign models; Refusal where one is watermarked or has other classes
    names     of the classes, None where they are not known
    """

    def __init__(self, triggers: TriggerSet, classes: int, uniform: bool, benign=(), device="cpu", names=None):
        self.triggers, self.classes, self.uniform = triggers, classes, uniform
        self.bank = []  # name, logits (m, C) and test accuracy, None if unknown, of each benign model
        for folder in benign:
            # a file may be another checkpoint than the run's own choice
            summary = (read_json(Path(folder) / "summary.json") or {}) if Path(folder).is_dir() else {}
            model = read_other("--benign", folder, (classes, triggers.images.shape[-1]), device, names)
            self.bank.append((Path(folder).name, self.logits_of(model), summary.get("test_accuracy")))

    def logits_of(self, model):
        """A model's logits (m, C) on the triggers, on the CPU."""
        return predict(model, self.triggers.images).cpu()

    def figures(self, logits) -> dict:
        """Hits and log10 p-values of a suspect with logits (m, C) on the triggers; None where a test does not apply."""
        triggers, m = self.triggers, len(self.triggers)
        log10_p = dict.fromkeys(("T1", "T1p", "T1_conservative", "T3", "p_subset"))
        true, candidates, groups = (t.numpy() for t in (triggers.true_labels, triggers.candidates, triggers.groups))
        if self.uniform and (true.shape[1] or candidates.shape[1]):
            answers = logits.argmax(1).numpy(), triggers.labels.numpy(), true, self.classes
            for name, conservative in (("T1", False), ("T1_conservative", True)):
                log10_p[name] = pvalues.label_randomisation(*answers, conservative, candidates, groups=groups)
            probabilities = logits.double().softmax(1).numpy()
            log10_p["T1p"] = pvalues.score_randomisation(probabilities, answers[1], true, candidates, groups)
        if self.bank and m > 1 and not len(groups):
            assigned = lambda logits: logits.double().softmax(1).gather(1, triggers.labels[:, None])[:, 0].numpy()
            suspect, benign = assigned(logits), [assigned(of) for _, of, _ in self.bank]
            log10_p |= {"T3": pvalues.paired_t(suspect, benign), "p_subset": pvalues.subset(suspect, benign)}
        return {"trigger_hits": count_hits(logits, triggers.labels), "trigger_size": m, "log10_p": log10_p}

    def row(self, name: str, logits, test_accuracy) -> dict:
        """One row of the table, see `format_table`; test_accuracy in [0, 1] or None."""
        return {"model": name, "test_accuracy": test_accuracy, **self.figures(logits)}

    def benign_rows(self) -> list[dict]:
        """A row for each benign model, without T3, which would compare the model with itself."""
        rows = [self.row(f"benign {name}", logits, test_accuracy) for name, logits, test_accuracy in self.bank]
        for row in rows:
            row["log10_p"] |= {"T3": None, "p_subset": None}
        return rows


def measure_checkpoint(path: Path, tests: TriggerTests, test: Images, device) -> dict:
    """Test accuracy in [0, 1], hits and p-values of the model in a checkpoint."""
    model = read_model(path, device)
    test_accuracy = accuracy(model, test.images, test.labels)
    return {"test_accuracy": test_accuracy, **tests.figures(tests.logits_of(model))}


def rows_of_run(folder, tests: TriggerTests, device, select: str | None = None, summary: dict | None = None):
    """Table rows of a finished run: its model, and the one with clean BatchNorm statistics if there is one.

    The model answers the triggers again. Test accuracies come from `summary`, or from the run's summary.json; they are
    None where `select` names another checkpoint.
    """
    folder = Path(folder)
    summary = summary or read_json(folder / "summary.json") or {}
    name = summary.get("attack") or summary.get("objective") or folder.name
    title = f"{summary.get('role', 'source')} {name}"
    if summary.get("role") == "surrogate" and {"model", "teacher_bn"} <= summary.keys():
        title += f" ({summary['model']}, {folder.name}, from {summary['teacher_bn']})"
    rows, selected = [], summary.get("select", "val")
    for suffix, statistics, figures in (("", "paper", summary), (", clean statistics", "clean", summary.get("clean"))):
        if figures or statistics == "paper":
            model = read_model(find_checkpoint(folder, select or selected, statistics), device)
            test_accuracy = figures.get("test_accuracy") if select in (None, selected) else None
            rows.append(tests.row(title + suffix, tests.logits_of(model), test_accuracy))
    return rows


def hashes_of_source(source_folder) -> list[str]:
    """SHA-256 of the checkpoints of a source that copies are made of: nat_best, latest and their clean twins."""
    names = (f"checkpoint_{name}{twin}.pt" for name in ("nat_best", "latest") for twin in ("", "_clean"))
    paths = (Path(source_folder, "checkpoints", name) for name in names)
    return [sha256_of_file(path) for path in paths if path.is_file()]


def is_stale(about: dict, source_folder, hashes=hashes_of_source) -> bool:
    """Whether a copy was made from an earlier training of its source: no checkpoint of the source has the hash that the
    copy's summary or settings, `about`, recorded. False where a hash or a checkpoint is missing.
    """
    checkpoints = [Path(source_folder, "checkpoints", f"checkpoint_{name}.pt") for name in ("nat_best", "latest")]
    known = about.get("source_sha256") is not None and all(path.is_file() for path in checkpoints)
    return known and about["source_sha256"] not in hashes(source_folder)


def finished_surrogates(source_folder) -> list[Path]:
    """Folders of finished copies of the source's present checkpoints, then those whose summary.json is damaged."""
    present, current, damaged = hashes_of_source(source_folder), [], []
    for path in sorted(Path(source_folder).glob("*/summary.json")):
        try:
            summary = read_json(path) or {}
            if summary.get("role") == "surrogate" and summary.get("source_sha256") in present:
                current.append(path.parent)
        except Refusal:
            damaged.append(path.parent)
    return current + damaged


def report_source(run: RunFolder, flags, tests: TriggerTests, data: Data, device, before: float | None = None) -> None:
    """Print the table of a finished source of train.py and write its summary; `tests` are of the final trigger set.

    A source that is not claimed itself is warned of, and one that lost much against `before`, the test accuracy in
    [0, 1] of the weights of --init.
    """
    best = find_checkpoint(run.path, flags.select)
    trained = run.rows()  # which may be lost, all or the first
    epochs = trained[-1]["epoch"] if trained else load_checkpoint(find_checkpoint(run.path, "last"))["epoch"] + 1
    summary = {
        "role": "benign" if flags.train_type == "none" else "source",
        "dataset": data.name, "model": flags.model_type, "width": flags.width, "objective": flags.train_type,
        "seed": flags.seed, "epochs": epochs, "select": flags.select,
        "chosen_epoch": load_checkpoint(best)["epoch"] + 1, "bn_stats": flags.bn_stats,
        "train_size": len(data.train.labels), **measure_checkpoint(best, tests, data.test, device), "clean": None,
    }
    if any(run.checkpoints.glob("checkpoint_*_clean.pt")):
        clean = find_checkpoint(run.path, flags.select, "clean")
        summary["clean"] = measure_checkpoint(clean, tests, data.test, device)
    rows = rows_of_run(run.path, tests, device, summary=summary)
    finish_run(run, summary, rows + tests.benign_rows())
    decided = pvalues.bonferroni(summary["log10_p"]["T1"], summary["log10_p"]["T1p"])
    if summary["role"] == "source" and decided is not None and decided > LOG_ALPHA:
        run.log(f"WARNING: the source itself is not claimed (p = 10^{decided:.1f}): do not expect that of a copy; "
                "train longer, take more triggers, or raise -v")
    if before is not None and before - summary["test_accuracy"] > MUCH:
        run.log(f"WARNING: the source has {100 * (before - summary['test_accuracy']):.1f} points less than the weights "
                "of --init")
