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
import re
import struct
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils.data.sets import Data
from utils.runs.checkpoints import load_checkpoint
from utils.system.files import read_json, refuse_links
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet, held_out_positions, mean_images

PREPARED_FILE, KEY_FILE, COMMITMENT_FILE = "prepared.pt", "key.json", "commitment.json"
PARTS = ("images", "true_labels", "sources", "candidates")
RECORD = ("secret", "classes", "mean", "std", "beacon_name", "round")
FORMAT = b"margin triggers1"  # 16 bytes
MOST_CLASSES = 100_000
# name: (time of round 1, seconds between rounds, where a round's value stands, in the field `randomness`)
BEACONS = {"drand quicknet": (1692803367, 3, "https://api.drand.sh/52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba"
                                             "94600c84e971/public/{}")}


class Prepared(NamedTuple):
    """Images that wait for their labels.

    triggers  a `TriggerSet` whose labels are not drawn yet and are all 0
    record    what opens the commitment beside the images: `RECORD`, and its digest "sha256"; plain JSON
    settings  flags of the preparation that train.py takes over
    """

    triggers: TriggerSet
    record: dict
    settings: dict

    def labelled(self, beacon: str) -> TriggerSet:
        """The trigger set under the labels that a beacon, in hexadecimal, draws."""
        t = self.triggers
        return TriggerSet(t.images, labels_from_beacon(t, self.record, beacon), t.true_labels, t.sources, t.candidates)


def commitment_bytes(triggers: TriggerSet, record: dict) -> bytes:
    """What is hashed: fields of fixed length, little-endian, so that one digest has one opening.

    16 bytes `FORMAT`; the 32 bytes of the secret; five uint32: triggers m, true labels of each k, candidates of each c,
    classes C, pixels S of an image's side; mean and std through which suspects are asked, six float64; SHA-256 of the
    beacon's name; its round, uint64; SHA-256 of each class name, C of them; images, m * 3 * S * S bytes; true labels
    (m, k) and candidates (m, c), uint32. Names are UTF-8. ValueError for a record or triggers that are none.
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
        struct.pack("<16s32s5I6d32sQ", FORMAT, bytes.fromhex(record["secret"]), m, k, c, len(classes), size, *numbers,
                    digest(record["beacon_name"]), record["round"]),
        *map(digest, classes), t.images.contiguous().numpy().tobytes(),
        *(part.contiguous().numpy().astype("<u4").tobytes() for part in (t.true_labels, t.candidates))])


def commitment_digest(triggers: TriggerSet, record: dict) -> str:
    """SHA-256 of `commitment_bytes` in hexadecimal."""
    return hashlib.sha256(commitment_bytes(triggers, record)).hexdigest()


def _drawn(record: dict, beacon: str, what: bytes, i: int, turn: int = 0) -> bytes:
    """32 bytes that secret, commitment and beacon give to trigger i: HMAC-SHA256, keyed by the secret."""
    fixed = bytes.fromhex(record["sha256"]) + hashlib.sha256(bytes.fromhex(beacon)).digest()
    return hmac.digest(bytes.fromhex(record["secret"]), what + fixed + struct.pack("<2I", i, turn), "sha256")


def labels_from_beacon(triggers: TriggerSet, record: dict, beacon: str):
    """Labels int64 (m,) that follow from secret, commitment and the beacon's value, the last in hexadecimal.

    Trigger i has its n allowed labels in a list: its candidates in their order, or, without candidates, the classes
    that are none of its true labels in ascending order. Its label is entry x mod n, where x is the first of
    HMAC-SHA256(secret, "label" || commitment || SHA-256(beacon) || i || turn), turn = 0, 1, ..., a big-endian number,
    below the largest multiple of n: uniform without bias. i and turn are uint32, little-endian.
    """
    labels, classes = [], len(record["classes"])
    for i, (true, chosen) in enumerate(zip(triggers.true_labels.tolist(), triggers.candidates.tolist())):
        allowed = chosen or [label for label in range(classes) if label not in true]
        limit = 2**256 - 2**256 % len(allowed)
        numbers = (int.from_bytes(_drawn(record, beacon, b"label", i, turn), "big") for turn in itertools.count())
        labels.append(allowed[next(x for x in numbers if x < limit) % len(allowed)])
    return torch.tensor(labels, dtype=torch.long)


def names_from_beacon(m: int, record: dict, beacon: str) -> list[str]:
    """A PNG file name for each trigger, drawn as the labels are: in their order suspects are asked."""
    return [_drawn(record, beacon, b"image", i)[:8].hex() + ".png" for i in range(m)]


def checked_beacon(text: str) -> str:
    """A beacon's value as lower-case hexadecimal of 16 to 512 bytes; Refusal for anything else."""
    value = text.strip().lower().removeprefix("0x")
    if not re.fullmatch("(?:[0-9a-f]{2}){16,512}", value):
        raise Refusal(f"--beacon {text[:60]!r} is no value of 16 to 512 bytes in hexadecimal: copy it from the source "
                      "that --beacon-name named")
    return value


