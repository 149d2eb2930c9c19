"""All tables and figures that a folder holds, as one page: report.html, without script, that opens from disk.

It is made of the files of `figures.write`, and so shows what earlier calls have written too. The
picture of Figure 5 is left out, because it shows a source's triggers.
"""

from pathlib import Path

from figures.cells import FIGURES, TABLES
from figures.write import show_cell, show_paper_cell
from utils.pages import png_image, render, write_page
from utils.published import SETTINGS
from utils.system.files import read_bounded, read_json
from utils.system.refusals import Refusal

PAGE, TEMPLATE = "report.html", Path(__file__).with_name("results_page.html.j2")
SECRET = "figure5"
SUBJECTS = {
    "table1": "ERM watermark and soft extraction", "table2": "watermarks and fingerprints under extraction",
    "table3": "triggers that benign models hit", "table4": "copies from other images, or of another architecture",
    "table5": "margins of the triggers", "table6": "triggers that are means of k images",
    "table7": "free energy of test images and triggers", "table8": "extraction with the margin objective",
    "table9": "fine-tuning", "figure1": "accuracy and triggers of the copies", "figure2": "two classes and one trigger",
    "figure3": "how the labels of the triggers are chosen", "figure4": "distillation with true labels",
    "figure5": "triggers of two images", "figure6": "ascent steps, number of triggers, weight of the watermark",
    "figure7": "t-SNE of the features", "figure8": "pruning a copy",
}


def write_results_page(out: Path, profile: str) -> None:
    """Write the page of the tables and figures in the folder `out`, made with a profile; nothing where there are none.

    A damaged file becomes a note: it may be of another target than the one that was just made.
    """
    sections = [section for name in (*TABLES, *FIGURES) if (section := _section(name, out)) is not None]
    if sections:
        write_page(out / PAGE, render(TEMPLATE, title=f"The paper's tables and figures, profile {profile}",
                                      profile=profile, paper=SETTINGS, sections=sections))


def _section(name: str, out: Path) -> dict | None:
    """What the template shows of a target; None where it has no files."""
    title = f"{f'Table {name[5:]}' if name in TABLES else f'Figure {name[6:]}'}: {SUBJECTS[name]}"
    empty = {"link": (name, title), "damaged": False, "note": "", "picture": None, "head": [], "rows": [], "text": "",
             "commands": {}}
    try:
        content = read_json(out / f"{name}.json")
        return None if content is None else empty | _parts(name, title, content, out)
    except (Refusal, KeyError, TypeError, ValueError, AttributeError):
        return empty | {"damaged": True}


def _parts(name: str, title: str, content: dict, out: Path) -> dict:
    """What the section shows; a damaged file raises nearly anything."""
    parts, cells = {}, content.get("cells")
    if name == SECRET:
        parts["note"] = ("This picture shows a source's triggers, which are secret; it is in figure5.png alone."
                         if content.get("made") else "not run")
    elif (out / f"{name}.png").is_file() and name in FIGURES:
        beside = "; its numbers are in the table below" if isinstance(cells, list) else ""
        parts["picture"] = png_image(read_bounded(out / f"{name}.png"), f"{title}, drawn from our runs{beside}")
    if isinstance(cells, list):
        head, rows = _cells_table(cells)
        return parts | {"head": head, "rows": rows, "commands": _of_cells(cells)}
    if isinstance(content.get("claim"), str):
        parts["text"] = f"{content['claim']}: {content.get('claim_shows')}."
    commands = content.get("commands")
    commands = commands if isinstance(commands, dict) else {"all": content.get("command")}
    return parts | {"commands": {str(key): str(command) for key, command in commands.items() if command}}


def _cells_table(cells: list) -> tuple[list, list]:
    """(heads, rows) of a table's JSON: a row of it is a row here, and each column has the paper's value beside ours."""
    rows = list(dict.fromkeys(cell["row"] for cell in cells))
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    by_key = {(cell["row"], cell["column"]): cell for cell in cells}
    stated = [column for column in columns if any(by_key[key]["paper"] for key in by_key if key[1] == column)]
    heads, body = [""], [[row] for row in rows]
    for column in columns:
        heads += [f"{column}, paper"] * (column in stated) + [f"{column}, ours" if stated else column]
        for line in body:
            cell = by_key.get((line[0], column))
            if column in stated:
                line.append("" if cell is None else show_paper_cell(cell["paper"]))
            line.append("" if cell is None else show_cell(cell["values"], column) if cell["values"] else "not run")
    return heads, body


def _of_cells(cells: list) -> dict:
    """{row: the command of its first seed}, several where the row's columns come from several runs."""
    found = {}
    for cell in cells:
        if cell["values"]:
            found.setdefault(cell["row"], []).append(str(cell["command"]))
    return {str(row): "\n".join(dict.fromkeys(commands)) for row, commands in found.items()}
