"""`python -m utils.verify export RUN --to DIR`: the triggers as PNG files for the suspect, the labels for the owner."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.files import decode_image
from utils.ownership.commitment import read_commitment
from utils.ownership.owner import Owner, read_owner
from utils.runs.networks import add_named_architectures
from utils.system.files import read_bounded, write_atomically, write_json
from utils.system.refusals import Refusal


@dataclass(frozen=True)
class ExportCommand:
    """The flags of `utils.verify export`."""

    run: str
    to: str


def add_export(parts) -> None:
    """Declare the command `export` and its flags; `parts` are the subparsers of utils.verify."""
    e = parts.add_parser("export", help="write the triggers as neutral PNG files, and a private key file")
    e.set_defaults(call=export_triggers, command_type=ExportCommand)
    e.add_argument("run", metavar="RUN", help="folder of train.py, or a checkpoint that holds triggers")
    add_named_architectures(e)
    e.add_argument("--to", required=True, metavar="DIR", help="a new folder; the suspect sees DIR/images only")


def export_triggers(command: ExportCommand) -> int:
    """Write DIR/images/<neutral name>.png and DIR/key.json, or nothing; returns exit status 0."""
    owner = read_owner(command.run)
    to = Path(command.to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise Refusal(f"--to {to} is there and not empty: name a new folder")
    existed = to.exists()
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        _write_export(owner, to)
    except BaseException:  # no part of the secret stays behind, and the same command can be repeated
        shutil.rmtree(to / "images", ignore_errors=True)
        if not existed:
            shutil.rmtree(to, ignore_errors=True)
        raise
    print(f"{len(owner.names)} triggers in {to / 'images'}, to be shown to the suspect in any order")
    print(f"their labels in {to / 'key.json'}, to be shown to nobody")
    return 0


def _write_export(owner: Owner, to: Path) -> None:
    _, triggers, classes, names, _ = owner
    (to / "images").mkdir()
    write_pictures(triggers, names, to / "images")
    images = {
        names[i]: {"label": int(triggers.labels[i]), "label_name": classes[int(triggers.labels[i])],
                   "true_labels": triggers.true_labels[i].tolist(), "index": i}
        for i in np.argsort(names).tolist()
    }
    if triggers.candidates.shape[1]:
        for image in images.values():
            image["candidates"] = triggers.candidates[image["index"]].tolist()
    digest = (read_commitment(owner.folder) or {}).get("sha256")
    write_json(to / "key.json", {"commitment": digest, "classes": classes, "images": images}, private=True)


def write_pictures(triggers, names, folder: Path) -> None:
    """Write the triggers as PNG files, in alphabetical order so that the files' times reveal nothing.

    Each is read back; Refusal where it is not bit-equal.
    """
    from PIL import Image

    for i in np.argsort(names).tolist():
        buffer = io.BytesIO()
        Image.fromarray(triggers.images[i].permute(1, 2, 0).numpy()).save(buffer, format="png")
        write_atomically(folder / names[i], buffer.getvalue())
        again = decode_image(read_bounded(folder / names[i]), triggers.images.shape[-1])
        if (again != triggers.images[i].numpy()).any():
            raise Refusal(f"{folder / names[i]} does not read back as it was written: check the disk")