def round_after(name: str, seconds: float) -> int:
    """The first round of a beacon of `BEACONS` that is at least so many seconds away; 0 for one of another name."""
    if name not in BEACONS:
        return 0
    begin, period, _ = BEACONS[name]
    return max(1, math.ceil((time.time() + seconds - begin) / period) + 1)


def round_time(record: dict) -> float | None:
    """Seconds since 1970 at which the value of the beacon's round is known; None for a beacon of another name."""
    if record["beacon_name"] not in BEACONS or not record["round"]:
        return None
    begin, period, _ = BEACONS[record["beacon_name"]]
    return begin + (record["round"] - 1) * period


def describe_beacon(record: dict) -> str:
    """Which beacon draws the labels, when its value is known, and where it stands."""
    name, known = record["beacon_name"], round_time(record)
    if known is None:
        return f"the beacon {name!a}"
    return (f"{name} round {record['round']}, known from {utc(known)}, field `randomness` of "
            f"{BEACONS[name][2].format(record['round'])}")


def utc(seconds: float) -> str:
    """A time in seconds since 1970 as text; beyond the year 9999 the number itself."""
    if not -1e10 < seconds < 2.5e11:
        return f"{seconds:.0f} s after 1970"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


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
    if "salt" in key:
        raise Refusal(f"{folder / KEY_FILE} is of a format that is not read any more: to judge as the owner, remove it "
                      f"and {COMMITMENT_FILE}")
    try:
        record = {name: key[name] for name in RECORD}
        record["sha256"] = commitment_digest(triggers, record)
        if "beacon" in key:
            record["beacon"] = checked_beacon(key["beacon"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error, Refusal) as error:
        raise Refusal(f"{folder / KEY_FILE} is damaged: restore it from a copy") from error
    if public.get("sha256") != record["sha256"]:
        raise Refusal(f"{folder} does not hold what {COMMITMENT_FILE} commits to (images, true labels, candidates, "
                      "classes or secret are others): restore the folder from a copy")
    return record


def read_prepared(folder) -> Prepared:
    """The prepared images in a folder; Refusal where they are missing, damaged or not those that are committed to."""
    folder = Path(folder)
    refuse_links(folder)
    if not all((folder / name).exists() for name in (PREPARED_FILE, KEY_FILE, COMMITMENT_FILE)):
        raise Refusal(f"--prepared {folder} is no folder of `python -m utils.verify prepare`: it lacks one of "
                      f"{PREPARED_FILE}, {KEY_FILE} and {COMMITMENT_FILE}")
    state = load_checkpoint(folder / PREPARED_FILE)
    try:
        labels = torch.zeros(len(state["images"]), dtype=torch.long)
        triggers = TriggerSet(state["images"], labels, *(state[name].long() for name in PARTS[1:]))
        settings = dict(read_json(folder / KEY_FILE)["settings"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise Refusal(f"--prepared {folder} is damaged: restore it from a copy") from error
    return Prepared(triggers, read_record(folder, triggers), settings)


def check_images(triggers: TriggerSet, data: Data) -> None:
    """Refuse prepared triggers whose images or true labels are not those of the held-out images at their sources."""
    held = held_out_positions(data.held_out, triggers.sources)
    if (held < 0).any() or not torch.equal(data.held_out.labels[held], triggers.true_labels) or not torch.equal(
        mean_images(data.held_out.images, held), triggers.images
    ):
        raise Refusal("--prepared was made from other images than the held-out ones of -dt and --data-dir: pass the "
                      "data that were prepared")
