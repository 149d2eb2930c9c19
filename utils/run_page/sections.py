"""The other sections of a run's page: training, answers, p-values, commitment, settings."""

import math

from utils.ownership.verdict import ORDERS
from utils.pages.curves import Chart, Line, draw_chart, legend
from utils.pages.markup import element, shorten
from utils.pages.page import Section, note, paragraph
from utils.pages.pictures import KINDS, embedded, png_of, square_legend, squares
from utils.pages.tables import listing, table
from utils.run_page.judging import ALPHA, OUTCOMES, Judged, Judgement
from utils.run_page.names import Names
from utils.run_page.records import Family

CURVES = (("loss", "Training loss", "loss", 1.0), ("val_accuracy", "Validation accuracy", "accuracy, %", 100.0),
          ("trigger_accuracy", "Trigger accuracy", "triggers answered as assigned, %", 100.0))
ANSWERS = 10_000  # squares of a page, at most


def training_section(family: Family, names: Names) -> Section:
    """Losses and accuracies by epoch of the source and of each attack that trains."""
    runs = []  # (name, record, prefix of the metrics' names)
    for record in (family.source, *family.attacks):
        for clean in (False, True):
            prefix = "clean_" if clean else ""
            if record.series(f"{prefix}val_accuracy"):
                runs.append((names.model(record, clean), record, prefix))
    if not runs:
        return Section("training", "Training", [note("No epoch has been recorded yet.")])
    charts = []
    for key, title, unit, factor in CURVES:
        lines = [Line(name, record.series(prefix + key, factor), look)
                 for look, (name, record, prefix) in enumerate(runs)]
        percent = (0, 100) if factor == 100 else None
        charts.append(draw_chart(Chart(title, "epoch", unit, lines, percent)))
    keys = [Line(name, [], look) for look, (name, _, _) in enumerate(runs)]
    text = ("The loss of a source is that of its own objective, that of a copy the distance to the source's answers, "
            "so their heights cannot be compared. Clean statistics are BatchNorm's without the triggers; they share "
            "the weights and the loss.")
    return Section("training", "Training", [legend(keys), element("div", charts, class_="charts"), paragraph(text)])


def answers_section(judgement: Judgement | None, show_triggers: bool) -> Section:
    """What each model answers to the triggers: counts and squares; with `show_triggers` the triggers themselves."""
    title = "Answers to the triggers"
    if judgement is None:
        return Section("answers", title, [note("The source has no checkpoint yet, so there is no model to ask.")])
    m = len(judgement.triggers)
    rows = [[model.name, *(str(model.outcomes.count(kind)) for kind in OUTCOMES)] for model in judgement.models]
    caption = f"Answers to the {m} triggers; each model was asked for this page."
    content = [table(caption, ["model", *(KINDS[kind].name for kind in OUTCOMES)], rows, range(1, 4))]
    if judgement.triggers.true_labels.shape[1] == 0:
        content.append(note("The trigger set does not say what the true labels are; a lost trigger counts as another "
                            "wrong label."))
    if m * len(judgement.models) <= ANSWERS:
        content += [square_legend(), element("div", [_grid(model, judgement.order) for model in judgement.models],
                                             class_="answers")]
        content.append(paragraph("A square is a trigger; it has the same place for every model. The places are in a "
                                 "secret order, so they tell neither images nor labels."))
    if show_triggers:
        content += _cards(judgement)
    else:
        content.append(paragraph("The triggers are secret and are not in this file. With ",
                                 element("code", "--show-triggers"), " they are."))
    return Section("answers", title, content)


def _grid(model: Judged, order: list):
    kinds = [model.outcomes[i] for i in order]
    label = ", ".join(f"{kinds.count(kind)} {kind}" for kind in OUTCOMES)
    return element("figure", element("figcaption", model.name, ": ", label),
                   squares(kinds, f"Answers of {model.name}: {label}"))


