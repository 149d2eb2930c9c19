"""The owner's side: train.py keeps his triggers, `python -m utils.verify export` shows them, a claim reads them."""

import hashlib
import hmac
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.files import write_pictures
from utils.data.sets import Data
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from utils.runs.folder import RunFolder
from utils.runs.networks import add_named_architectures
from utils.system.files import read_json, refuse_links, write_atomically, write_json
from utils.system.refusals import Refusal
from utils.watermark import prepared
from utils.watermark.prepared import never_claimed, new_private_folder
from utils.watermark.trigger_files import draw_trigger_picture, read_triggers, unpack_source
from utils.watermark.triggers import MOST_TRIGGERS, TriggerSet, labels_are_uniform

MOST_NUMBERS = 1 << 25  # triggers times classes, the probabilities of a suspect


def commit_triggers(run: RunFolder, triggers: TriggerSet, data: Data, is_secret: bool = True, opening=None) -> None:
    """Save the final trigger set in the run folder, before the first step that trains on it, with a picture of it.

    `opening` is what opens the commitment of `prepare`, with the beacon's value; None for labels of `--seed`.
    """
    save_checkpoint(run.path / "triggers.pt", vars(triggers))
    write_atomically(run.path / "trigger.png", draw_trigger_picture(triggers, data.classes), private=True)
    if not is_secret:
        return
    if opening is None:
        run.log("the triggers are drawn by --seed: only their owner can believe a claim; one for strangers begins with "
                "`python -m utils.verify prepare`")
    else:
        write_json(run.path / prepared.KEY_FILE, {k: v for k, v in opening.items() if k != "sha256"}, private=True)
        write_json(run.path / prepared.COMMITMENT_FILE, {"sha256": opening["sha256"]})
        run.log(f"commitment {opening['sha256']}; labels drawn by {prepared.describe_beacon(opening)} = "
                f"{opening['beacon']}")
    if hopeless := never_claimed(triggers, len(data.classes)):
        run.log(f"WARNING: this mark can never be claimed: {hopeless}; {prepared.TAKE_MORE}")


class Owner(NamedTuple):
    """What the owner has."""

    triggers: TriggerSet
    classes: list  # their names
    names: list  # the neutral file names of the triggers
    mean_std: tuple  # of pixels, 3 numbers each, through which plain weights are asked
    record: dict | None  # what opens the commitment, with the beacon, see `read_record`; None of a run without one
    uniform: bool  # whether the labels are said to be drawn uniformly, as T1 requires; with a record they are


def read_owner(run) -> Owner:
    """The owner's side of a run, a folder or a checkpoint file; where the run is committed, both are the same.

    Refusal without a trigger set, where the class names do not fit, and where anything in the folder is not what its
    commitment says: class names in their order, images, and labels that the run's own beacon draws.
    """
    folder, file = Path(run) if Path(run).is_dir() else None, Path(run).absolute()
    home = file.parent.parent if file.is_file() and file.parent.name == "checkpoints" else folder
    if home and any((home / name).exists() for name in (prepared.KEY_FILE, prepared.COMMITMENT_FILE)):
        return _committed_owner(home)
    path = find_checkpoint(run, "val")
    checkpoint = load_checkpoint(path)
    model, triggers = unpack_source(checkpoint, path)
    about, count = checkpoint.get("about", {}), model.num_classes
    classes = range(count) if about.get("classes") is None else about["classes"]
    classes = list(map(str, classes)) if isinstance(classes, (list, range)) else []
    if not len(set(classes)) == count == len(classes):
        raise Refusal(f"{path}: its class names do not fit its {count} classes")
    if folder and (folder / "triggers.pt").exists():
        triggers = read_triggers(folder / "triggers.pt", count)
    if triggers is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    _check_size(path, triggers, count)
    if about.get("train_type") == "none":
        raise Refusal(f"{path} is of -tt none, which trains no mark: name a run that has one")
    # the official code, which says nothing of its training, draws them so
    uniform = labels_are_uniform(about.get("label_strategy", None if "train_type" in about else "random"))
    mean_std = model[0].mu.flatten().tolist(), model[0].std.flatten().tolist()
    return Owner(triggers, classes, neutral_names(triggers), mean_std, None, uniform)


