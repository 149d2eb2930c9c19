"""The report at the end of train.py: the table and `summary.json` of a finished source."""

from utils.data.sets import Images
from utils.ownership.suspects import TriggerTests, measure_checkpoint, rows_of_run
from utils.ownership.table import finish_run
from utils.runs.checkpoints import find_checkpoint, load_checkpoint
from utils.runs.folder import RunFolder
from utils.watermark.source_checkpoint import SourceFacts
from utils.watermark.trigger_files import read_triggers


def report_source(run: RunFolder, facts: SourceFacts, tests: TriggerTests, test: Images, device) -> None:
    """Print the table of a finished source and write its summary, including the model with clean BatchNorm statistics.

    `tests` are those of the trigger set that training began with; triggers that were made later are read from the run.
    """
    if facts.makes_triggers_later:
        tests = tests.with_triggers(read_triggers(run.path / "triggers.pt", len(facts.classes)))
    best = find_checkpoint(run.path, facts.select)
    summary = {
        "role": "benign" if facts.train_type == "none" else "source",
        "dataset": facts.dataset, "model": facts.model_type, "width": facts.width, "objective": facts.train_type,
        "seed": facts.seed, "epochs": len(run.rows()), "select": facts.select,
        "chosen_epoch": load_checkpoint(best)["epoch"] + 1, "bn_stats": facts.bn_stats, "train_size": facts.train_size,
        **measure_checkpoint(best, tests, test, device), "clean": None,
    }
    if facts.keeps_clean:
        clean = find_checkpoint(run.path, facts.select, "clean")
        summary["clean"] = measure_checkpoint(clean, tests, test, device)
    rows = rows_of_run(run.path, tests, device, summary=summary)
    finish_run(run, summary, rows + tests.benign_rows())
