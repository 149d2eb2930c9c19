"""The one commitment: the images of the triggers are fixed first, later public randomness draws their labels.

`python -m utils.verify prepare` writes a folder of images and a secret, and prints SHA-256 of everything that a claim
will rest on (`commitment_bytes`), which names the public randomness (the beacon) to come. `train.py --prepared DIR
--beacon HEX` draws the labels from secret, commitment and beacon (`labels_from_beacon`). So the owner cannot choose a
label, the beacon does not know the images, and whoever lacks the secret can compute nothing.
"""

import hashlib
import hmac
import itertools
import math
import random
import re
import secrets
import shutil
import struct
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

import models
from utils.data.sets import Data, add_data_flags, load_data
from utils.runs.checkpoints import load_checkpoint, save_checkpoint
from utils.runs.weights import read_label_model
from utils.system.files import close_to_others, read_json, refuse_links, write_json
from utils.system.machine import add_device_flag, choose_device
from utils.system.refusals import COUNT, Refusal
from utils.training.metrics import accuracy
from utils.watermark.trigger_files import check_groups
from utils.watermark.triggers import (
    NUM_QUERY,
    TriggerSet,
    add_label_flags,
    add_trigger_flags,
    complete_label_flags,
    labels_are_uniform,
    mean_images,
    triggers_of_flags,
)

PREPARED_FILE, KEY_FILE, COMMITMENT_FILE = "prepared.pt", "key.json", "commitment.json"
PARTS = ("images", "true_labels", "sources", "candidates", "groups")
SETTINGS = {"num_query": NUM_QUERY, "num_mixup": 1, "label_strategy": "random", "label_choices": None,
            "trigger_strategy": None}  # flags that the preparation decides, and their defaults
RECORD = ("secret", "classes", "mean", "std", "beacon_name", "round")
FORMAT, FORMAT_OF_GROUPS = b"margin triggers1", b"margin triggers2"  # 16 bytes each
MOST_CLASSES = 100_000
NAME_LENGTH = 100  # characters of a beacon's name
ALPHA = 1e-3
NAMED = ("p holds if the beacon's name means one value: of a name that fits several, as of any day or block, the owner "
         "could choose one")
TAKE_MORE = "take more triggers (-nq) or data of more classes"
QUICKNET = "drand quicknet"  # the one beacon whose rounds are known here
ROUND_1, PERIOD = 1692803367, 3  # when its first round was known, in seconds since 1970; seconds between rounds
ROUND_URL = "https://api.drand.sh/52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971/public/{}"


# ---- python -m utils.verify prepare DIR ----


