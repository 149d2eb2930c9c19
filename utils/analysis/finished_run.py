"""What the analyses read of a finished run: its model, the owner's triggers and the test images."""

from pathlib import Path

from utils.data.sets import load_data
from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.system.files import read_json
from utils.system.refusals import Refusal
from utils.watermark.trigger_files import unpack_source


class FinishedRun:
    """A finished run of any of the three scripts.

    folder    the run's folder, an absolute path
    model     frozen, in eval mode, on `device`
    triggers  the owner's `TriggerSet`; of a surrogate, that of its source
    train, test  `Images` of the run's data set; `train` are those of the source
    select    which checkpoint, see below
    device    where to compute

    `select` names the checkpoint ("val" or "last"; None: the one that the run itself reports). Raises Refusal where
    there is no run, or where `data_dir` holds other images than the run was trained on.
    """

    def __init__(self, folder, data_dir, select, device):
        self.folder = source = Path(folder).resolve()
        settings = (read_json(self.folder / "run.json") or {}).get("settings")
        if settings is None:
            raise Refusal(f"there is no run in {folder}: name the folder of a finished run")
        select = select or settings.get("select")
        path = find_checkpoint(self.folder, select)
        self.model, self.triggers = unpack_source(load_checkpoint(path), path, device)
        if self.triggers is None:  # a surrogate: the triggers are its source's
            source = self.folder.parent
            path = find_checkpoint(source, select)
            self.triggers = unpack_source(load_checkpoint(path), path, device)[1]
        source_settings = (read_json(source / "run.json") or {}).get("settings") or {}
        data = load_data(settings["dataset"], data_dir, train_size=source_settings.get("train_size"),
                         skip_bad_images=True, image_size=self.model.size)
        if source_settings.get("data_sha256") not in (None, data.sha256):
            raise Refusal(f"--data-dir {data_dir}: these are not the images of {folder}; name its source's data")
        self.train, self.test = data.train, data.test
        self.select, self.device = select, device
