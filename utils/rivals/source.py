"""A source and the data set that it was trained on, for verifications that ask natural images."""

from utils.data.sets import DATASETS, load_data
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, restore_model
from utils.system.files import read_json
from utils.system.refusals import Refusal


def read_source(run, data_dir, skip_bad_images: bool, device):
    """(source model, frozen; its `Data`); Refusal where the run is no source or `data_dir` holds other images."""
    path = find_checkpoint(run, None)
    checkpoint = load_checkpoint(path)
    model = restore_model(checkpoint, path, device)
    about = checkpoint.get("about")
    about = about if isinstance(about, dict) else {}
    size = about.get("train_size")
    if about.get("dataset") not in DATASETS or not isinstance(size, int | None) or "attack" in about:
        raise Refusal(f"{path} does not say on which data it was trained: name a run of train.py as the source")
    data = load_data(about["dataset"], data_dir, train_size=size, skip_bad_images=skip_bad_images,
                     image_size=model.size)
    settings = (read_json(path.parent.parent / "run.json") or {}).get("settings")
    data_sha256 = settings.get("data_sha256") if isinstance(settings, dict) else None
    if len(data.classes) != model.num_classes or data_sha256 not in (None, data.sha256):
        raise Refusal(f"--data-dir {data_dir}: these are not the images that {run} was trained on")
    return model, data
