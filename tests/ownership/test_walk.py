"""The walk for owners of docs/verification.md, with an epoch for a training; the hour of waiting is skipped."""

import glob
import json
import re
import shlex
import shutil
import string
import sys
import time
from pathlib import Path

import pytest
from answering_server import serving
from authority import make_chain, stamping
from commands import ROOT, finished, good

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_the_walk_for_owners_leads_to_a_claim_that_a_stranger_can_judge(tmp_path, monkeypatch):
    """Every line works, and all evidence is accepted; whether this copy kept the mark is not what is tested."""
    text = (ROOT / "docs" / "verification.md").read_text()
    walk = re.search(r"## A walk for owners.*?```\n(.*?)```", text, re.DOTALL)[1]
    assert walk.count("\n# publish the digest") == 1 and "--after 1h" in walk
    walk, trainings = re.subn(r"-ep \d+", "-ep 1", walk.rstrip() + " --json claim.json")
    assert trainings == 3
    monkeypatch.chdir(tmp_path)
    now, names, out = time.time, {"HEX": "5d" * 32, "CA": str(make_chain(tmp_path / "authority"))}, ""
    with serving(stamping(tmp_path / "authority")) as names["TSA"]:
        for line in walk.splitlines():
            if line.startswith("#"):  # the wait for the round
                monkeypatch.setattr(time, "time", lambda: now() + 7200)
            elif found := re.fullmatch(r'([A-Z]+)="?([^"]*)"?', line):
                names[found[1]] = string.Template(found[2]).substitute(names)
            else:
                command, _, file = string.Template(line).substitute(names).partition(" > ")
                words = shlex.split(command, comments=True)
                words = [path for word in words for path in sorted(glob.glob(word)) or [word]]
                out += (printed := printed_by(words[1:], tmp_path))
                if file:
                    Path(file).write_text(printed)
    assert "existed at 20" in out and "field `randomness` of https://api.drand.sh/" in out
    report = json.loads((tmp_path / "claim.json").read_text())
    assert report["decided_for"] == "a stranger" and report["decision"]["rests_on"] == "T1"
    assert report["stamp"]["time"] and report["commitment"]["beacon_name"] == "drand quicknet"
    verdict, caveat = out.splitlines()[-2:]
    assert "The claim" in verdict and "exported from RUN yourself" in caveat


def printed_by(words: list[str], folder) -> str:
    """What `python WORDS...` prints: of the scripts and of `-m utils.verify` in this process."""
    if words[0] == "-m":
        return good(words[1], *words[2:])
    if words[0].startswith("tests/"):
        return finished(sys.executable, ROOT / words[0], *words[1:], cwd=folder).stdout
    return good(words[0].removesuffix(".py"), *words[1:])
