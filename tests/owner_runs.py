"""Run folders of an owner, as train.py leaves them, with an untrained model; and answers of suspects."""

import numpy as np
import torch

import models
from utils.data.sets import load_data
from utils.ownership.commitment import commit_to, neutral_names, save_triggers
from utils.runs.checkpoints import pack_checkpoint
from utils.runs.folder import RunFolder
from utils.system.machine import prepare_torch
from utils.watermark.trigger_files import pack_triggers
from utils.watermark.triggers import TriggerSet, draw_triggers

M, CLASSES = 40, [str(i) for i in range(10)]
SETTINGS = {"dataset": "digits", "train_type": "margin", "label_strategy": "random", "seed": 3, "num_query": M}


def replace(triggers, **parts):
    """The trigger set with some parts changed."""
    return TriggerSet(**(triggers._asdict() | parts))


def make_run(path, settings=SETTINGS, labels=None, committed=True, **draw):
    """Write a run folder as train.py leaves one, with an untrained model; returns it and its trigger set.

    `draw` are further arguments of `draw_triggers`.
    """
    run = RunFolder(path, settings, "another -msg").open(torch.device("cpu"), overwrite=False)
    digits = load_data("digits")
    triggers, _ = draw_triggers(digits.held_out, M, 1, 10, settings["seed"], **draw)
    triggers = triggers if labels is None else replace(triggers, labels=labels)
    save_triggers(run, triggers, CLASSES)
    if committed:
        commit_to(run, triggers, CLASSES, len(digits.held_out.labels))
    prepare_torch(settings["seed"], False)
    model = models.build("vgg11", 10, digits.mean, digits.std, 4).eval()
    about = {"classes": CLASSES, "train_type": settings["train_type"]}
    run.save("nat_best", pack_checkpoint(model, "vgg11", epoch=0, figures={}, about=about, **pack_triggers(triggers)))
    run._lock.close()
    return path, triggers


def answer(owner, tmp_path, share, name="answers.csv", seed=0):
    """Write a CSV file in which `share` of the answers are the assigned labels and the others the true ones."""
    folder, triggers = owner
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(M) < share, triggers.labels, triggers.true_labels[:, 0])
    path = tmp_path / name
    path.write_text("".join(f"{n},{y}\n" for n, y in zip(neutral_names(triggers, folder), labels)))
    return path
