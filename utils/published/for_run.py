"""Which of the paper's numbers belong beside a run."""

from typing import NamedTuple

from utils.published.numbers import MODELS, NUMBERS

SETTINGS = "ResNet-34, 100 triggers, 200 epochs, mean ± standard deviation of 3 seeds"
METHODS = {"margin": "margin", "ewe": "EWE", "rs": "RS"}  # -tt -> name in Tables 2 and 3
CIFAR10 = frozenset("airplane automobile bird cat deer dog frog horse ship truck".split())


class Measured(NamedTuple):
    """What was measured: one model, and how it came about.

    dataset     the value of -dt, of the source
    classes     class names of the source; a folder of images with those of CIFAR-10 counts as CIFAR-10
    train_type  the value of -tt, of the source
    attack      "source", "benign", or what an attack's summary calls it ("soft", "finetune ftal")
    images      the value of -dsrc: the data set of the thief's images
    model       architecture of a copy
    mixup       images of a trigger, the value of -nm
    clean       whether BatchNorm statistics without triggers are involved, which the paper does not have
    """

    dataset: str
    classes: tuple
    train_type: str
    attack: str = "source"
    images: str = ""
    model: str = ""
    mixup: int = 1
    clean: bool = False


def paper_row(run: Measured) -> tuple[str, dict]:
    """("Table 2", {column: (mean, sd or None)}) of the paper's row for a model; ("", {}) where it has none."""
    data = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(run.dataset)
    if run.dataset == "folder" and frozenset(name.lower() for name in run.classes) == CIFAR10:
        data = "CIFAR-10"
    if data is None or run.clean:
        return "", {}
    table, row = _place(run, data, run.images in ("", run.dataset))
    found = {column: number for (name, column), number in NUMBERS.get(table, {}).items() if name == row}
    return (f"Table {table[5:]}", found) if found else ("", {})


def _place(run: Measured, data: str, same_images: bool) -> tuple[str, str]:
    """(name of a table, row in it) as `NUMBERS` spells them, or names that it does not have."""
    method, nowhere = METHODS.get(run.train_type), ("", "")
    kind = run.attack.split(" ")[0]  # of fine-tuning the variant follows
    if run.mixup > 1:
        fits = run.train_type == "margin" and data == "CIFAR-10" and same_images
        return ("table6", f"k = {run.mixup}, {kind}") if fits else nowhere
    if kind in MODELS and same_images and run.model != "vgg11":
        if run.train_type == "base":
            return ("table1", kind) if data == "CIFAR-10" else nowhere
        return ("table2", f"{data} {method}, {kind}")
    if data != "CIFAR-10":
        return nowhere
    if kind == "benign":
        return "table3", str(method)
    if run.train_type != "margin":
        return nowhere
    if kind == "soft":
        row = "soft, VGG-11" if same_images else "soft, SVHN images" if run.images == "svhn" else ""
        return ("table4", row) if same_images or run.model != "vgg11" else nowhere
    named = {"margin": ("table8", "margin extraction"), "finetune": ("table9", "fine-tuned")}
    return named.get(kind, nowhere) if same_images else nowhere