def add_prepare(parts) -> None:
    c = parts.add_parser("prepare", help="commit to the images of a trigger set before anybody can know its labels")
    c.set_defaults(call=prepare_images, seed=0, train_type="margin", carriers=None)
    c.add_argument("to", type=Path, metavar="DIR", help="a new folder, for train.py --prepared")
    c.add_argument("--beacon-name", default=QUICKNET, metavar="TEXT",
                   help=f"public randomness to come: {QUICKNET} (default), of which --after chooses a round, or any "
                   "other, whose date those who judge must know")
    c.add_argument("--after", type=duration, metavar="TIME",
                   help="how far away the round is, as 90s, 10m, 1h, 2d (default: 1h); the commitment has to be "
                   "published or time-stamped by then")
    add_data_flags(c)
    c.add_argument("--train-size", type=COUNT, help="--label-strategy runners-up: choose among this many training "
                   "images, as many as train.py gets (default: all)")
    add_label_flags(add_trigger_flags(c))
    c.add_argument("-mt", "--model-type", type=models.architecture, metavar="NAME",
                   help="architecture of a --label-model that is plain weights")
    add_device_flag(c)


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
    name = " ".join(flags.beacon_name.split())
    if not labels_are_uniform(flags.label_strategy):
        raise Refusal(f"--label-strategy {flags.label_strategy} leaves nothing to draw: pass random, plausible or "
                      "runners-up")
    plain = 0 < len(name) <= NAME_LENGTH and name.isascii() and name.isprintable()
    if not plain or (name != QUICKNET and "quicknet" in name.lower()):
        raise Refusal(f"--beacon-name {name[:40]!a}: name, in at most {NAME_LENGTH} characters of printable ASCII, "
                      "public randomness that does not exist yet; of drand quicknet the round is chosen by --after")
    if flags.after and name != QUICKNET:
        raise Refusal(f"--after is for {QUICKNET}: of {name[:40]!r} the program does not know the dates")
    device = choose_device(flags.device)
    data = load_data(flags.dataset, flags.data_dir, train_size=flags.train_size,
                     skip_bad_images=flags.skip_bad_images, image_size=flags.image_size)
    order = list(range(len(data.held_out.labels)))
    random.SystemRandom().shuffle(order)  # a seed would let anybody draw the images again
    data.held_out = data.held_out.pick(order)
    for note in data.notes:
        print(note)
    clean = read_label_model(flags, data, device) if flags.label_model else None
    if clean:
        print(describe_label_model(clean, data))
    triggers = triggers_of_flags(flags, data, clean)  # whose labels are not used
    if hopeless := never_claimed(triggers, len(data.classes)):
        raise Refusal(f"this mark could never be claimed: {hopeless}; {TAKE_MORE}")
    record = {"secret": secrets.token_hex(32), "classes": data.classes, "mean": list(map(float, data.mean)),
              "std": list(map(float, data.std)), "beacon_name": name,
              "round": round_after(flags.after or 3600) if name == QUICKNET else 0}
    settings, digest = {name: getattr(flags, name) for name in SETTINGS}, commitment_digest(triggers, record)
    with new_private_folder(flags.to) as to:
        save_checkpoint(to / PREPARED_FILE, {part: getattr(triggers, part) for part in PARTS})
        write_json(to / KEY_FILE, record | {"settings": settings}, private=True)
        write_json(to / COMMITMENT_FILE, {"sha256": digest, "beacon_name": name, "round": record["round"]})
    print(f"{len(triggers)} images in {to}, to be shown to nobody")
    print(f"image commitment: SHA-256 {digest}")
    print(f"publish it, or `timestamp {to}`, a minute or more before the value of {describe_beacon(record)}")
    if name != QUICKNET:
        print(NAMED)
    print(f"then: python train.py ... --prepared {to} --beacon HEX, with that value")
    return 0


def describe_label_model(model, data) -> str:
    """How accurate a label model is on the held-out images, in a line: later nothing shows that it was a wrong one."""
    right = accuracy(model, data.held_out.images, data.held_out.labels)
    doubt = "" if right > 0.5 else ("; WARNING: if it is better than that, its classes are in another order, or its "
                                    "pixels are normalised otherwise than by the data's mean and deviation")
    return f"--label-model has {100 * right:.2f} % on the held-out images{doubt}"


@contextmanager
def new_private_folder(folder: Path):
    """A new or empty folder that only its owner may enter; what was written in it is removed if the block fails."""
    if folder.is_symlink() or folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refusal(f"{folder} is there and not empty, or no folder: name a new one")
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for warning in close_to_others(folder):
        print(warning)
    try:
        yield folder
    except BaseException:  # no part of the secret stays behind, and the same command can be repeated
        shutil.rmtree(folder, ignore_errors=True)
        if existed:
            folder.mkdir(exist_ok=True)
        raise


def never_claimed(triggers: TriggerSet, classes: int, alpha: float = ALPHA) -> str | None:
    """Why no answers to these triggers could be claimed by T1 at `alpha`, None where some could."""
    draws = triggers.groups.unique().tolist() or range(len(triggers))
    drawn_from = [triggers.candidates.shape[1] or classes - len(set(triggers.true_labels[i].tolist())) for i in draws]
    best = round(-sum(math.log10(max(n, 1)) for n in drawn_from), 12)  # as T1 is rounded
    if best <= math.log10(alpha):
        return None
    return f"{len(triggers)} triggers of {classes} classes give p = 10^{best:.2f} at best, above alpha = {alpha:g}"


