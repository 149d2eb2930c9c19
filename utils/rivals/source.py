"""What the verifications of rivals share: the flags of their commands, the source with its data, the suspects."""

from pathlib import Path

from utils.data.sets import DATASETS, load_data
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_other, restore_model, run_settings
from utils.runs.networks import add_named_architectures
from utils.system.machine import add_device_flag
from utils.system.refusals import Refusal


def add_verification(parts, name: str, call, text: str, run: str, suspects: bool = True):
    """The parser of the command `name`, with the flags that all have; `parts` are the subparsers of utils.verify.

    call  flags -> exit status; text, run: what the help says of the command and of RUN
    """
    p = parts.add_parser(name, help=text)
    p.set_defaults(call=call)
    p.add_argument("run", metavar="RUN", help=run)
    if suspects:
        p.add_argument("--suspect", nargs="+", required=True, metavar="RUN", help="run folders or checkpoints to judge")
        p.add_argument("--data-dir", default="data", help="folder of the source's data set (default: data)")
    add_named_architectures(p)
    add_device_flag(p)
    p.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return p


def read_source(run, data_dir, device):
    """(source model, frozen; its `Data`); Refusal where the run is no source or `data_dir` holds other images."""
    path = find_checkpoint(run)
    checkpoint = load_checkpoint(path)
    model = restore_model(checkpoint, path, device)
    about = checkpoint.get("about", {})
    size = run_settings(run).get("train_size", about.get("train_size"))
    if about.get("dataset") not in DATASETS or not isinstance(size, int | None) or "attack" in about:
        raise Refusal(f"{path} does not say on which data it was trained: name a run of train.py as the source")
    data = load_data(about["dataset"], data_dir, train_size=size, skip_bad_images=True,
                     image_size=model.size)
    if len(data.classes) != model.num_classes or run_settings(run).get("data_sha256") not in (None, data.sha256):
        raise Refusal(f"--data-dir {data_dir}: these are not the images that {run} was trained on, or not in its order")
    for note in data.notes:
        print(note)
    return model, data


def read_others(flag: str, runs, source, classes: list[str], device) -> list:
    """The models that `flag`, --benign or --suspect, names, which must be of the source's task and `classes`."""
    return [read_other(flag, run, (source.num_classes, source.size), device, classes) for run in runs]
