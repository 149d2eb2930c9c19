"""The walk for owners of docs/verification.md, run as it stands; only the hour of waiting is skipped."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from authority import make_chain, serving, stamping
from commands import ROOT

CLOCK = """
import os, time
now = time.time
time.time = lambda: now() + (7200 if os.path.exists(os.environ["WAITED"]) else 0)
"""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_the_walk_for_owners_leads_to_a_claim_that_a_stranger_can_judge(tmp_path):
    """Every line works, and all evidence is accepted; whether this copy kept the mark is not what is tested."""
    text = (ROOT / "docs" / "verification.md").read_text()
    walk = re.search(r"## A walk for owners.*?```\n(.*?)```", text, re.DOTALL)[1]
    assert walk.count("\n# publish the digest") == 1 and "--after 1h" in walk
    for name in ("train.py", "extraction.py", "utils", "models", "figures", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    (tmp_path / "clock" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "clock" / "python").chmod(0o755)
    ca = make_chain(tmp_path / "authority")
    wait = f'touch "$WAITED"; python -c "import time; assert time.time() > 1e9"; HEX={"5d" * 32}'
    walk = re.sub(r"^# publish.*$", wait, walk, flags=re.MULTILINE).rstrip() + " --json claim.json || test $? = 1\n"
    with serving(stamping(tmp_path / "authority")) as url:
        env = os.environ | {"TSA": url, "CA": str(ca), "PATH": f"{tmp_path / 'clock'}:{os.environ['PATH']}",
                            "PYTHONPATH": str(tmp_path / "clock"), "WAITED": str(tmp_path / "waited")}
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", walk], cwd=tmp_path, env=env, capture_output=True,
                              text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "existed at 20" in done.stdout and "field `randomness` of https://api.drand.sh/" in done.stdout
    report = json.loads((tmp_path / "claim.json").read_text())
    assert report["decided_for"] == "a stranger" and report["decision"]["rests_on"] == "T1"
    assert report["stamp"]["time"] and report["commitment"]["beacon_name"] == "drand quicknet"
    assert "The claim" in done.stdout.splitlines()[-1]
