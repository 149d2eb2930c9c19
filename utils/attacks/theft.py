"""What every attack needs before it begins: the source, the thief's images, and the folder of the attack's run."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from utils.data.files import SIZE
from utils.data.sets import Data, Images, load_data
from utils.ownership.results import TriggerTests
from utils.runs.checkpoints import class_count, find_checkpoint, instead_of_mt, load_source
from utils.runs.folder import RunFolder
from utils.runs.settings import OutputSettings
from utils.system.files import sha256_of_file
from utils.system.refusals import Refusal
from utils.training.settings import TrainingSettings
from utils.watermark.trigger_files import unpack_source
from utils.watermark.triggers import TriggerSet, labels_are_uniform, validation_images


@dataclass(frozen=True)
class TheftSettings:
    """What an attack works on.

    source       folder of the source's run, which `model_type` and `train_type` describe
    select       "val" or "last": which checkpoint of the source is attacked and which one is reported
    statistics   one of `checkpoints.STATISTICS`: which of the source's models is attacked
    home, own    what `load_data` takes for the source's data set, and for the thief's
    benign       runs of independent models for the report
    """

    source: Path
    model_type: str
    train_type: str
    select: str
    statistics: str
    home: dict
    own: dict
    output: OutputSettings
    training: TrainingSettings
    device: str
    benign: tuple


class Theft(NamedTuple):
    """An attack that is ready to begin: the frozen source and its triggers, the thief's data (`own`), the source's
    data (`home`) with the validation images that are left, and the tests that the result will face."""

    settings: TheftSettings
    attack: str
    run: RunFolder
    device: torch.device
    source: torch.nn.Module
    source_sha256: str
    triggers: TriggerSet
    own: Data
    home: Data
    validation: Images
    tests: TriggerTests


def open_theft(settings: TheftSettings, attack, device) -> Theft:
    """Find the source and load the data; Refusal where they do not fit. Makes nothing.

    `attack` has a `name`, `needs_labels`, `on`, the folder of the attack that it edits, "" for the source, and a method
    `check(settings, source, device)`. What can be refused without the images is refused before they are decoded, since
    a folder of them then gets a decoded copy.
    """
    with instead_of_mt("pass -tmt {} if you trust it"):
        checkpoint, path = load_source(settings.source, settings.select, settings.statistics)
        source, triggers = unpack_source(checkpoint, path, device)
    about = checkpoint.get("about", {})
    check_source(settings, checkpoint, triggers, path)
    if source.size != (settings.home["image_size"] or SIZE):
        raise Refusal(f"the source was trained on images of {source.size} pixels: pass --image-size {source.size}")
    attack.check(settings, source, device)
    uniform = labels_are_uniform(about.get("label_strategy", "random"))
    with instead_of_mt("--benign imports no code; leave it out, and pass it to `utils.verify claim` with -mt {}"):
        tests = TriggerTests(triggers, class_count(source), uniform, settings.benign, device)
    own, home = _load_both(settings, about)
    check_data(settings, own, home, about, class_count(source), attack.needs_labels)
    record = settings.output.record | {"attack": attack.name, "source_sha256": sha256_of_file(path)}
    record |= {"data_sha256": home.sha256, "data_source_sha256": own.sha256}
    if attack.on:
        record["on_sha256"] = sha256_of_file(find_checkpoint(settings.source / attack.on, settings.select))
    run = RunFolder(settings.output.folder, record, settings.output.tag_flag)
    run.check(settings.output.overwrite)
    return Theft(settings, attack.name, run, device, source, record["source_sha256"], triggers, own, home,
                 validation_images(home, triggers), tests)


def _load_both(settings: TheftSettings, about: dict) -> tuple[Data, Data]:
    """The thief's and the source's data.

    Where they are one set, the thief gets as many images as the source had, unless `own["train_size"]` says otherwise.
    """
    own, home = settings.own, settings.home
    same = all(own[key] == home[key] for key in ("dataset", "data_dir"))
    size = own["train_size"] or (about.get("train_size") if same else None)
    mine = load_data(**own | {"train_size": size})
    return mine, mine if same else load_data(**home)


def check_source(settings: TheftSettings, checkpoint: dict, triggers: TriggerSet | None, path) -> None:
    """Refuse a source that is not the one the flags describe."""
    model_type, about = checkpoint["model"]["type"], checkpoint.get("about", {})
    if model_type != settings.model_type:
        raise Refusal(f"-tmt {settings.model_type}: {path} holds a {model_type}; pass -tmt {model_type}")
    if about.get("train_type", settings.train_type) != settings.train_type:
        raise Refusal(f"-tt {settings.train_type}: {path} was trained with -tt {about['train_type']}; pass that")
    if triggers is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")


def check_data(settings: TheftSettings, own: Data, home: Data, about: dict, classes: int, needs_labels: bool) -> None:
    """Refuse data that cannot serve: other classes than the source's where labels or tests need them."""
    if len(home.classes) != classes or about.get("classes", home.classes) != home.classes:
        raise Refusal(
            f"-dt {settings.home['dataset']}: its {len(home.classes)} classes are not the source's {classes}; "
            "pass the -dt and --data-dir the source was trained on"
        )
    if needs_labels and own.classes != home.classes:
        raise Refusal(
            f"-dsrc {settings.own['dataset']}: this attack needs true labels in the source's classes, and these are "
            "others; use -at soft or hard, which need none"
        )
    if settings.training.batch_size > len(own.train.labels):
        raise Refusal(f"--batch-size {settings.training.batch_size}: there are only {len(own.train.labels)} training "
                      "images")
