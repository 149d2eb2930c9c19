"""Which of the paper's numbers belong beside a run."""

from utils.published.numbers import MODELS, NUMBERS

SETTINGS = "ResNet-34, 100 triggers, 200 epochs, mean ± standard deviation of 3 seeds"
METHODS = {"margin": "margin", "ewe": "EWE", "rs": "RS"}  # -tt -> name in Tables 2 and 3
CIFAR10 = frozenset("airplane automobile bird cat deer dog frog horse ship truck".split())


def paper_row(*, dataset: str, train_type: str, classes=(), attack: str = "source", images: str = "", model: str = "",
              mixup: int = 1, clean: bool = False) -> tuple[str, dict]:
    """("Table 2", {column: (mean, sd or None)}) of the paper's row for a model; ("", {}) where it has none.

    dataset, train_type  the values of -dt and -tt, of the source
    classes  class names of the source; a folder of images with those of CIFAR-10 counts as CIFAR-10
    attack   "source", "benign", or what an attack's summary calls it ("soft", "finetune ftal")
    images   the value of -dsrc: the data set of the thief's images
    model    architecture of a copy
    mixup    images of a trigger, the value of -nm
    clean    whether BatchNorm statistics without triggers are involved, which the paper does not have
    """
    data = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(dataset)
    if dataset == "folder" and frozenset(name.lower() for name in classes) == CIFAR10:
        data = "CIFAR-10"
    same_images, kind = images in ("", dataset), attack.split(" ")[0]  # of fine-tuning the variant follows
    margin = train_type == "margin" and data == "CIFAR-10"
    place = None  # a table and a row in it as `NUMBERS` spells them; it may have no such row
    if mixup > 1:
        place = ("table6", f"k = {mixup}, {kind}") if margin and same_images else None
    elif kind in MODELS and same_images and model != "vgg11" and train_type == "base":
        place = ("table1", kind) if data == "CIFAR-10" else None
    elif kind in MODELS and same_images and model != "vgg11":
        place = "table2", f"{data} {METHODS.get(train_type)}, {kind}"
    elif kind == "benign" and data == "CIFAR-10":
        place = "table3", METHODS.get(train_type)
    elif margin and kind == "soft" and same_images:
        place = "table4", "soft, VGG-11"
    elif margin and kind == "soft" and images == "svhn" and model != "vgg11":
        place = "table4", "soft, SVHN images"
    elif margin and same_images:
        place = {"margin": ("table8", "margin extraction"), "finetune": ("table9", "fine-tuned")}.get(kind)
    if data is None or clean or place is None:
        return "", {}
    found = {column: value for (row, column), value in NUMBERS[place[0]].items() if row == place[1]}
    return (f"Table {place[0][5:]}", found) if found else ("", {})
