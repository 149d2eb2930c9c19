"""README, CONTRIBUTING and docs/: links, anchors, paths and commands name what is there. No network."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import distill
import extraction
import train

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 150

FENCE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
LINK = re.compile(r'\]\(([^)\s]+)(?: "[^"\n]*")?\)')
LINKED = re.compile(r"\[([^\]\n]*)\]\([^)\n]*\)")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:")  # https:, mailto:
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
PATH = re.compile(r"(?<![\w./<>{}*$-])((?:utils|figures|tests|models|docs)/[\w./-]*)([<{*$]?)")
VARIABLE = re.compile(r'^(\w+)="([^"\n]*)"', re.MULTILINE)
SCRIPT = re.compile(r"^(?:\$ )?python (train|distill|extraction)\.py(.*)$", re.MULTILINE)
COMMAND = re.compile(r"\bpython3?\s+-m\s+((?:utils|figures)(?:\.\w+)*)")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown text."""
    found = []
    for heading in HEADING.findall(FENCE.sub("", text)):
        anchor = re.sub(r"[^\w\- ]", "", LINKED.sub(r"\1", heading).lower()).replace(" ", "-")
        repeats = sum(re.sub(r"-\d+$", "", known) == anchor for known in found)
        found.append(f"{anchor}-{repeats}" if repeats else anchor)
    return set(found)


def broken_links(file: Path, root: Path) -> list[str]:
    """Links and images of a file to nothing below `root`, and anchors that are no heading of the file they point to."""
    prose = INLINE_CODE.sub("", FENCE.sub("", file.read_text()))
    problems = []
    for target in LINK.findall(prose):
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        if not there.is_relative_to(root) or not there.exists():
            problems.append(f"{file.name}: link to {target}: no such file in the repository")
        elif anchor and (there.suffix != ".md" or anchor not in anchors(there.read_text())):
            problems.append(f"{file.name}: link to {target}: no such heading")
    return problems


def code_of(text: str) -> str:
    """What stands in code blocks and in backticks, one piece a line."""
    return "\n".join([*FENCE.findall(text), *INLINE_CODE.findall(FENCE.sub("", text))])


def missing_paths(file: Path, root: Path) -> list[str]:
    """Paths in code that start with a folder of this project and do not exist; NAME, <...>, {...} and * are any."""
    problems = []
    for path, placeholder in PATH.findall(code_of(file.read_text())):
        if not placeholder and "NAME" not in path and not (root / path.rstrip(".")).exists():
            problems.append(f"{file.name}: {path} does not exist")
    return problems


def missing_commands(file: Path, root: Path) -> list[str]:
    """Modules after `python -m` that do not exist, or that do nothing when they are run."""
    problems = []
    for module in COMMAND.findall(code_of(file.read_text())):
        source = root / (module.replace(".", "/") + ".py")
        if not source.exists():
            problems.append(f"{file.name}: python -m {module}: no such module")
        elif '__name__ == "__main__"' not in source.read_text():
            problems.append(f"{file.name}: python -m {module}: the module runs nothing")
    return problems


def unknown_flags(text: str, known: dict[str, set[str]]) -> list[str]:
    """Flags of the three scripts' commands in code blocks that the scripts' --help does not name; $F is replaced."""
    problems = []
    for block in FENCE.findall(text):
        variables = dict(VARIABLE.findall(block))
        for script, line in SCRIPT.findall(block):
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            flags = {word for word in shlex.split(line, comments=True) if re.match(r"--?[a-z]", word)}
            problems += [f"{script}.py has no {flag}" for flag in sorted(flags - known[script])]
    return problems


def too_long(file: Path, limit: int) -> list[str]:
    lines = len(file.read_text().splitlines())
    return [f"{file.name} has {lines} lines, more than {limit}"] if lines > limit else []


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
@pytest.mark.parametrize("check", [broken_links, missing_paths, missing_commands], ids=lambda check: check.__name__)
def test_texts_name_what_is_there(check, file):
    assert check(file, ROOT) == []


def test_the_scripts_have_the_flags_of_the_readme(monkeypatch, capsys):
    known = {}
    for script in (train, distill, extraction):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--help"])
        with pytest.raises(SystemExit):
            script.main()
        known[script.__name__] = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    readme = (ROOT / "README.md").read_text()
    assert len(SCRIPT.findall(readme)) >= 6  # the official three, and the laptop's
    assert unknown_flags(readme, known) == []


def test_readme_is_short():
    assert too_long(ROOT / "README.md", README_LINES) == []


# ---- each check can fail ---------------------------------------------------------------------------------------
