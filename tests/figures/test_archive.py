"""`figures.make --archive`: what is packed, and what is not."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from commands import ROOT

from figures import make

pytestmark = pytest.mark.usefixtures("elsewhere")

SECRETS = ("triggers.pt", "key.json", "commitment.json", "trigger.png", "output.log", ".lock")
NAMES = [f"checkpoints/checkpoint_{name}.pt" for name in ("nat_best", "nat_best_clean", "latest", "previous")]
ARCHIVE = ("table3", "--no-run", "-d", "runs", "--out", "out", "--archive")


def a_run(name, finished=True) -> Path:
    """A run folder by hand, with every file that there may be."""
    folder = Path("runs", name)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"command": [f"{ROOT}/train.py", "-tt", "margin"]}))
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for file in (*SECRETS, *NAMES):
        (folder / file).write_bytes(b"secret " + file.encode())
    if finished:
        (folder / "summary.json").write_text('{"rows": [{"model": "benign b", "trigger_hits": 3, "trigger_size": 10}]}')
    return folder


def pack(file="a.tgz") -> dict:
    """{member: content} of the archive that `figures.make --no-run` writes."""
    make.main([*ARCHIVE, file])
    with tarfile.open(file) as packed:
        assert all(m.isfile() and m.mtime == 0 and m.uid == m.gid == 0 for m in packed.getmembers())
        return {m.name: packed.extractfile(m).read() for m in packed.getmembers()}


def test_an_archive_holds_results_and_nothing_secret(capfd):
    source = a_run("digits_res18_margin_20_s0")
    a_run("digits_res18_margin_20_s0/extraction_soft", finished=False)
    (source / "di.json").write_text("{}")
    (source / "energy.json").symlink_to("key.json")
    Path("runs/notes.json").write_text("{}")
    Path("out/smoke").mkdir(parents=True)
    for name in ("figure1.png", "figure5.png", "figure5.md", "other.md"):
        Path("out/smoke", name).write_text("picture")
    found = pack()
    run = "runs/digits_res18_margin_20_s0"
    assert list(found) == [
        f"{run}/di.json", f"{run}/extraction_soft/metrics.jsonl", f"{run}/extraction_soft/run.json",
        f"{run}/metrics.jsonl", f"{run}/run.json", f"{run}/summary.json",
        "tables/figure1.png", "tables/figure5.md", "tables/table3.json", "tables/table3.md"]
    assert found["tables/table3.md"] == Path("out/smoke/table3.md").read_bytes()
    assert json.loads(found[f"{run}/run.json"])["command"] == ["train.py", "-tt", "margin"]
    assert str(ROOT).encode() not in b"".join(found.values()) and b"secret" not in b"".join(found.values())
    said = capfd.readouterr().out.splitlines()[-1]
    assert said == f"packed the tables and 2 run(s) into a.tgz, {Path('a.tgz').stat().st_size / 1e3:.0f} kB"
    os.utime(source / "run.json", (1, 1))
    pack("b.tgz")
    assert Path("a.tgz").read_bytes() == Path("b.tgz").read_bytes()
