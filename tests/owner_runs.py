"""Run folders of an owner, as train.py leaves them, with an untrained model; and answers of suspects."""

import numpy as np
import torch

import models
from utils.data.sets import load_data
from utils.ownership.commitment import commit_triggers, read_owner
from utils.runs.checkpoints import pack_checkpoint
from utils.runs.folder import RunFolder
from utils.system.machine import prepare_torch
from utils.watermark.prepared import commitment_digest, labels_from_beacon
from utils.watermark.trigger_files import pack_triggers
from utils.watermark.triggers import TriggerSet, draw_triggers

M, CLASSES = 40, [str(i) for i in range(10)]
SETTINGS = {"dataset": "digits", "train_type": "margin", "label_strategy": "random", "seed": 3, "num_query": M}
PLAUSIBLE = SETTINGS | {"label_strategy": "plausible", "label_choices": 2}
BEACON = "3c" * 32


def replace(triggers, **parts):
    """The trigger set with some parts changed."""
    return TriggerSet(**(vars(triggers) | parts))


def make_run(path, settings=SETTINGS, labels=None, record=None, **draw):
    """Write a run folder as train.py leaves one, with an untrained model; returns it and its trigger set.

    record  what opens a commitment but its digest, see `record_of`, for a run of --prepared; None for one of --seed
    `draw` are further arguments of `draw_triggers`.
    """
    run = RunFolder(path, settings, "another -msg").open(torch.device("cpu"), overwrite=False)
    digits = load_data("digits")
    triggers = draw_triggers(digits.held_out, M, 1, 10, settings["seed"], **draw)
    if record:
        record = record | {"sha256": commitment_digest(triggers, record), "beacon": BEACON}
        triggers = replace(triggers, labels=labels_from_beacon(triggers, record, BEACON))
    triggers = triggers if labels is None else replace(triggers, labels=labels)
    commit_triggers(run, triggers, digits, settings["train_type"] != "none", record)
    prepare_torch(settings["seed"], False)
    model = models.build("vgg11", 10, digits.mean, digits.std, 4).eval()
    about = {"classes": CLASSES, "train_type": settings["train_type"], "label_strategy": settings["label_strategy"]}
    run.save("nat_best", pack_checkpoint(model, epoch=0, figures={}, about=about, **pack_triggers(triggers)))
    run._lock.close()
    return path, triggers


def record_of(beacon_name="round 7", round=0, **parts) -> dict:
    """What opens a commitment to the triggers of `make_run`, beside them and the digest."""
    return {"secret": "5e" * 32, "classes": CLASSES, "mean": [0.3, 0.3, 0.3], "std": [0.4, 0.5, 0.6],
            "beacon_name": beacon_name, "round": round} | parts


def names_of(folder) -> list[str]:
    """The names under which the triggers of a run are exported."""
    return read_owner(folder).names


def answer(owner, tmp_path, share, name="answers.csv"):
    """Write a CSV file in which `share` of the answers are the assigned labels and the others the true ones."""
    folder, triggers = owner
    labels = np.where(np.random.default_rng(0).random(M) < share, triggers.labels, triggers.true_labels[:, 0])
    path = tmp_path / name
    path.write_text("".join(f"{n},{y}\n" for n, y in zip(names_of(folder), labels)))
    return path
