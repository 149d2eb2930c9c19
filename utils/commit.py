"""A commitment to the trigger set, made before training: SHA-256(salt || canonical bytes).

`commitment.json` holds the digest and is to be published or time-stamped; `key.json` (private) holds the salt and
what was hashed beside the triggers. Published, the digest shows that images, labels, class names and settings
were fixed by then, and the salt keeps it from confirming a guess. It does not show that labels were drawn at
random; `drawn_as_said` repeats the draw.
"""

import hashlib
import hmac
import io
import json
import secrets
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils import triggers
from utils.checkpoint import save
from utils.files import read_json, write
from utils.refuse import Refusal
from utils.run import Run
from utils.triggers import Trigger

PRIVATE, PUBLIC = "key.json", "commitment.json"


class Commitment(NamedTuple):
    """What a run folder shows of its commitment: `state` is match, mismatch or none."""

    state: str
    digest: str | None
    created: str | None
    settings: dict
    torch: str | None


def canonical(trigger: Trigger, classes: list[str], settings: dict) -> bytes:
    """One line of JSON with sorted keys and no spaces, then images (uint8), assigned labels, true labels and sources
    (int64, little-endian), each in row-major order."""
    shapes = {name: list(part.shape) for name, part in trigger._asdict().items()}
    header = {"version": 1, "classes": classes, "settings": settings, **shapes}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    numbers = [part.contiguous().numpy().astype("<i8").tobytes() for part in trigger[1:]]
    return b"".join([text.encode(), b"\n", trigger.images.contiguous().numpy().tobytes(), *numbers])


def digest(trigger: Trigger, classes, settings, salt: str) -> str:
    """The hexadecimal commitment; `salt` is hexadecimal too."""
    return hashlib.sha256(bytes.fromhex(salt) + canonical(trigger, classes, settings)).hexdigest()


def keep(run: Run, trigger: Trigger, classes: list[str]) -> None:
    """Write the run's private trigger set and its picture."""
    save(run.path / "triggers.pt", trigger._asdict())
    picture = io.BytesIO()
    triggers.draw(trigger, classes, picture)
    write(run.path / "trigger.png", picture.getvalue(), private=True)


def commit(run: Run, trigger: Trigger, classes: list[str], held_out: int) -> str:
    """Commit to the trigger set, or confirm the commitment a continued run began with: the digest.

    `held_out` is the number of images the triggers were drawn from; the draw of the labels depends on it.
    """
    settings = run.settings | {"held_out": held_out}
    key, known = read_json(run.path / PRIVATE), read_json(run.path / PUBLIC)
    if key is None and known is not None:
        raise Refusal(f"{run.path / PRIVATE} is gone, and {PUBLIC} can never be opened without it: restore it from a "
                      "copy, or pass --overwrite to commit anew")
    if key is None:
        key = {"salt": secrets.token_hex(32), "classes": classes, "settings": settings, "torch": torch.__version__}
        run.write_json(PRIVATE, key, private=True)
    try:
        made = digest(trigger, classes, settings, key["salt"])
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(f"{run.path / PRIVATE} is damaged: restore it from a copy") from error
    if known is None:
        content = {"sha256": made, "of": "salt || canonical bytes, see utils/commit.py", "triggers": len(trigger),
                   "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        run.write_json(PUBLIC, content)
    elif known.get("sha256") != made:
        raise Refusal(f"{run.path / PUBLIC} commits to other triggers or settings: restore it, or pass --overwrite")
    return made


def examine(folder: Path, trigger: Trigger, published: str | None = None) -> Commitment:
    """Recompute a run's commitment from its triggers and its key, and compare it with commitment.json and, where
    given, with the digest that was published."""
    public, key = read_json(folder / PUBLIC), read_json(folder / PRIVATE)
    if public is None or key is None:
        return Commitment("none", None, None, {}, None)
    try:
        made = digest(trigger, key["classes"], key["settings"], key["salt"])
        settings = dict(key["settings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refusal(f"{folder / PRIVATE} is damaged: restore it from a copy") from error
    said = [str(public.get("sha256"))] + ([published] if published else [])
    state = "match" if all(hmac.compare_digest(made.encode(), s.encode()) for s in said) else "mismatch"
    return Commitment(state, said[-1], str(public.get("created")), settings, str(key.get("torch")))


def drawn_as_said(trigger: Trigger, classes: int, settings: dict) -> bool:
    """Whether the assigned labels are those that the committed seed draws."""
    try:
        seed, held_out = settings["seed"], settings["held_out"]
        if not (isinstance(seed, int) and isinstance(held_out, int) and 0 <= held_out < 10**8):
            return False
        return bool((triggers.drawn_labels(trigger.true_labels, classes, seed, held_out) == trigger.labels).all())
    except (KeyError, RuntimeError):
        return False


def names(trigger: Trigger, folder: Path) -> list[str]:
    """A neutral PNG name for each trigger, the same at every call; their alphabetical order is random.

    Without the triggers and the salt they say nothing of index or label.
    """
    salt = str((read_json(folder / PRIVATE) or {}).get("salt", ""))
    secret = hashlib.sha256(salt.encode() + canonical(trigger, [], {})).digest()
    return [hmac.digest(secret, str(i).encode(), "sha256").hex()[:16] + ".png" for i in range(len(trigger))]
