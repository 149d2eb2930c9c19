"""`python -m utils.verify prepare DIR`: fix the images of triggers before the randomness that labels them exists."""

import argparse
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from utils.data.sets import add_data_flags, load_data
from utils.runs.checkpoints import find_checkpoint, save_checkpoint
from utils.system.files import sha256_of_file, write_json
from utils.system.machine import choose_device
from utils.system.refusals import SEED, Refusal
from utils.watermark.prepared import COMMITMENT_FILE, KEY_FILE, PARTS, PREPARED_FILE, image_commitment
from utils.watermark.triggers import (
    TriggerSet,
    add_label_flags,
    add_trigger_flags,
    complete_label_flags,
    labels_are_uniform,
    triggers_of_flags,
)


@dataclass(frozen=True)
class PrepareCommand:
    """The flags of `utils.verify prepare`."""

    to: Path
    dataset: str
    data_dir: str
    skip_bad_images: bool
    image_size: int | None
    num_query: int
    num_mixup: int
    label_strategy: str
    label_choices: int | None
    trigger_strategy: str | None
    label_model: str | None
    seed: int
    beacon_name: str
    device: str

def add_prepare(parts) -> None:
    """Declare the command `prepare` and its flags; `parts` are the subparsers of utils.verify."""
    c = parts.add_parser("prepare", help="commit to the images of a trigger set before anybody can know its labels")
    c.set_defaults(call=prepare_images, command_type=PrepareCommand)
    c.add_argument("to", type=Path, metavar="DIR", help="a new folder, for train.py --prepared")
    c.add_argument("--beacon-name", required=True, metavar="TEXT",
                   help="public randomness that does not exist yet, as 'drand quicknet round 123456'")
    add_data_flags(c)
    add_label_flags(add_trigger_flags(c))
    c.add_argument("--seed", type=SEED, default=0, help="seed of the choice of images (default: 0)")
    c.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"),
                   help="where the label model is computed (default: auto)")


def prepare_images(command: PrepareCommand) -> int:
    """Write the images into a new folder and commit to them, or write nothing; returns exit status 0.

    Raises Refusal for a folder that is not empty, a label strategy that draws nothing, or impossible triggers.
    """
    to, flags = command.to, argparse.Namespace(**vars(command))
    complete_label_flags(flags)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise Refusal(f"{to} is there and not empty: name a new folder")
    if not labels_are_uniform(flags.label_strategy):
        raise Refusal(f"--label-strategy {flags.label_strategy} leaves nothing to draw: pass random or plausible")
    if not command.beacon_name.strip():
        raise Refusal("--beacon-name is empty: name public randomness that does not exist yet")
    data = load_data(command.dataset, command.data_dir, skip_bad_images=command.skip_bad_images,
                     image_size=command.image_size)
    triggers, _ = triggers_of_flags(flags, data, choose_device(command.device))  # its labels are not used
    names = ("num_query", "num_mixup", "label_strategy", "label_choices", "trigger_strategy", "seed")
    committed = {"dataset": data.name, **{name: getattr(flags, name) for name in names},
                 "held_out": len(data.held_out.labels)}
    if flags.label_model:
        committed["label_model_sha256"] = sha256_of_file(find_checkpoint(flags.label_model))
    key = {"salt": secrets.token_hex(32), "classes": data.classes, "settings": committed,
           "beacon_name": command.beacon_name}
    digest = image_commitment(triggers, **key)
    _write(to, triggers, key, {"sha256": digest, "of": "salt || images, see docs/verification.md",
                               "beacon_name": command.beacon_name, "triggers": len(triggers),
                               "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    print(f"{len(triggers)} images in {to}, to be shown to nobody")
    print(f"image commitment: SHA-256 {digest}; publish or time-stamp it before {command.beacon_name} is known "
          f"({to / COMMITMENT_FILE})")
    print(f"then: python train.py ... --prepared {to} --beacon HEX, the value of {command.beacon_name}")
    return 0


def _write(to: Path, triggers: TriggerSet, key: dict, public: dict) -> None:
    existed = to.exists()
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        save_checkpoint(to / PREPARED_FILE, {name: getattr(triggers, name) for name in PARTS})
        write_json(to / KEY_FILE, key, private=True)
        write_json(to / COMMITMENT_FILE, public)
    except BaseException:  # no part of the secret stays behind, and the same command can be repeated
        for name in (PREPARED_FILE, KEY_FILE, COMMITMENT_FILE):
            (to / name).unlink(missing_ok=True)
        if not existed:
            shutil.rmtree(to, ignore_errors=True)
        raise
