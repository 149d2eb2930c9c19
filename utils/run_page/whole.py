"""The page of a run, put together."""

import models
from utils.pages.markup import element
from utils.pages.page import page, paragraph
from utils.run_page.judging import judge_family
from utils.run_page.names import Names
from utils.run_page.records import Family
from utils.run_page.results import results_section
from utils.run_page.sections import (
    answers_section,
    commitment_section,
    queries_section,
    settings_section,
    training_section,
)

IDEA = ("The owner of a classifier trains it to give secret images, the triggers, {labels}; a model that was copied "
        "from its answers may then give them too, and one that was not does so only by chance.")
OWN = "labels that only the owner knows"
LABELS = {
    "margin": f"wrong {OWN}, and keeps each trigger far from the decision boundary",
    "base": f"wrong {OWN}",
    "ewe": "the label of one class, and entangles their features with those of that class",
    "rs": "one wrong label, under noise on its weights too",
}


def run_page(family: Family, show_triggers: bool) -> tuple[str, list[str]]:
    """(the page, sentences for the terminal on what is missing in it).

    With `show_triggers` triggers, seeds and commands are in the page. Raises Refusal where the source is damaged.
    """
    names = Names.of([family.source, *family.attacks], secret=not show_triggers)
    judgement = judge_family(family, names)
    sections = [results_section(family, judgement, names), training_section(family, names),
                answers_section(judgement, show_triggers), queries_section(judgement), commitment_section(judgement),
                settings_section(family, names)]
    title = f"Watermark report: {names.folder(family.source)}"
    introduction = [paragraph(_idea(family.source)), element("p", _what_it_is(family))]
    text = page(title, introduction, [section for section in sections if section is not None])
    return text, family.left_out + (judgement.not_asked if judgement else [])


def _idea(source) -> str:
    kind = source.text("train_type")
    if kind == "none":
        return ("This is a benign model: it has not been trained on the triggers, secret images with labels that only "
                "their owner knows, and gives those labels only by chance.")
    return IDEA.format(labels=LABELS.get(kind, LABELS["base"]))


def _what_it_is(family: Family) -> str:
    source = family.source
    kind = source.text("train_type")
    watermark = "no watermark" if kind == "none" else f"watermark {kind}"
    network = source.text("model_type") or "?"
    network += f" of width {source.text('width') or '?'}" if network in models.NAMES else ""
    text = (f"This run: data set {source.text('dataset') or '?'}, {network}, {watermark}, "
            f"{source.text('num_query') or '?'} triggers")
    mixup = source.text("num_mixup")
    text += f", each the mean of {mixup} images" if mixup not in ("", "1") else ""
    done = sum(record.finished for record in family.attacks)
    attacks = f"{done} of {len(family.attacks)} attacks finished" if family.attacks else "no attacks yet"
    return f"{text}. {'Finished' if source.finished else 'Not finished'}; {attacks}."