# ---- what is committed to ----


def commitment_bytes(triggers: TriggerSet, record: dict) -> bytes:
    """What is hashed: fields of fixed length, little-endian, so that one digest has one opening.

    16 bytes `FORMAT`; the 32 bytes of the secret; five uint32: triggers m, true labels of each k, candidates of each c,
    classes C, pixels S of an image's side; mean and std through which suspects are asked, six float64; SHA-256 of the
    beacon's name; its round, uint64; SHA-256 of each class name, C of them; images, m * 3 * S * S bytes; true labels
    (m, k) and candidates (m, c), uint32. Names are UTF-8. Where triggers share draws it begins with `FORMAT_OF_GROUPS`
    and ends with their groups (m,), uint32. ValueError for a record or triggers that are none.
    """
    t, classes = triggers, record["classes"]
    (m, k), (c, size) = t.true_labels.shape, (t.candidates.shape[1], t.images.shape[-1])
    numbers = [*record["mean"], *record["std"]]
    if not (isinstance(record["secret"], str) and re.fullmatch("[0-9a-f]{64}", record["secret"])):
        raise ValueError("the secret is not 32 bytes")
    if not (isinstance(classes, list) and k < len(set(classes)) == len(classes) <= MOST_CLASSES):
        raise ValueError("the classes are no list of distinct names")
    lengths = len(record["mean"]), len(record["std"])
    if lengths != (3, 3) or not all(map(math.isfinite, numbers)) or min(numbers[3:]) <= 0:
        raise ValueError("mean and std are not three finite numbers each")
    if t.images.shape != (m, 3, size, size) or t.images.dtype != torch.uint8 or len(t.candidates) != m:
        raise ValueError("the images are no squares of bytes")
    if any(len(part.flatten()) and not 0 <= int(part.min()) <= int(part.max()) < len(classes)
           for part in (t.true_labels, t.candidates)):
        raise ValueError("a label is outside the classes")
    digest = lambda name: hashlib.sha256(name.encode()).digest()
    return b"".join([
        FORMAT_OF_GROUPS if len(t.groups) else FORMAT,
        struct.pack("<32s5I6d32sQ", bytes.fromhex(record["secret"]), m, k, c, len(classes), size, *numbers,
                    digest(record["beacon_name"]), record["round"]),
        *map(digest, classes), t.images.contiguous().numpy().tobytes(),
        *(part.contiguous().numpy().astype("<u4").tobytes() for part in (t.true_labels, t.candidates, t.groups))])


def commitment_digest(triggers: TriggerSet, record: dict) -> str:
    return hashlib.sha256(commitment_bytes(triggers, record)).hexdigest()


def _drawn(record: dict, beacon: str, what: bytes, i: int, turn: int = 0) -> bytes:
    """32 bytes that secret, commitment and beacon give to trigger i: HMAC-SHA256, keyed by the secret."""
    fixed = bytes.fromhex(record["sha256"]) + hashlib.sha256(bytes.fromhex(beacon)).digest()
    return hmac.digest(bytes.fromhex(record["secret"]), what + fixed + struct.pack("<2I", i, turn), "sha256")


