"""`figures.make --archive`: what is packed, and what is not."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from commands import ROOT

from figures import make

pytestmark = pytest.mark.usefixtures("elsewhere")
RUN = "runs/digits_res18_margin_20_s0"
NOT_PACKED = ("triggers.pt", "key.json", "commitment.json", "trigger.png", "output.log", ".lock",
              "checkpoints/checkpoint_nat_best.pt", "checkpoints/checkpoint_previous.pt")


def a_run(name) -> Path:
    """A run folder by hand, with every file that there may be but a summary."""
    folder = Path(name)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"command": [f"{ROOT}/train.py", "-tt", "margin"]}))
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for file in NOT_PACKED:
        (folder / file).write_bytes(b"secret " + file.encode())
    return folder


def pack(file) -> dict:
    """{member: content} of the archive that `figures.make --no-run` writes."""
    make.main(["table3", "--no-run", "-d", "runs", "--out", "out", "--archive", file])
    with tarfile.open(file) as packed:
        assert all(m.isfile() and m.mtime == 0 and m.uid == m.gid == 0 for m in packed.getmembers())
        return {m.name: packed.extractfile(m).read() for m in packed.getmembers()}


def test_an_archive_holds_results_and_nothing_secret(capfd):
    source, _ = a_run(RUN), a_run(f"{RUN}/extraction_soft")
    row = {"model": "benign b", "trigger_hits": 3, "trigger_size": 10}
    (source / "summary.json").write_text(json.dumps({"rows": [row]}))
    (source / "di.json").write_text("{}")
    (source / "energy.json").symlink_to("key.json")
    Path("out/smoke").mkdir(parents=True)
    for name in ("figure1.png", "other.md"):
        Path("out/smoke", name).write_text("picture")
    found = pack("a.tgz")
    assert list(found) == [
        f"{RUN}/di.json", f"{RUN}/extraction_soft/metrics.jsonl", f"{RUN}/extraction_soft/run.json",
        f"{RUN}/metrics.jsonl", f"{RUN}/run.json", f"{RUN}/summary.json",
        "tables/figure1.png", "tables/table3.json", "tables/table3.md"]
    assert json.loads(found[f"{RUN}/run.json"])["command"] == ["train.py", "-tt", "margin"]
    assert str(ROOT).encode() not in b"".join(found.values()) and b"secret" not in b"".join(found.values())
    assert "packed the tables and 2 run(s) into a.tgz" in capfd.readouterr().out.splitlines()[-1]
    os.utime(source / "run.json", (1, 1))
    pack("b.tgz")
    assert Path("a.tgz").read_bytes() == Path("b.tgz").read_bytes()
