"""An auditor's check of a trigger set against his own copy of the data set: are the images what they say?

A forger may file pictures under true labels that they do not show, or match images to the labels of a seed. The auditor
takes the data set from where he trusts it, and rebuilds the images from the committed indices, bit for bit.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from utils.data.sets import DATASETS, Images, load_data
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.system.files import sha256_of_file
from utils.system.refusals import Refusal
from utils.training.metrics import predict
from utils.watermark.triggers import TriggerSet, draw_triggers, held_out_positions, mean_images


class Auditor(NamedTuple):
    """What an auditor brings: held-out images of his own copy of the data set, and runs of models.

    bank          runs of train.py, said to be his own benign models
    label_model   the run whose digest the owner committed to as the label model, None where he was not given it
    """

    held_out: Images
    bank: list[Path]
    label_model: Path | None


def read_auditor(folder, settings: dict, size: int) -> Auditor:
    """What lies in the auditor's folder: `data`, which is what --data-dir names, and beside it runs of train.py.

    `settings` are those of the commitment, `size` the height of the triggers in pixels. Raises Refusal where the
    data set is missing; whether the runs are those of benign models is seen when they are read.
    """
    folder, name = Path(folder), settings.get("dataset")
    if name not in DATASETS:
        raise Refusal(f"the committed settings name no data set ({str(name)[:40]!r}): --auditor cannot rebuild images")
    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    if not folder.is_dir() or not ((folder / "data").is_dir() or name == "digits"):
        raise Refusal(f"--auditor {folder}: put the data set's files into {folder / 'data'}, and runs of your own "
                      "benign models beside them")
    held_out = load_data(name, folder / "data", flag="--auditor", image_size=size).held_out
    wanted, bank, label_model = settings.get("label_model_sha256"), [], None
    for run in runs:
        if wanted and sha256_of_file(find_checkpoint(run)) == wanted:
            label_model = run
        else:
            bank.append(run)
    return Auditor(held_out, bank, label_model)


def audit_triggers(triggers: TriggerSet, classes: int, settings: dict, drawn_from_seed: bool,
                   auditor: Auditor) -> list[str]:
    """What is wrong with a trigger set, in sentences; an empty list where everything is as it was said to be.

    Images and true labels must be those of the held-out images at the committed indices. If the labels were drawn from
    the owner's seed, images and candidates must be those that this seed and the label model give, too.
    """
    held_out, faults = auditor.held_out, []
    if not triggers.sources.shape[1] or triggers.sources.shape != triggers.true_labels.shape:
        return ["the trigger set does not say which images of the data set it was made from"]
    taken = held_out_positions(held_out, triggers.sources)
    foreign = (taken < 0).any(1)
    if foreign.any():
        return [_of(foreign, "made from images that are not among the held-out ones of the data set")]
    if taken.unique().numel() < taken.numel():
        faults.append("an image of the data set is used more than once")
    rebuilt = mean_images(held_out.images, taken)
    differ = torch.ones(len(triggers), dtype=torch.bool)
    if rebuilt.shape == triggers.images.shape:
        differ = (rebuilt != triggers.images).flatten(1).any(1)
    if differ.any():
        faults.append(_of(differ, "not the image of the data set at its index"))
    mislabelled = (held_out.labels[taken] != triggers.true_labels).any(1)
    if mislabelled.any():
        faults.append(_of(mislabelled, "filed under another true label than the data set's"))
    if drawn_from_seed and not faults:
        faults += _faults_of_the_draw(triggers, classes, settings, auditor)
    return faults


def _faults_of_the_draw(triggers, classes, settings, auditor) -> list[str]:
    """What of images and candidates the committed seed does not give."""
    strategy, chosen = settings.get("label_strategy"), settings.get("trigger_strategy") or "random"
    answer = None
    if strategy == "plausible" or chosen != "random":
        if auditor.label_model is None:
            return ["a clean model chose images or candidates, and the auditor was not given the one whose digest is "
                    "committed to"]
        clean = read_model(find_checkpoint(auditor.label_model))
        answer = lambda images: predict(clean, images)
    if settings.get("held_out") != len(auditor.held_out.labels):
        return [f"the owner drew from {settings.get('held_out')} held-out images, the data set has "
                f"{len(auditor.held_out.labels)}"]
    m, k = triggers.sources.shape
    drawn, _ = draw_triggers(auditor.held_out, m, k, classes, settings["seed"], strategy, answer, chosen,
                             triggers.candidates.shape[1] or 2)
    faults = []
    if not torch.equal(drawn.sources, triggers.sources):
        faults.append("the images are not those that the committed seed draws")
    if not torch.equal(drawn.candidates, triggers.candidates):
        faults.append("the candidates are not the label model's most probable classes")
    return faults


def _of(rows, what: str) -> str:
    first = int(rows.nonzero()[0])
    return f"{int(rows.sum())} of {len(rows)} triggers (the first: number {first}) are {what}"
