"""The answers of a run's models to the triggers, and what T1 says of them."""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.answers.answers import answers_of_model
from utils.ownership.claim_text import claim_sentence
from utils.ownership.commitment import Commitment, check_commitment, read_commitment
from utils.ownership.owner import read_owner
from utils.ownership.verdict import OwnershipCase
from utils.run_page.names import Names
from utils.run_page.records import Family, Record
from utils.runs.checkpoints import find_checkpoint, read_model
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet

ALPHA = 1e-3
OUTCOMES = ("kept", "lost", "other")


class Judged(NamedTuple):
    """A model's answers.

    labels    int64 (m,)
    outcomes  [one of `OUTCOMES`], in the order of the triggers
    sentence  the decision of `utils.verify claim --trust-owner` without benign models
    curve     of `OwnershipCase.curve`, None where T1 does not apply
    """

    name: str
    record: Record
    clean: bool
    labels: np.ndarray
    outcomes: list
    sentence: str
    curve: dict | None


class Judgement(NamedTuple):
    """All models of a family on its triggers.

    order   positions of the triggers in the keyed order, which tells nothing of them
    public  commitment.json, {} where there is none
    why_no_curve  why T1 does not apply, None where it does
    not_asked  a sentence for each model that could not be asked; as `Family.left_out` for the terminal alone
    """

    triggers: TriggerSet
    classes: list
    order: list
    commitment: Commitment
    public: dict
    why_no_curve: str | None
    models: list[Judged]
    not_asked: list[str]


def outcomes(labels, triggers: TriggerSet) -> list[str]:
    """What became of each trigger, from answers (m,): kept, the assigned label; lost, a true one; other."""
    kept = labels == triggers.labels.numpy()
    lost = (labels[:, None] == triggers.true_labels.numpy()).any(1)
    return ["kept" if k else "lost" if t else "other" for k, t in zip(kept, lost)]


def judge_family(family: Family, names: Names) -> Judgement | None:
    """Ask every model for its answers, on the CPU; None where the source has no checkpoint yet.

    Raises Refusal where the source is damaged; a copy that is damaged is not asked.
    """
    source = family.source
    if not (source.folder / "checkpoints" / "checkpoint_nat_best.pt").is_file():
        return None
    folder, triggers, classes, trigger_names, _ = read_owner(source.folder)
    commitment = check_commitment(folder, triggers)
    case = OwnershipCase(triggers, len(classes), commitment, [], ALPHA)
    judged, not_asked = [], []
    models = [(record, clean) for record in (source, *family.attacks) for clean in (False, True)
              if not record.edits and (not clean or len(record.figures) > 1)]
    for record, clean in tqdm(models, disable=None, unit="model", leave=False):
        try:
            judged.append(_judge(case, record, clean, names))
        except Refusal as refusal:
            if record is source and not clean:
                raise
            not_asked.append(f"{record.folder} is not asked for answers: {refusal}")
    order = np.argsort(trigger_names).tolist()
    public = read_commitment(folder) or {}
    return Judgement(triggers, classes, order, commitment, public, case.t1_fails, judged, not_asked)


def _judge(case: OwnershipCase, record: Record, clean: bool, names: Names) -> Judged:
    path = find_checkpoint(record.folder, record.select, "clean" if clean else "paper")
    answers = answers_of_model(read_model(path), path, case.triggers.images, case.classes)
    sentence = claim_sentence(case.report(answers))
    return Judged(names.model(record, clean), record, clean, answers.labels, outcomes(answers.labels, case.triggers),
                  sentence, case.curve(answers))