def _cards(judgement: Judgement) -> list:
    """The triggers with their labels and all answers, in the order of the squares."""
    triggers, classes, cards = judgement.triggers, judgement.classes, []
    short = lambda i: shorten(classes[int(i)], 30)
    for place, i in enumerate(judgement.order):
        true, assigned = " + ".join(map(short, triggers.true_labels[i])) or "?", short(triggers.labels[i])
        picture = embedded(png_of(triggers.images[i].permute(1, 2, 0).numpy()), f"trigger {place + 1}, a {true}")
        answers = [element("p", f"{model.name}: ", element("strong", short(model.labels[i])), f", {model.outcomes[i]}")
                   for model in judgement.models]
        cards.append(element("li", picture, element("p", f"true {true}, assigned ", element("strong", assigned)),
                             answers))
    return [note("This page shows the triggers. Keep it as private as the run's folder."),
            element("h3", "The triggers"), element("ul", cards, class_="cards")]


def queries_section(judgement: Judgement | None) -> Section | None:
    """log10 p against the number of queries, for each model; None without models."""
    if judgement is None:
        return None
    charts, claims = [], []
    for look, model in enumerate(judgement.models):
        claims.append((model.name, model.sentence))
        if model.curve is None:
            continue
        curve, n = model.curve, range(1, len(model.curve["median"]) + 1)
        line = Line("median", list(zip(n, curve["median"])), look)
        band = list(zip(n, curve["low"], curve["high"]))
        charts.append(draw_chart(Chart(model.name, "queries", f"log10 p of {curve['test']}", [line], band=band,
                                       limit=(math.log10(ALPHA), f"alpha = {ALPHA:g}"))))
    text = (f"The decisions of utils.verify claim --trust-owner at alpha = {ALPHA:g}, without benign models: who does "
            "not trust the owner asks for more. A curve is the median "
            f"of {ORDERS} random orders of the queries, the band holds 90 % of them; below the dashed line the answers "
            "so far are enough.")
    content = [paragraph(text), listing(claims)]
    content.append(element("div", charts, class_="charts") if charts else
                   note(f"There is no p-value to draw: {judgement.why_no_curve}."))
    return Section("queries", "p-value against the number of queries", content)


def commitment_section(judgement: Judgement | None) -> Section:
    """The commitment: what was published, when by the owner's own word, and whether the triggers are those."""
    title, state = "Commitment", judgement.commitment.state if judgement else "none"
    if state == "none":
        return Section("commitment", title, [note(
            "There is no commitment that can be checked (commitment.json and key.json). Labels read off any model "
            "always hit, so without one the answers show nothing.")])
    public, said = judgement.public, {
        "match": "match: the triggers, labels and settings in this folder are those that were committed to",
        "mismatch": "mismatch: the triggers, labels or settings are not those that were committed to"}
    pairs = [("SHA-256", element("code", shorten(public.get("sha256")))), ("state", element("strong", said[state])),
             ("date", f"{shorten(public.get('created'))}, by the owner's own word"),
             ("triggers", len(judgement.triggers))]
    content = [listing(pairs), paragraph("A claim is worth as much as the public record of this digest: it must have "
                                         "been published before the suspect existed.")]
    return Section("commitment", title, content)


def settings_section(family: Family, names: Names) -> Section:
    """The settings of all runs side by side, and the machine and versions that made them."""
    records = [family.source, *family.attacks]
    columns = ["setting", "source", *(names.folder(record) for record in family.attacks)]

    def rows(part):
        parts = [part(record) for record in records]
        keys = sorted({key for one in parts for key in one})[:300]
        return [[shorten(key), *(_value(names.setting(key, one[key])) if key in one else "" for one in parts)]
                for key in keys]

    content = [table("Settings (run.json)", columns, rows(lambda record: record.settings), tall=True),
               table("Machine and versions (run.json)", columns, rows(lambda record: record.process))]
    if names.seeds:
        content.append(paragraph("Seed, command and tags that hold the seed are withheld: with the seed and the data "
                                 "anyone can draw the triggers again. ", element("code", "--show-triggers"),
                                 " shows them."))
    return Section("settings", "Settings and versions", content)


def _value(text: str):
    """A setting's value; a long one may break anywhere."""
    return element("code", shorten(text, 2000)) if len(text) > 40 else text
