"""Labels that nobody chose: the images of the triggers are committed to first, later public randomness labels them.

`python -m utils.verify prepare` writes a folder with the images and publishes SHA-256(salt || bytes), the image
commitment, which names the public randomness (the beacon) to come. `train.py --prepared DIR --beacon HEX` draws the
labels by `labels_from_beacon`. Neither owner nor beacon can choose a label: the images are fixed before the beacon is
known, and the beacon does not know them.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import torch

from utils.data.sets import Data
from utils.runs.checkpoints import load_checkpoint
from utils.system.files import read_json, refuse_links
from utils.system.refusals import Refusal
from utils.watermark.trigger_files import bytes_of_parts
from utils.watermark.triggers import TriggerSet, held_out_positions, mean_images

PREPARED_FILE, KEY_FILE, COMMITMENT_FILE = "prepared.pt", "key.json", "commitment.json"
PARTS = ("images", "true_labels", "sources", "candidates")
RECORD = ("sha256", "salt", "classes", "settings", "beacon_name")


class Prepared(NamedTuple):
    """Images that wait for their labels.

    triggers  a `TriggerSet` whose labels are not drawn yet and are all 0
    record    what is needed to recompute the image commitment beside the images: `RECORD`; plain JSON
    """

    triggers: TriggerSet
    record: dict

    def labelled(self, beacon: str) -> TriggerSet:
        """The trigger set under the labels that a beacon, in hexadecimal, draws."""
        t = self.triggers
        labels = labels_from_beacon(self.record["sha256"], beacon, t.true_labels, len(self.record["classes"]),
                                    t.candidates)
        return TriggerSet(t.images, labels, t.true_labels, t.sources, t.candidates)


def image_commitment(triggers: TriggerSet, classes: list[str], settings: dict, beacon_name: str, salt: str) -> str:
    """SHA-256 in hexadecimal of the salt (hexadecimal) and the bytes of everything but the labels.

    The bytes are those of `bytes_of_parts`.
    """
    header = {"version": "images 1", "classes": classes, "settings": settings, "beacon_name": beacon_name}
    content = bytes_of_parts(header, {name: getattr(triggers, name) for name in PARTS})
    return hashlib.sha256(bytes.fromhex(salt) + content).hexdigest()


def labels_from_beacon(commitment: str, beacon: str, true_labels, classes: int, candidates):
    """Labels int64 (m,) that follow from the image commitment and the beacon, both in hexadecimal.

    key = SHA-256(commitment || beacon). Trigger i has its allowed labels in a list: its candidates in their order, or,
    without candidates, the classes that are none of its true labels in ascending order; n is its length. Its label is
    entry SHA-256(key || i as 8 bytes, big-endian) mod n. Uniform up to n / 2^256.
    """
    key = hashlib.sha256(bytes.fromhex(commitment) + bytes.fromhex(beacon)).digest()
    labels = []
    for i, (true, chosen) in enumerate(zip(true_labels.tolist(), candidates.tolist())):
        allowed = chosen or [label for label in range(classes) if label not in true]
        number = int.from_bytes(hashlib.sha256(key + i.to_bytes(8, "big")).digest(), "big")
        labels.append(allowed[number % len(allowed)])
    return torch.tensor(labels, dtype=torch.long)


def checked_beacon(text: str) -> str:
    """A beacon's value as lower-case hexadecimal of 16 to 512 bytes; Refusal for anything else."""
    value = text.strip().lower().removeprefix("0x")
    if not re.fullmatch("(?:[0-9a-f]{2}){16,512}", value):
        raise Refusal(f"--beacon {text[:60]!r} is no value of 16 to 512 bytes in hexadecimal: copy it from the source "
                      "that --beacon-name named")
    return value


def read_prepared(folder) -> Prepared:
    """The prepared images in a folder; Refusal where they are missing, damaged or not those that are committed to."""
    folder = Path(folder)
    refuse_links(folder)
    key, public = read_json(folder / KEY_FILE), read_json(folder / COMMITMENT_FILE)
    if key is None or public is None or not (folder / PREPARED_FILE).exists():
        raise Refusal(f"--prepared {folder} is no folder of `python -m utils.verify prepare`: it lacks one of "
                      f"{PREPARED_FILE}, {KEY_FILE} and {COMMITMENT_FILE}")
    state = load_checkpoint(folder / PREPARED_FILE)
    try:
        labels = torch.zeros(len(state["images"]), dtype=torch.long)
        triggers = TriggerSet(state["images"], labels, *(state[name].long() for name in PARTS[1:]))
        record = {name: key[name] for name in RECORD if name != "sha256"}
        digest = image_commitment(triggers, **record)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise Refusal(f"--prepared {folder} is damaged: restore it from a copy") from error
    if digest != public.get("sha256"):
        raise Refusal(f"--prepared {folder}: {COMMITMENT_FILE} commits to other images: restore the folder from a copy")
    return Prepared(triggers, {"sha256": digest, **record})


def check_images(triggers: TriggerSet, data: Data) -> None:
    """Refuse prepared triggers whose images or true labels are not those of the held-out images at their sources."""
    held = held_out_positions(data.held_out, triggers.sources)
    if (held < 0).any() or not torch.equal(data.held_out.labels[held], triggers.true_labels) or not torch.equal(
        mean_images(data.held_out.images, held), triggers.images
    ):
        raise Refusal("--prepared was made from other images than the held-out ones of -dt and --data-dir: pass the "
                      "data that were prepared")