def labels_from_beacon(triggers: TriggerSet, record: dict, beacon: str):
    """Labels int64 (m,) that follow from secret, commitment and the beacon's value, the last in hexadecimal.

    Trigger i, or the first of its group, has its n allowed labels in a list: its candidates in their order, or, without
    candidates, the classes that are none of its true labels in ascending order. Its label is entry x mod n, where x is
    the first of HMAC-SHA256(secret, "label" || commitment || SHA-256(beacon) || i || turn), turn = 0, 1, ..., a big-
    endian number, below the largest multiple of n: uniform without bias. i and turn are uint32, little-endian.
    """
    labels, classes = [], len(record["classes"])
    for i in triggers.groups.tolist() or range(len(triggers)):
        true, chosen = set(triggers.true_labels[i].tolist()), triggers.candidates[i].tolist()
        allowed = chosen or [label for label in range(classes) if label not in true]
        limit = 2**256 - 2**256 % len(allowed)
        numbers = (int.from_bytes(_drawn(record, beacon, b"label", i, turn), "big") for turn in itertools.count())
        labels.append(allowed[next(x for x in numbers if x < limit) % len(allowed)])
    return torch.tensor(labels, dtype=torch.long)


def names_from_beacon(m: int, record: dict, beacon: str) -> list[str]:
    """A PNG file name for each trigger, drawn as the labels are: in their order suspects are asked."""
    return [_drawn(record, beacon, b"image", i)[:8].hex() + ".png" for i in range(m)]


# ---- the beacon ----


def checked_beacon(text: str) -> str:
    """A beacon's value as lower-case hexadecimal of 16 to 512 bytes; Refusal for anything else."""
    value = text.strip().lower().removeprefix("0x")
    if not re.fullmatch("(?:[0-9a-f]{2}){16,512}", value):
        raise Refusal(f"--beacon {text[:60]!r} is no value of 16 to 512 bytes in hexadecimal: copy it from the source "
                      "that --beacon-name named")
    return value


def round_after(seconds: float) -> int:
    """The first round of quicknet that is at least so many seconds away."""
    return max(1, math.ceil((time.time() + seconds - ROUND_1) / PERIOD) + 1)


def round_time(record: dict) -> float | None:
    """Seconds since 1970 at which the value of the beacon's round is known; None for a beacon of another name."""
    if record["beacon_name"] != QUICKNET or not record["round"]:
        return None
    return ROUND_1 + (record["round"] - 1) * PERIOD


def describe_beacon(record: dict) -> str:
    """Which beacon draws the labels, when its value is known, and where it stands."""
    name, known = record["beacon_name"], round_time(record)
    if known is None:  # the name is what an owner wrote: in one line that nobody takes for a verdict
        return f"the beacon {' '.join(name.split())[:NAME_LENGTH]!a}"
    return (f"{name} round {record['round']}, known from {utc(known)}, field `randomness` of "
            f"{ROUND_URL.format(record['round'])}")


def utc(seconds: float) -> str:
    """A time in seconds since 1970 as text; beyond the year 9999 the number itself."""
    if not -1e10 < seconds < 2.5e11:
        return f"{seconds:.0f} s after 1970"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


# ---- reading it again ----


