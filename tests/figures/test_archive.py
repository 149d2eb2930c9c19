"""`figures.make --archive`: what is packed, what is not, and how large it may be."""

import json
import os
import random
import tarfile
from pathlib import Path

import pytest
from commands import ROOT, refused_make

from figures import make, write

pytestmark = pytest.mark.usefixtures("elsewhere")

SECRETS = ("triggers.pt", "key.json", "commitment.json", "trigger.png", "output.log", ".lock")
MODELS = ("nat_best", "nat_best_clean", "latest", "latest_clean")
NAMES = [f"checkpoints/checkpoint_{name}.pt" for name in (*MODELS, "init", "query_best", "20", "previous")]
SUMMARY = {"test_accuracy": 0.5, "trigger_hits": 3, "trigger_size": 10, "log10_p": {"T1": -4.0}, "rows": []}


def a_run(name, finished=True, **files) -> Path:
    """A run folder by hand, with every file that there may be."""
    folder = Path("runs", name)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"command": [f"{ROOT}/train.py", "-tt", "margin"]}))
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for file in (*SECRETS, *NAMES):
        (folder / file).write_bytes(b"secret " + file.encode())
    if finished:
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def pack(*flags, file="a.tgz") -> dict:
    """{member: content} of the archive that `figures.make --no-run` writes."""
    make.main(["table3", "--no-run", "-d", "runs", "--out", "out", "--archive", file, *flags])
    with tarfile.open(file) as packed:
        assert all(m.isfile() and m.mtime == 0 and m.uid == m.gid == 0 for m in packed.getmembers())
        return {m.name: packed.extractfile(m).read() for m in packed.getmembers()}


def test_an_archive_holds_results_and_nothing_secret(capfd):
    source = a_run("digits_res18_margin_20_s0")
    a_run("digits_res18_margin_20_s0/extraction_soft", finished=False)
    (source / "di.json").write_text("{}")
    (source / "tsne.json").write_text("{}")
    (source / "energy.json").symlink_to("key.json")
    Path("runs/notes.json").write_text("{}")
    Path("out/smoke").mkdir(parents=True)
    for name in ("figure1.png", "figure5.png", "figure5.md", "other.md"):
        Path("out/smoke", name).write_text("picture")
    found = pack()
    run = "runs/digits_res18_margin_20_s0"
    assert list(found) == [
        f"{run}/di.json", f"{run}/extraction_soft/metrics.jsonl", f"{run}/extraction_soft/run.json",
        f"{run}/metrics.jsonl", f"{run}/run.json", f"{run}/summary.json", f"{run}/tsne.json",
        "tables/figure1.png", "tables/figure5.md", "tables/table3.json", "tables/table3.md"]
    assert found["tables/table3.md"] == Path("out/smoke/table3.md").read_bytes()
    assert json.loads(found[f"{run}/summary.json"]) == SUMMARY
    assert json.loads(found[f"{run}/run.json"])["command"] == ["train.py", "-tt", "margin"]
    assert str(ROOT).encode() not in b"".join(found.values()) and b"secret" not in b"".join(found.values())
    said = capfd.readouterr().out.splitlines()[-1]
    assert said == f"packed the tables and 2 run(s) into a.tgz, {Path('a.tgz').stat().st_size / 1e3:.0f} kB"
    os.utime(source / "run.json", (1, 1))
    pack(file="b.tgz")
    assert Path("a.tgz").read_bytes() == Path("b.tgz").read_bytes()


def test_weights_add_the_checkpoints_that_are_used_and_make_the_archive_private(capfd):
    a_run("one")
    without, found = pack(), pack("--weights", file="b.tgz")
    assert set(found) - set(without) == {f"runs/one/checkpoints/checkpoint_{name}.pt" for name in MODELS}
    assert found["runs/one/checkpoints/checkpoint_latest.pt"] == b"secret checkpoints/checkpoint_latest.pt"
    assert "keep it private" in capfd.readouterr().out.splitlines()[-1]
    assert Path("b.tgz").stat().st_mode & 0o777 == 0o600 and Path("a.tgz").stat().st_mode & 0o044


def noise(count: int) -> bytes:
    return random.Random(count).randbytes(count)  # does not become smaller


def test_metrics_of_finished_runs_are_left_out_of_an_archive_that_is_too_large(monkeypatch, capfd):
    monkeypatch.setattr(write, "LIMIT", 40_000)
    for name, size, finished in (("a", 9_000, True), ("b", 12_000, True), ("d", 20_000, False)):
        a_run(name, finished).joinpath("metrics.jsonl").write_bytes(noise(size))
    found = pack()
    assert [n for n in "abd" if f"runs/{n}/metrics.jsonl" in found] == ["d"]
    assert all(f"runs/{n}/run.json" in found for n in "abd")
    assert capfd.readouterr().out.endswith("left out, to stay below 0.04 MB: the metrics of finished runs\n")
    monkeypatch.setattr(write, "LIMIT", 50_000)
    assert [n for n in "abd" if f"runs/{n}/metrics.jsonl" in pack()] == ["a", "b", "d"]
    monkeypatch.setattr(write, "LIMIT", 15_000)
    before = Path("a.tgz").read_bytes()
    said = refused_make(capfd, "table3", "--no-run", "-d", "runs", "--out", "out", "--archive", "a.tgz")
    assert "--archive a.tgz: the results take 0.02 MB" in said and said.count("\n") == 1
    assert Path("a.tgz").read_bytes() == before and not list(Path(".").glob(".*partial"))


def test_an_archive_is_not_left_half_written(monkeypatch, capfd):
    a_run("one")
    pack()
    before = Path("a.tgz").read_bytes()

    def full(file, members):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "_pack", full)
    for flags in ((), ("--weights",)):
        said = refused_make(capfd, "table3", "--no-run", "-d", "runs", "--out", "out", "--archive", "a.tgz", *flags)
        assert "the disk is full" in said and Path("a.tgz").read_bytes() == before
        assert not list(Path(".").glob(".*partial"))


def test_bad_flags_of_an_archive_are_refused_before_any_run(tmp_path, capfd):
    Path("file").write_text("")
    for flags, words in (
        (("--weights",), ["--weights", "--archive FILE"]),
        (("--archive", "no/where.tgz"), ["--archive no/where.tgz", "there is no folder no"]),
        (("--archive", "."), ["--archive .", "is a folder"]),
        (("--archive", "file/a.tgz"), ["--archive file/a.tgz", "there is no folder file"]),
        (("--archive", "a.tgz", "--list"), ["--archive with --list"]),
    ):
        said = refused_make(capfd, "table3", "-d", "runs", "--out", "out", *flags)
        assert said.count("\n") == 1 and all(word in said for word in words), said
    if os.path.isdir("/sys/kernel"):  # where not even root may make a file
        said = refused_make(capfd, "table3", "-d", "runs", "--out", "out", "--archive", "/sys/kernel/a.tgz")
        assert "--archive /sys/kernel" in said and "takes no files" in said
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
