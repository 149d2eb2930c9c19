"""The report at the end of train.py: the table and `summary.json` of a finished source."""

from utils.data.sets import Data
from utils.ownership.suspects import TriggerTests, measure_checkpoint, rows_of_run
from utils.ownership.table import finish_run
from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.runs.folder import RunFolder


def report_source(run: RunFolder, flags, tests: TriggerTests, data: Data, device) -> None:
    """Print the table of a finished source and write its summary, with the model of clean BatchNorm statistics, if any.

    `flags` are those of train.py; `tests` are those of the final trigger set.
    """
    best = find_checkpoint(run.path, flags.select)
    summary = {
        "role": "benign" if flags.train_type == "none" else "source",
        "dataset": data.name, "model": flags.model_type, "width": flags.width, "objective": flags.train_type,
        "seed": flags.seed, "epochs": len(run.rows()), "select": flags.select,
        "chosen_epoch": load_checkpoint(best)["epoch"] + 1, "bn_stats": flags.bn_stats,
        "train_size": len(data.train.labels), **measure_checkpoint(best, tests, data.test, device), "clean": None,
    }
    if any(run.checkpoints.glob("checkpoint_*_clean.pt")):
        clean = find_checkpoint(run.path, flags.select, "clean")
        summary["clean"] = measure_checkpoint(clean, tests, data.test, device)
    rows = rows_of_run(run.path, tests, device, summary=summary)
    finish_run(run, summary, rows + tests.benign_rows())