def read_record(folder: Path, triggers: TriggerSet) -> dict | None:
    """What opens the commitment in a folder of prepare, or of a run that was trained on one; None where there is none.

    `RECORD`, the digest "sha256" and, in a run, the "beacon" by which it drew. Refusal where a file is damaged or lost,
    or where triggers and record are not those of the digest in commitment.json.
    """
    key, public = read_json(folder / KEY_FILE), read_json(folder / COMMITMENT_FILE)
    if key is None and public is None:
        return None
    if key is None or public is None:
        lost = KEY_FILE if key is None else COMMITMENT_FILE
        raise Refusal(f"{folder / lost} is gone, and nothing can be shown without it: restore it from a copy")
    try:
        record = {name: key[name] for name in RECORD}
        record["sha256"] = commitment_digest(triggers, record)
        if "beacon" in key:
            record["beacon"] = checked_beacon(key["beacon"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error, Refusal) as error:
        raise Refusal(f"{folder / KEY_FILE} is damaged, or of an older version: restore it from a copy, or, to judge "
                      f"as the owner, remove it and {COMMITMENT_FILE}") from error
    if public.get("sha256") != record["sha256"]:
        raise Refusal(f"{folder} does not hold what {COMMITMENT_FILE} commits to (images, true labels, candidates, "
                      "classes or secret are others): restore the folder from a copy")
    return record


class Prepared(NamedTuple):
    """Images that wait for their labels.

    triggers  a `TriggerSet` whose labels are not drawn yet and are all 0
    record    what opens the commitment beside the images: `RECORD`, and its digest "sha256"; plain JSON
    settings  the flags of `SETTINGS` with which it was made
    """

    triggers: TriggerSet
    record: dict
    settings: dict

    def draw(self, beacon: str, data: Data) -> TriggerSet:
        """The triggers under the labels that a beacon, in hexadecimal, draws; Refusal for other data than prepared."""
        t = self.triggers
        pool = data.train if len(t.groups) else data.held_out  # triggers that share draws are training images
        position = {index: i for i, index in enumerate(pool.indices.tolist())}
        taken = torch.tensor([[position.get(index, -1) for index in row] for row in t.sources.tolist()],
                             dtype=torch.long)
        if (taken < 0).any() or not (torch.equal(pool.labels[taken], t.true_labels)
                                     and torch.equal(mean_images(pool.images, taken), t.images)):
            raise Refusal("--prepared was made from other images than those of -dt, --data-dir and --image-size (and "
                          "--train-size, for runners-up labels): pass the data that were prepared")
        if self.record["classes"] != data.classes:
            raise Refusal("--prepared was made for other class names: pass the data that were prepared")
        return replace(t, labels=labels_from_beacon(t, self.record, beacon))


def read_prepared(folder) -> Prepared:
    """The prepared images in a folder; Refusal where they are missing, damaged or not those that are committed to."""
    folder = Path(folder)
    refuse_links(folder)
    if not all((folder / name).exists() for name in (PREPARED_FILE, KEY_FILE, COMMITMENT_FILE)):
        raise Refusal(f"{folder} is no folder of `python -m utils.verify prepare`: it lacks one of "
                      f"{PREPARED_FILE}, {KEY_FILE} and {COMMITMENT_FILE}")
    state = load_checkpoint(folder / PREPARED_FILE)
    try:
        labels = torch.zeros(len(state["images"]), dtype=torch.long)
        parts = {name: state[name].long() for name in PARTS[1:] if name != "groups" or name in state}
        triggers = TriggerSet(state["images"], labels, **parts)
        check_groups(triggers)
        settings, record = dict(read_json(folder / KEY_FILE)["settings"]), read_record(folder, triggers)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise Refusal(f"--prepared {folder} is damaged: restore it from a copy") from error
    return Prepared(triggers, record, settings)


def take_prepared_flags(flags) -> None:
    """Take the flags of `SETTINGS` from --prepared, if it is there; Refusal where the command says otherwise."""
    if (flags.prepared is None) != (flags.beacon is None):
        raise Refusal("--prepared and --beacon go together: the one has the images, the other draws their labels")
    if not flags.prepared:
        return
    flags.beacon = checked_beacon(flags.beacon)
    prepared = read_prepared(flags.prepared)
    if (round_time(prepared.record) or 0) > time.time():
        raise Refusal(f"--beacon {flags.beacon[:16]}... cannot be the value of {describe_beacon(prepared.record)}")
    if prepared.record["beacon_name"] == QUICKNET and len(flags.beacon) != 64:
        raise Refusal(f"--beacon {flags.beacon[:16]}... has not the 32 bytes of {describe_beacon(prepared.record)}")
    for name, default in SETTINGS.items():
        made_with = prepared.settings.get(name)
        if getattr(flags, name) not in (default, made_with):
            raise Refusal(f"--prepared {flags.prepared} was made with {name.replace('_', '-')} {made_with}, not "
                          f"{getattr(flags, name)}: leave that flag out")
        setattr(flags, name, made_with)
