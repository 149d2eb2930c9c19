"""A commitment to the trigger set, made before training: SHA-256(salt || canonical bytes).

`commitment.json` holds the digest and is meant to be published or time-stamped. `key.json` is private and holds the
salt and whatever else was hashed besides the triggers. A published digest shows that images, labels, class names and
settings were fixed by then; the salt prevents others from testing guesses against it. The digest does not show that
the labels were drawn at random: `labels_match_seed` repeats the draw.
"""

import hashlib
import hmac
import io
import re
import secrets
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils.data.sets import Data
from utils.runs.checkpoints import save_checkpoint
from utils.runs.folder import RunFolder
from utils.system.files import read_json, write_atomically
from utils.system.refusals import Refusal
from utils.watermark.trigger_files import bytes_of_parts, draw_trigger_picture
from utils.watermark.triggers import TriggerSet, redraw_labels

KEY_FILE, COMMITMENT_FILE = "key.json", "commitment.json"


class Commitment(NamedTuple):
    """The commitment in a run folder, checked.

    state     "match", "mismatch" or "none" (there is no commitment)
    digest    hexadecimal, the published one where it was given
    created   time of the commitment, as the owner recorded it
    settings  the settings that were committed to
    torch     the version of PyTorch that drew the labels
    """

    state: str
    digest: str | None
    created: str | None
    settings: dict
    torch: str | None


def canonical_bytes(triggers: TriggerSet, classes: list[str], settings: dict) -> bytes:
    """The bytes that are committed to.

    Those of images, assigned labels, true labels and sources, as `bytes_of_parts` of utils.watermark.trigger_files puts
    them. Where the labels were drawn from candidates these follow, and the version is 2 instead of 1.
    """
    parts = triggers.entries
    header = {"version": 2 if "candidates" in parts else 1, "classes": classes, "settings": settings}
    return bytes_of_parts(header, parts)


def commitment_digest(triggers: TriggerSet, classes, settings, salt: str) -> str:
    """The digest in hexadecimal; `salt` is hexadecimal too."""
    return hashlib.sha256(bytes.fromhex(salt) + canonical_bytes(triggers, classes, settings)).hexdigest()


def save_triggers(run: RunFolder, triggers: TriggerSet, classes: list[str]) -> None:
    """Write the trigger set and a picture of it into the run folder, both private (`triggers.pt`, `trigger.png`)."""
    save_checkpoint(run.path / "triggers.pt", triggers.entries)
    picture = io.BytesIO()
    draw_trigger_picture(triggers, classes, picture)
    write_atomically(run.path / "trigger.png", picture.getvalue(), private=True)


def read_commitment(folder: Path) -> dict | None:
    """What commitment.json says, None where there is none; Refusal where its digest is none.

    The digest is printed, logged and exported, so it must not be text of a stranger's choice.
    """
    public = read_json(folder / COMMITMENT_FILE)
    if public is not None and not re.fullmatch("[0-9a-f]{64}", str(public.get("sha256"))):
        raise Refusal(f"{folder / COMMITMENT_FILE} is damaged: its sha256 is not 64 hexadecimal digits; restore it "
                      "from a copy")
    return public


def commit_to(run: RunFolder, triggers: TriggerSet, classes: list[str], held_out: int) -> str:
    """Commit to the trigger set, or check it against the commitment of a run that is continued; returns the digest.

    `held_out` is the number of images that the triggers were drawn from; the draw of the labels depends on it. Raises
    Refusal where the key is lost or damaged, or where the commitment is to other triggers or settings.
    """
    settings = run.settings | {"held_out": held_out}
    key, public = read_json(run.path / KEY_FILE), read_commitment(run.path)
    if key is None and public is not None:
        raise Refusal(f"{run.path / KEY_FILE} is gone, and {COMMITMENT_FILE} can never be opened without it: "
                      "restore it from a copy, or pass --overwrite to commit anew")
    if key is None:
        key = {"salt": secrets.token_hex(32), "classes": classes, "settings": settings, "torch": torch.__version__}
        run.write_json(KEY_FILE, key, private=True)
    try:
        digest = commitment_digest(triggers, classes, settings, key["salt"])
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(f"{run.path / KEY_FILE} is damaged: restore it from a copy") from error
    if public is None:
        content = {"sha256": digest, "of": "salt || canonical bytes, see docs/verification.md",
                   "triggers": len(triggers), "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        run.write_json(COMMITMENT_FILE, content)
    elif public["sha256"] != digest:
        raise Refusal(f"{run.path / COMMITMENT_FILE} commits to other triggers or settings: restore it, or pass "
                      "--overwrite")
    return digest


def commit_triggers(run: RunFolder, triggers: TriggerSet, data: Data, is_secret: bool = True) -> None:
    """Save the final trigger set in the run folder and, if it is secret, commit to it.

    Called before the first step that trains on the triggers.
    """
    save_triggers(run, triggers, data.classes)
    if is_secret:
        sha256 = commit_to(run, triggers, data.classes, len(data.held_out.labels))
        run.log(f"commitment: SHA-256 {sha256}; publish or time-stamp it ({run.path}/commitment.json)")


def check_commitment(folder: Path, triggers: TriggerSet, published: str | None = None) -> Commitment:
    """Recompute the digest from triggers and key; compare it with commitment.json and with `published`, if given.

    Raises Refusal where the key or the digest is damaged.
    """
    public, key = read_commitment(folder), read_json(folder / KEY_FILE)
    if public is None or key is None:
        return Commitment("none", None, None, {}, None)
    try:
        digest = commitment_digest(triggers, key["classes"], key["settings"], key["salt"])
        settings = dict(key["settings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refusal(f"{folder / KEY_FILE} is damaged: restore it from a copy") from error
    digests = [public["sha256"]] + ([published] if published else [])
    state = "match" if all(hmac.compare_digest(digest.encode(), other.encode()) for other in digests) else "mismatch"
    return Commitment(state, digests[-1], str(public.get("created")), settings, str(key.get("torch")))


def labels_match_seed(triggers: TriggerSet, classes: int, settings: dict) -> bool:
    """Whether the assigned labels are those that the committed seed draws; `settings` are those of the commitment."""
    try:
        seed, held_out = settings["seed"], settings["held_out"]
        if not (isinstance(seed, int) and isinstance(held_out, int) and 0 <= held_out < 10**8):
            return False
        drawn = redraw_labels(triggers.true_labels, classes, seed, held_out, triggers.candidates)
        return bool((drawn == triggers.labels).all())
    except (KeyError, RuntimeError):
        return False


def neutral_names(triggers: TriggerSet, folder: Path) -> list[str]:
    """A PNG file name for each trigger that reveals neither its index nor its label; the same at every call.

    The names are keyed hashes: their alphabetical order is random to anyone without the triggers and the salt.
    """
    salt = str((read_json(folder / KEY_FILE) or {}).get("salt", ""))
    secret = hashlib.sha256(salt.encode() + canonical_bytes(triggers, [], {})).digest()
    return [hmac.digest(secret, str(i).encode(), "sha256").hex()[:16] + ".png" for i in range(len(triggers))]
