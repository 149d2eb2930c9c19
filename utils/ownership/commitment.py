"""TODO (utils.commit)"""

import hashlib
import hmac
import io
import json
import secrets
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils.data.images import Data
from utils.runs.checkpoints import save_checkpoint
from utils.runs.folder import RunFolder
from utils.system.files import read_json, write_atomically
from utils.system.refusals import Refusal
from utils.watermark.trigger_picture import draw_trigger_picture
from utils.watermark.triggers import TriggerSet, redraw_labels

KEY_FILE, COMMITMENT_FILE = "key.json", "commitment.json"


class Commitment(NamedTuple):
    """What a run folder shows of its commitment: `state` is match, mismatch or none."""

    state: str
    digest: str | None
    created: str | None
    settings: dict
    torch: str | None


def canonical_bytes(trigger: TriggerSet, classes: list[str], settings: dict) -> bytes:
    """One line of JSON with sorted keys and no spaces, then images (uint8), assigned labels, true labels and sources
    (int64, little-endian), each in row-major order."""
    shapes = {name: list(part.shape) for name, part in trigger._asdict().items()}
    header = {"version": 1, "classes": classes, "settings": settings, **shapes}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    numbers = [part.contiguous().numpy().astype("<i8").tobytes() for part in trigger[1:]]
    return b"".join([text.encode(), b"\n", trigger.images.contiguous().numpy().tobytes(), *numbers])


def commitment_digest(trigger: TriggerSet, classes, settings, salt: str) -> str:
    """The hexadecimal commitment; `salt` is hexadecimal too."""
    return hashlib.sha256(bytes.fromhex(salt) + canonical_bytes(trigger, classes, settings)).hexdigest()


def save_triggers(run: RunFolder, trigger: TriggerSet, classes: list[str]) -> None:
    """Write the run's private trigger set and its picture."""
    save_checkpoint(run.path / "triggers.pt", trigger._asdict())
    picture = io.BytesIO()
    draw_trigger_picture(trigger, classes, picture)
    write_atomically(run.path / "trigger.png", picture.getvalue(), private=True)


def commit_to(run: RunFolder, trigger: TriggerSet, classes: list[str], held_out: int) -> str:
    """Commit to the trigger set, or confirm the commitment a continued run began with: the digest.

    `held_out` is the number of images the triggers were drawn from; the draw of the labels depends on it.
    """
    settings = run.settings | {"held_out": held_out}
    key, known = read_json(run.path / KEY_FILE), read_json(run.path / COMMITMENT_FILE)
    if key is None and known is not None:
        raise Refusal(f"{run.path / KEY_FILE} is gone, and {COMMITMENT_FILE} can never be opened without it: "
                      "restore it from a copy, or pass --overwrite to commit anew")
    if key is None:
        key = {"salt": secrets.token_hex(32), "classes": classes, "settings": settings, "torch": torch.__version__}
        run.write_json(KEY_FILE, key, private=True)
    try:
        made = commitment_digest(trigger, classes, settings, key["salt"])
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(f"{run.path / KEY_FILE} is damaged: restore it from a copy") from error
    if known is None:
        content = {"sha256": made, "of": "salt || canonical bytes, see utils/ownership/commitment.py",
                   "triggers": len(trigger), "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        run.write_json(COMMITMENT_FILE, content)
    elif known.get("sha256") != made:
        raise Refusal(f"{run.path / COMMITMENT_FILE} commits to other triggers or settings: restore it, or pass "
                      "--overwrite")
    return made


def commit_triggers(run: RunFolder, trigger: TriggerSet, data: Data, is_secret: bool = True) -> None:
    """Keep the final trigger set in the run folder and, where it is a secret, commit to it before it is trained on."""
    save_triggers(run, trigger, data.classes)
    if is_secret:
        sha256 = commit_to(run, trigger, data.classes, len(data.held_out.labels))
        run.log(f"commitment: SHA-256 {sha256}; publish or time-stamp it ({run.path}/commitment.json)")


def check_commitment(folder: Path, trigger: TriggerSet, published: str | None = None) -> Commitment:
    """Recompute a run's commitment from its triggers and its key, and compare it with commitment.json and, where
    given, with the digest that was published."""
    public, key = read_json(folder / COMMITMENT_FILE), read_json(folder / KEY_FILE)
    if public is None or key is None:
        return Commitment("none", None, None, {}, None)
    try:
        made = commitment_digest(trigger, key["classes"], key["settings"], key["salt"])
        settings = dict(key["settings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refusal(f"{folder / KEY_FILE} is damaged: restore it from a copy") from error
    said = [str(public.get("sha256"))] + ([published] if published else [])
    state = "match" if all(hmac.compare_digest(made.encode(), s.encode()) for s in said) else "mismatch"
    return Commitment(state, said[-1], str(public.get("created")), settings, str(key.get("torch")))


def labels_match_seed(trigger: TriggerSet, classes: int, settings: dict) -> bool:
    """Whether the assigned labels are those that the committed seed draws."""
    try:
        seed, held_out = settings["seed"], settings["held_out"]
        if not (isinstance(seed, int) and isinstance(held_out, int) and 0 <= held_out < 10**8):
            return False
        return bool((redraw_labels(trigger.true_labels, classes, seed, held_out) == trigger.labels).all())
    except (KeyError, RuntimeError):
        return False


def neutral_names(trigger: TriggerSet, folder: Path) -> list[str]:
    """A neutral PNG name for each trigger, the same at every call; their alphabetical order is random.

    Without the triggers and the salt they say nothing of index or label.
    """
    salt = str((read_json(folder / KEY_FILE) or {}).get("salt", ""))
    secret = hashlib.sha256(salt.encode() + canonical_bytes(trigger, [], {})).digest()
    return [hmac.digest(secret, str(i).encode(), "sha256").hex()[:16] + ".png" for i in range(len(trigger))]
