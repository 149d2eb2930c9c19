"""README, CONTRIBUTING and docs/: links, anchors, paths and commands name what is there. No network."""

import re
import shlex
from pathlib import Path

import pytest
from commands import ROOT, good

TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

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


def broken_links(file: Path):
    """Links and images that name no file of the repository, or no heading of the file they point to."""
    for target in LINK.findall(INLINE_CODE.sub("", FENCE.sub("", file.read_text()))):
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        if not there.is_relative_to(ROOT) or not there.exists() or anchor and anchor not in anchors(there.read_text()):
            yield target


def missing_in_code(file: Path):
    """In code: paths that do not exist, but for NAME, <...>, {...} and *, and modules that `python -m` cannot run."""
    text = file.read_text()
    code = "\n".join([*FENCE.findall(text), *INLINE_CODE.findall(FENCE.sub("", text))])
    for path, placeholder in PATH.findall(code):
        if not placeholder and "NAME" not in path and not (ROOT / path.rstrip(".")).exists():
            yield path
    for module in COMMAND.findall(code):
        source = ROOT / (module.replace(".", "/") + ".py")
        if not source.exists() or '__name__ == "__main__"' not in source.read_text():
            yield f"python -m {module}"


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_texts_name_what_is_there(file):
    assert [*broken_links(file), *missing_in_code(file)] == []


OFFICIAL = "-d --dir -dt -tt -nq -nm -qt -msg -ep --device --seed "
STEALS = OFFICIAL + "-e --exp-name -dmt -tmt -admsg -a --alpha "
FLAGS = {"train": f"{OFFICIAL} --dataset --train-type -mt --model-type --num-query --num-mixup --query-type --message "
                  "--epoch -v --variable",
         "distill": f"{STEALS} --model-type --teacher-model-type --additional-message -t --temp",
         "extraction": f"{STEALS} -dsrc --dataset-source -at --attack"}


def test_the_scripts_have_the_flags_of_the_official_code_and_of_the_readme():
    """Each flag of a command of the three scripts in a code block is in the script's --help; $F is replaced."""
    known = {script: set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", good(script, "--help"))) for script in FLAGS}
    assert all(set(flags.split()) <= known[script] for script, flags in FLAGS.items())
    commands = 0
    for block in FENCE.findall((ROOT / "README.md").read_text()):
        for script, line in SCRIPT.findall(block):
            for name, value in VARIABLE.findall(block):
                line = line.replace(f"${name}", value)
            flags = {word for word in shlex.split(line, comments=True) if re.match(r"--?[a-z]", word)}
            assert flags <= known[script], (script, flags - known[script])
            commands += 1
    assert commands >= 6  # the official three, and the laptop's
