"""What every script ends with: accuracy, trigger hits and p-values of source, surrogates and benign models."""

from pathlib import Path

from utils import metrics, pvalues
from utils.checkpoint import find, read_benign, read_model
from utils.data import Images
from utils.files import digest, read_json
from utils.refuse import Refusal
from utils.run import Run
from utils.triggers import Trigger


class Judge:
    """Judges suspects by one trigger set: `uniform` says whether its labels were drawn uniformly (T1 needs it)."""

    def __init__(self, trigger: Trigger, classes: int, uniform: bool, benign=(), device="cpu"):
        self.trigger, self.classes, self.uniform = trigger, classes, uniform
        self.names, self.logits, self.accuracies = [], [], []
        for folder in benign:
            path = find(folder, None)
            logits = self.ask(read_benign(folder, device), path)
            self.names.append(Path(folder).name)
            self.logits.append(logits)
            self.accuracies.append(_known_accuracy(path))

    def ask(self, model, path="the model"):
        """A model's logits (m, C) on the triggers; Refusal where it has other classes."""
        logits = metrics.predict(model, self.trigger.images).cpu()
        if logits.shape[1] != self.classes:
            raise Refusal(f"{path} answers with {logits.shape[1]} classes, the triggers have {self.classes}")
        return logits

    def figures(self, logits) -> dict:
        """Hits and log10 p-values of a suspect with these logits (m, C); None where a test does not apply."""
        trigger, m = self.trigger, len(self.trigger)
        log10_p = dict.fromkeys(("T1", "T1_conservative", "T3", "p_subset"))
        if self.uniform and trigger.true_labels.shape[1]:
            known = logits.argmax(1).numpy(), trigger.labels.numpy(), trigger.true_labels.numpy(), self.classes
            log10_p["T1"] = pvalues.label_randomisation(*known)
            log10_p["T1_conservative"] = pvalues.label_randomisation(*known, conservative=True)
        if self.logits and m > 1:
            suspect, benign = self._probabilities(logits), [self._probabilities(b) for b in self.logits]
            log10_p["T3"] = pvalues.paired_t(suspect, benign)
            log10_p["p_subset"] = pvalues.subset(suspect, benign)
        return {"trigger_hits": metrics.hits(logits, trigger.labels), "trigger_size": m, "log10_p": log10_p}

    def _probabilities(self, logits):
        return logits.double().softmax(1).gather(1, self.trigger.labels[:, None])[:, 0].numpy()

    def row(self, name: str, logits, test_accuracy) -> dict:
        """One row of the table."""
        return {"model": name, "test_accuracy": test_accuracy, **self.figures(logits)}

    def benign_rows(self) -> list[dict]:
        """A row for each benign model; T3 would compare it with itself and is left out."""
        rows = []
        for name, logits, accuracy in zip(self.names, self.logits, self.accuracies):
            row = self.row(f"benign {name}", logits, accuracy)
            row["log10_p"] |= {"T3": None, "p_subset": None}
            rows.append(row)
        return rows


def measure(path: Path, judge: Judge, test: Images, device, amp: bool = False) -> dict:
    """Test accuracy, hits and p-values of the model in a checkpoint."""
    model = read_model(path, device)
    accuracy = metrics.accuracy(model, test.images, test.labels, amp)
    return {"test_accuracy": accuracy, **judge.figures(judge.ask(model, path))}


def rows_of_run(folder, judge: Judge, device, select: str | None = None, summary: dict | None = None) -> list[dict]:
    """Table rows of a finished run, its clean-statistics model too where there is one.

    The triggers are asked anew, so that every row of a table uses one bank; accuracies come from the summary, which
    a run that is about to write its own hands over.
    """
    folder = Path(folder)
    summary = summary or read_json(folder / "summary.json") or {}
    name = summary.get("attack") or summary.get("objective") or folder.name
    title = f"{summary.get('role', 'source')} {name}"
    if summary.get("role") == "surrogate" and {"model", "teacher_bn"} <= summary.keys():
        title += f" ({summary['model']}, {folder.name}, from {summary['teacher_bn']})"
    rows = []
    for statistics, key in (("paper", summary), ("clean", summary.get("clean"))):
        if statistics == "clean" and not key:
            continue
        path = find(folder, select or summary.get("select", "val"), statistics)
        model = read_model(path, device)
        suffix = ", clean statistics" if statistics == "clean" else ""
        same = select in (None, summary.get("select", "val"))  # else the summary's accuracy is another checkpoint's
        rows.append(judge.row(title + suffix, judge.ask(model, path), key.get("test_accuracy") if same else None))
    return rows


def surrogates(source_folder) -> list[Path]:
    """Folders of finished attacks below a source run, on the checkpoints that it holds now; damaged ones too."""
    found, damaged = {}, []
    for path in sorted(Path(source_folder).glob("*/summary.json")):
        try:
            found[path.parent] = read_json(path) or {}
        except Refusal:
            damaged.append(path.parent)
    present = {digest(p) for p in Path(source_folder).glob("checkpoints/checkpoint_[nl]a*.pt")} if found else ()
    ours = [p for p, s in found.items() if s.get("role") == "surrogate" and s.get("source_sha256") in present]
    return ours + damaged


def table(rows: list[dict]) -> str:
    """The rows as text; p-values as log10 p, never 0."""
    width = max([len(row["model"]) for row in rows] + [5])
    tests = "  ".join(f"{name:>8}" for name in ("T1", "T1 cons.", "T3", "p_subset"))
    lines = [f"{'model':<{width}}  {'test %':>7}  {'triggers':>9}  {tests}"]
    for row in rows:
        p = row["log10_p"]
        cells = [p[k] for k in ("T1", "T1_conservative", "T3", "p_subset")]
        accuracy = "-" if row["test_accuracy"] is None else f"{100 * row['test_accuracy']:.2f}"
        hits = f"{row['trigger_hits']}/{row['trigger_size']}"
        text = "  ".join(f"{'-' if c is None else format(c, '.2f'):>8}" for c in cells)
        lines.append(f"{row['model']:<{width}}  {accuracy:>7}  {hits:>9}  {text}")
    lines.append("T1, T3, p_subset: log10 p; T1 <= -3 decides, p_subset is for comparison with the paper only")
    return "\n".join(lines)


def conclude(run: Run, summary: dict, rows: list[dict]) -> None:
    """Print the table and write `summary.json`, the mark of a finished run."""
    run.log(table(rows))
    run.write_json("summary.json", {**summary, "rows": rows})


def _known_accuracy(path: Path):
    summary = read_json(path.parent.parent / "summary.json") or {}
    return summary.get("test_accuracy")
