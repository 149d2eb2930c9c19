"""`python -m utils.verify prepare DIR`: fix the images of triggers before the randomness that labels them exists."""

import math
import random
import re
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path

import models
from utils.data.sets import add_data_flags, load_data
from utils.runs.checkpoints import save_checkpoint
from utils.system.files import write_json
from utils.system.machine import choose_device
from utils.system.refusals import COUNT, SEED, Refusal
from utils.watermark.prepared import (
    BEACONS,
    COMMITMENT_FILE,
    KEY_FILE,
    PARTS,
    PREPARED_FILE,
    commitment_digest,
    describe_beacon,
    round_after,
)
from utils.watermark.triggers import (
    TriggerSet,
    add_label_flags,
    add_trigger_flags,
    complete_label_flags,
    labels_are_uniform,
    triggers_of_flags,
)

MOST_TRIGGERS = 4096  # of a commitment or a claim; a hundred are the paper's
ALPHA = 1e-3


def add_prepare(parts) -> None:
    """Declare the command `prepare` and its flags; `parts` are the subparsers of utils.verify."""
    c = parts.add_parser("prepare", help="commit to the images of a trigger set before anybody can know its labels")
    c.set_defaults(call=prepare_images, prepared=None, beacon=None)
    c.add_argument("to", type=Path, metavar="DIR", help="a new folder, for train.py --prepared")
    c.add_argument("--beacon-name", default="drand quicknet", metavar="TEXT",
                   help=f"public randomness to come: {', '.join(BEACONS)} (default), of which --after chooses a round, "
                   "or any other, whose date those who judge must know")
    c.add_argument("--after", type=duration, metavar="TIME",
                   help="how far away the round is, as 90s, 10m, 1h, 2d (default: 1h); the commitment has to be "
                   "published or time-stamped by then")
    add_data_flags(c)
    add_label_flags(add_trigger_flags(c))
    c.add_argument("-mt", "--model-type", type=models.architecture, metavar="NAME",
                   help="architecture of a --label-model that is plain weights")
    c.add_argument("--width", type=COUNT, default=64, help="channels of its first stage")
    c.add_argument("--seed", type=SEED, default=0, help="of the training to come; it chooses nothing here, for the "
                   "images and the secret are of the operating system's randomness")
    c.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu", "mps"),
                   help="where the label model is computed (default: auto)")


def duration(text: str) -> float:
    """An argparse type: 90s, 10m, 1h or 2d in seconds, up to a year."""
    found = re.fullmatch(r"(\d{1,8})([smhd])", text)
    seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else 0
    if not 0 < seconds <= 366 * 86400:
        raise Refusal(f"--after {text[:40]!r} is no time like 90s, 10m, 1h or 2d, up to a year")
    return seconds


def prepare_images(flags) -> int:
    """Write images and a secret into a folder and print the commitment to them, or write nothing; exit status 0.

    Raises Refusal for a folder that is not empty, a label strategy that draws nothing, or impossible triggers.
    """
    complete_label_flags(flags)
    name = flags.beacon_name.strip()
    if not labels_are_uniform(flags.label_strategy):
        raise Refusal(f"--label-strategy {flags.label_strategy} leaves nothing to draw: pass random or plausible")
    if not name or not (name.isascii() and name.isprintable()) or (name not in BEACONS and "quicknet" in name.lower()):
        raise Refusal(f"--beacon-name {name[:40]!a}: name, in printable ASCII, public randomness that does not exist "
                      "yet; of drand quicknet the round is chosen by --after")
    if flags.after and name not in BEACONS:
        raise Refusal(f"--after is for {', '.join(BEACONS)}: of {name[:40]!r} the program does not know the dates")
    if flags.num_query > MOST_TRIGGERS:
        raise Refusal(f"-nq {flags.num_query}: a claim takes at most {MOST_TRIGGERS} triggers")
    data = load_data(flags.dataset, flags.data_dir, skip_bad_images=flags.skip_bad_images, image_size=flags.image_size)
    order = list(range(len(data.held_out.labels)))
    random.SystemRandom().shuffle(order)  # a seed would let anybody draw the images again
    data.held_out = data.held_out.pick(order)
    triggers, _ = triggers_of_flags(flags, data, choose_device(flags.device))  # its labels are not used
    if hopeless := never_claimed(triggers, len(data.classes)):
        raise Refusal(f"this mark could never be claimed: {hopeless}")
    record = {"secret": secrets.token_hex(32), "classes": data.classes, "mean": list(map(float, data.mean)),
              "std": list(map(float, data.std)), "beacon_name": name, "round": round_after(name, flags.after or 3600)}
    names = ("num_query", "num_mixup", "label_strategy", "label_choices", "trigger_strategy")
    kept = {name: getattr(flags, name) for name in names}
    digest = commitment_digest(triggers, record)
    with new_private_folder(flags.to) as to:
        save_checkpoint(to / PREPARED_FILE, {part: getattr(triggers, part) for part in PARTS})
        write_json(to / KEY_FILE, record | {"settings": kept}, private=True)
        write_json(to / COMMITMENT_FILE, {"sha256": digest, "beacon_name": name, "round": record["round"]})
    print(f"{len(triggers)} images in {to}, to be shown to nobody")
    print(f"image commitment: SHA-256 {digest}")
    print(f"publish it, or `timestamp {to}`, before the value of {describe_beacon(record)}")
    print(f"then: python train.py ... --prepared {to} --beacon HEX, with that value")
    return 0


@contextmanager
def new_private_folder(folder: Path):
    """A new or empty folder that only its owner may enter; what was written in it is removed if the block fails."""
    if folder.is_symlink() or folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refusal(f"{folder} is there and not empty, or no folder: name a new one")
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    try:
        yield folder
    except BaseException:  # no part of the secret stays behind, and the same command can be repeated
        shutil.rmtree(folder, ignore_errors=True)
        if existed:
            folder.mkdir(exist_ok=True)
        raise


def never_claimed(triggers: TriggerSet, classes: int) -> str | None:
    """Why no answers to these triggers could be claimed by T1 at alpha = 0.001, None where some could."""
    drawn_from = [triggers.candidates.shape[1] or classes - len(set(true)) for true in triggers.true_labels.tolist()]
    best = -sum(math.log10(max(n, 1)) for n in drawn_from)
    if best <= math.log10(ALPHA):
        return None
    return (f"{len(triggers)} triggers of {classes} classes give p = 10^{best:.2f} at best, above alpha = {ALPHA:g}; "
            "take more triggers (-nq), or data of more classes")