def _committed_owner(folder: Path) -> Owner:
    """The owner's side of a committed run: triggers.pt, and what the digest fixes. The judge gets no other file, and
    builds no network of the owner's, whose code he would run.
    """
    refuse_links(folder)
    if not (folder / "triggers.pt").exists():
        raise Refusal(f"{folder} holds no triggers.pt: name a run that was trained with --prepared, or restore it")
    classes = (read_json(folder / prepared.KEY_FILE) or {}).get("classes")
    count = len(classes) if isinstance(classes, list) else prepared.MOST_CLASSES
    triggers = read_triggers(folder / "triggers.pt", count)
    record = prepared.read_record(folder, triggers)
    _check_size(folder, triggers, count)
    if "beacon" not in record:
        raise Refusal(f"{folder / prepared.KEY_FILE} holds no beacon: restore it from a copy")
    if prepared.labels_from_beacon(triggers, record, record["beacon"]).tolist() != triggers.labels.tolist():
        raise Refusal(f"{folder}: its labels are not those that its beacon draws: restore it from a copy")
    names = prepared.names_from_beacon(len(triggers), record, record["beacon"])
    return Owner(triggers, record["classes"], names, (record["mean"], record["std"]), record, True)


def _check_size(path: Path, triggers: TriggerSet, classes: int) -> None:
    if len(triggers) > MOST_TRIGGERS or len(triggers) * classes > MOST_NUMBERS:
        raise Refusal(f"{path}: {len(triggers)} triggers of {classes} classes are more than a claim takes "
                      f"({MOST_TRIGGERS}, and {MOST_NUMBERS} numbers in all)")


def neutral_names(triggers: TriggerSet) -> list[str]:
    """A PNG file name for each trigger that tells neither index nor label to anybody who lacks the labels."""
    content = (triggers.images, triggers.labels, triggers.true_labels)
    secret = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in content)).digest()
    return [hmac.digest(secret, str(i).encode(), "sha256").hex()[:16] + ".png" for i in range(len(triggers))]


def add_export(parts) -> None:
    e = parts.add_parser("export", help="write the triggers as neutral PNG files, and a private key file")
    e.set_defaults(call=export_triggers)
    e.add_argument("run", metavar="RUN", help="folder of train.py, or a checkpoint that holds triggers")
    add_named_architectures(e)
    e.add_argument("--to", required=True, type=Path, metavar="DIR", help="new; the suspect sees DIR/images only")


def export_triggers(flags) -> int:
    """Write DIR/images/<neutral name>.png and DIR/key.json, or nothing; returns exit status 0."""
    owner = read_owner(flags.run)
    t, classes, images = owner.triggers, owner.classes, {}
    for i in np.argsort(owner.names).tolist():
        label, candidates = int(t.labels[i]), t.candidates[i].tolist()
        images[owner.names[i]] = {"label": label, "label_name": classes[label], "index": i,
                                  "true_labels": t.true_labels[i].tolist()} | (
            {"candidates": candidates} if candidates else {}) | (
            {"group": int(t.groups[i])} if len(t.groups) else {})
    with new_private_folder(flags.to) as to:
        (to / "images").mkdir()
        write_pictures(t.images, owner.names, to / "images")
        write_json(to / "key.json", {"commitment": (owner.record or {}).get("sha256"), "classes": classes,
                                     "images": images}, private=True)
    print(f"{len(owner.names)} triggers in {to / 'images'}, to be shown to the suspect in any order")
    print(f"their labels in {to / 'key.json'}, to be shown to nobody")
    return 0
