"""`python -m utils.verify export RUN --to DIR`: the triggers as PNG files for the suspect, the labels for the owner.

Also reads the owner's side of a run, for this command and for `claim`.
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.decoding import decode_image
from utils.ownership.commitment import COMMITMENT_FILE, neutral_names
from utils.runs.checkpoints import class_count, find_checkpoint, load_checkpoint
from utils.system.files import read_json, write_atomically, write_json
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded
from utils.watermark.trigger_files import read_triggers, unpack_source


def read_owner(run):
    """(folder, trigger set, class names) of the owner's run, a folder or a checkpoint file.

    A checkpoint file alone has no commitment: its `folder` does not exist. Raises Refusal where there is no trigger
    set or the class names do not fit.
    """
    path = find_checkpoint(run)
    checkpoint = load_checkpoint(path)
    model, triggers = unpack_source(checkpoint, path)
    folder = Path(run) if Path(run).is_dir() else path.parent / "no commitment beside a bare checkpoint"
    about, count = checkpoint.get("about"), class_count(model)
    classes = about.get("classes") if isinstance(about, dict) else None
    classes = [str(i) for i in range(count)] if classes is None else classes
    if not (isinstance(classes, list) and len(set(map(str, classes))) == count == len(classes)):
        raise Refusal(f"{path}: its class names do not fit its {count} classes")
    if (folder / "triggers.pt").exists():
        triggers = read_triggers(folder / "triggers.pt", count)
    if triggers is None:
        raise Refusal(f"{path} holds no trigger set: name a run of train.py")
    return folder, triggers, [str(name) for name in classes]


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
    e.add_argument("--to", required=True, metavar="DIR", help="a new folder; the suspect sees DIR/images only")


def export_triggers(command: ExportCommand) -> int:
    """Write DIR/images/<neutral name>.png and DIR/key.json, or nothing; returns exit status 0."""
    folder, triggers, classes = read_owner(command.run)
    to = Path(command.to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise Refusal(f"--to {to} is there and not empty: name a new folder")
    names, existed = neutral_names(triggers, folder), to.exists()
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        _write_export(folder, triggers, classes, names, to)
    except BaseException:  # no part of the secret stays behind, and the same command can be repeated
        shutil.rmtree(to / "images", ignore_errors=True)
        if not existed:
            shutil.rmtree(to, ignore_errors=True)
        raise
    print(f"{len(names)} triggers in {to / 'images'}, to be shown to the suspect in any order")
    print(f"their labels in {to / 'key.json'}, to be shown to nobody")
    return 0


def _write_export(folder, triggers, classes, names, to: Path) -> None:
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
    digest = (read_json(folder / COMMITMENT_FILE) or {}).get("sha256")
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
