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


@pytest.fixture
def repository(tmp_path):
    """A small repository; its README.md is written by each test."""
    for name in ("docs/other.md", "docs/picture.png", "utils/door.py", "utils/silent.py", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "docs/other.md").write_text("# Other\n\n## What it costs, `in` short\n\n## Twice\n\n## Twice\n")
    (tmp_path / "utils/door.py").write_text('if __name__ == "__main__":\n    pass\n')
    (tmp_path.parent / "outside.md").touch()
    return tmp_path


GOOD = """# Title

[a](docs/other.md) [b](docs/other.md#what-it-costs-in-short) [c](#title) [d](docs/other.md#twice-1) [e](docs)
![f](docs/picture.png) [![g](docs/picture.png)](LICENSE) [h](https://example.org/nowhere#no) `[i](nowhere.md)`
`utils/door.py`, `utils/<name>/x.py`, `docs/*.md`, `utils/NAME/settings.py`, `figure/utils/none.py`, utils/prose.py

```
# not a heading
python -m utils.door docs/other.md
```
"""
BAD = [
    (broken_links, "[a](docs/none.md)"),
    (broken_links, "![a](docs/none.png)"),
    (broken_links, "[![a](docs/none.png)](LICENSE)"),
    (broken_links, "[![a](docs/picture.png)](none)"),
    (broken_links, '[a](none.md "title")'),
    (broken_links, "[a](../outside.md)"),
    (broken_links, "[a](#none)"),
    (broken_links, "[a](docs/other.md#none)"),
    (broken_links, "[a](docs/other.md#twice-2)"),
    (broken_links, "[a](LICENSE#license)"),
    (broken_links, "```\n# Code\n```\n[a](#code)"),
    (missing_paths, "`utils/none.py`"),
    (missing_paths, "`python docs/none.py --flag`"),
    (missing_paths, "```\ncat tests/none.py\n```"),
    (missing_paths, "`figures/none.md`."),
    (missing_commands, "`python -m utils.none RUN`"),
    (missing_commands, "```\n$ OMP_NUM_THREADS=1 python -m figures.none\n```"),
    (missing_commands, "a `python -m\nutils.none RUN` over two lines"),
    (missing_commands, "`python -m utils.silent`"),
]


def test_a_good_text_has_no_problems(repository):
    (repository / "README.md").write_text(GOOD)
    for check in (broken_links, missing_paths, missing_commands):
        assert check(repository / "README.md", repository) == []


@pytest.mark.parametrize("check, text", BAD)
def test_a_bad_text_is_found(repository, check, text):
    (repository / "README.md").write_text(f"{GOOD}\n{text}\n")
    assert len(check(repository / "README.md", repository)) == 1


@pytest.mark.parametrize("line, problems", [
    ("python train.py -a 1 --long x", []),
    ("python train.py $F", []),
    ("python train.py -a -1  # not --this", []),
    ("python train.py --none", ["train.py has no --none"]),
    ("python distill.py $F", ["distill.py has no --long"]),
])
def test_a_flag_that_a_script_has_not_is_found(line, problems):
    text = f'```\nF="-a 1 --long x"\n{line}\n```\n'
    assert unknown_flags(text, {"train": {"-a", "--long"}, "distill": {"-a"}}) == problems


@pytest.mark.parametrize("lines, problems", [(150, 0), (151, 1)])
def test_a_long_readme_is_found(repository, lines, problems):
    (repository / "README.md").write_text("line\n" * lines)
    assert len(too_long(repository / "README.md", README_LINES)) == problems
