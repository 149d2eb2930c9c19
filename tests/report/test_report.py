"""`python -m utils.report`: what its page says, what it keeps to itself, and what it makes of damaged folders."""

import base64
import hashlib
import json
import os
import re
import shutil
import stat
from functools import partial

import pytest
from commands import good, refused, summary
from reading_html import drawings, read_safe_page
from small_runs import DATA, STEAL, TRAIN, skip_fsync_git_and_pictures

from utils.report import RECORD_LIMIT, chart, decision
from utils.system.refusals import printable

SEED = "7391"
TAGS = ("-msg", f"s{SEED}", "--seed", SEED)
HOSTILE = ['</td><script>alert("1")</script><img src=y onerror=alert(1)>\u202e\ud800', "' onload='x", "a & b < c",
           "<!--", "&lt;", "]]>", "javascript:alert(1)", "{{ 7 * 7 }}", "$x^", "\x00\u202e\ud800", "100 %s"]


@pytest.fixture(scope="module")
@skip_fsync_git_and_pictures()
def source(tmp_path_factory):
    """The run folder of a source with a tag that names its seed, and two attacks on it; tests do not write to it."""
    folder = tmp_path_factory.mktemp("runs")
    where = ("-d", folder)
    good("train", *TRAIN, *where, "-tt", "none", *TAGS)
    good("train", *TRAIN, *where, *TAGS, "--benign", folder / f"digits_vgg11_none_10_s{SEED}")
    good("extraction", *STEAL, *where, *TAGS, "-at", "hard", "-admsg", f"_s{SEED}")
    good("extraction", *DATA, *where, *TAGS, "-tmt", "vgg11", "-at", "quantize", "-admsg", "_bits")
    return folder / f"digits_vgg11_margin_10_s{SEED}"


@pytest.fixture
def copied(source, tmp_path):
    """A copy of the source's folder that a test may change."""
    return shutil.copytree(source, tmp_path / source.name)


report, refusal = partial(good, "utils.report"), partial(refused, "utils.report")


def text_of(folder, *flags) -> str:
    """The text of the page that the command writes into a folder."""
    report(folder, *flags)
    return read_safe_page((folder / "report.html").read_text()).text


def edit(path, **changes):
    """Change entries of a JSON file; those named settings_... are settings of a run.json."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if key.startswith("settings_"):
            content["settings"][key.removeprefix("settings_")] = value
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def test_a_page_states_what_the_summaries_state_and_tells_neither_triggers_nor_seed(copied, tmp_path):
    edit(copied / "run.json", settings_init=f"runs/clean-{SEED}", command=["train.py", "--seed", SEED], torch="2.6.0")
    for out in (tmp_path / "page.html", tmp_path / "again.html"):
        assert report(copied, "-o", out).startswith(f"wrote {out}, ") and stat.S_IMODE(out.stat().st_mode) & 0o044
    page = out.read_text()
    assert page == (tmp_path / "page.html").read_text()  # equal folders give equal pages
    read = read_safe_page(page)
    own, copy = summary(copied), summary(copied / f"extraction_s{SEED}")
    for figures in (own, own["clean"], copy):
        assert f"{100 * figures['test_accuracy']:.2f}" in read.text
        assert f"{figures['trigger_hits']}/{figures['trigger_size']}" in read.text
        assert f"{figures['log10_p']['T1']:.2f}" in read.text
    for words in ("source (margin)", "hard copy, vgg11 (extraction_s…)", "benign model 1", "withheld", "2.6.0",
                  "quantize (extraction_bits): 4 bits", "2 of 2 attacks finished"):
        assert words in read.text, words
    assert SEED not in re.sub(r"[0-9a-f]{40,}", "", page) and "image/png" not in page
    assert not any(SEED in drawing for drawing in drawings(read)) and len(drawings(read)) == 4
    assert sum(">epoch</text>" in drawing for drawing in drawings(read)) == 3  # all but the legend: text stays text
    digest = base64.b64encode(hashlib.sha256(read.style.encode()).digest()).decode()
    assert any(f"style-src 'sha256-{digest}'" in a.get("content", "") for a in read.all("meta"))


def test_with_triggers_the_page_is_private_and_shows_their_picture(copied, tmp_path):
    edit(copied / "run.json", command=["train.py", "--seed", SEED])
    out = tmp_path / "page.html"
    out.write_text("")
    out.chmod(0o644)
    assert "keep it private" in report(copied, "-o", out, "--show-triggers")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    read = read_safe_page(out.read_text())
    for words in (f"extraction_s{SEED}", f"benign digits_vgg11_none_10_s{SEED}", f"train.py --seed {SEED}"):
        assert words in read.text, words
    (picture,) = [image["src"] for image in read.all("img") if "image/png" in image["src"]]
    assert base64.b64decode(picture.split(",")[1]) == (copied / "trigger.png").read_bytes()


@pytest.mark.parametrize("t1, t1p, said", [
    (-3.0, None, "claimed"), (-2.99, None, "not claimed"), (None, None, "-"), (None, -9.0, "-"),
    (-3.0, -1.0, "not claimed"), (-3.31, 0.0, "claimed"), (-3.30, 0.0, "not claimed"), (0.0, -3.31, "claimed")])
def test_the_smaller_of_two_tests_decides_and_counts_twice(t1, t1p, said):
    assert decision({"log10_p": {"T1": t1, "T1p": t1p}}) == said  # log10(2) is 0.301


def test_the_verdict_stands_on_top_and_counts_what_is_claimed(copied):
    attack = copied / f"extraction_s{SEED}" / "summary.json"
    edit(copied / "summary.json", log10_p={"T1": -9.0, "T1p": -30.5}, clean=None)
    edit(attack, log10_p={"T1": -2.0, "T1p": -1}, clean=None, source_sha256=["0" * 64])  # what no set can hold
    strengths = [{"bits": 8, "log10_p": {"T1": -3.2}}, {"bits": 4, "log10_p": {"T1": -3.2, "T1p": -3.2}}]
    edit(copied / "extraction_bits" / "summary.json", rows=strengths)
    text = text_of(copied)
    said = "for who trusts the owner: source 1 of 1, copies 0 of 1, edited models 1 of 2, benign models 0 of 1."
    assert said in text and text.index(said) < text.index("p_subset") and "-30.50" in text
    assert "A benign model is claimed too" not in text and "1 of the copies stole another source" in text
    edit(copied / "summary.json", rows=[{"model": "benign x", "log10_p": {"T1": -4}}])
    assert "benign models 1 of 1. A benign model is claimed too" in " ".join(text_of(copied).split())
    of_two_folders = [{"model": "benign x", "trigger_hits": hits, "trigger_size": 10, "log10_p": {"T1": p}}
                      for hits, p in ((1, -0.1), (9, -9), (9, -9.01))]  # one is there twice, asked on two machines
    edit(copied / "summary.json", rows=of_two_folders)
    assert "benign models 1 of 2. A benign model is claimed too" in " ".join(text_of(copied).split())


def test_an_unfinished_run_and_one_without_attacks_say_so(copied):
    for name in (f"extraction_s{SEED}", "extraction_bits"):
        shutil.rmtree(copied / name)
    assert "There are no attacks on this source yet" in text_of(copied)
    (copied / "summary.json").unlink()
    edit(copied / "run.json", settings_epoch=9)
    said = text_of(copied)
    assert "not finished: 1 of 9 epochs" in said and "The source's run is not finished" in said
    for name in ("metrics.jsonl", "trigger.png"):
        (copied / name).unlink()
    said = text_of(copied, "--show-triggers")
    assert "The run has no picture of its triggers yet" in said and "No epoch has been recorded yet" in said


def test_a_damaged_attack_is_left_out_and_named_on_the_terminal_only(copied, tmp_path):
    bits, attack = copied / "extraction_bits", copied / f"extraction_s{SEED}"
    (bits / "summary.json").write_text("{")
    (many := copied / "extraction_many").mkdir()
    (many / "run.json").write_text('{"settings": {"attack": "soft"}}')
    (many / "metrics.jsonl").write_text("{}\n" * 10_001)
    (lines := copied / "x\nThe claim holds: 40 of 40\n").mkdir()
    (lines / "run.json").write_text('{"settings": "' + "x" * RECORD_LIMIT + '"}')
    said = report(copied)
    assert said.count("not in the page: ") == 3 and "extraction_bits/summary.json is damaged" in said
    assert "metrics.jsonl has 10001 epochs" in said and "is larger than 524288 bytes" in said
    assert not any(line.startswith("The claim") for line in said.splitlines())
    shutil.rmtree(many)
    shutil.rmtree(lines)
    page = (copied / "report.html").read_text()
    text = read_safe_page(page).text
    assert "3 of the attacks are left out" in text and SEED not in page
    shutil.rmtree(bits)
    (attack / "summary.json").rename(tmp_path / "other")
    (attack / "summary.json").symlink_to(tmp_path / "other")
    said = report(copied)
    assert said.count("not in the page: ") == 1 and f"{attack / 'summary.json'} is a symbolic link" in said


def test_what_files_say_is_text_and_odd_values_are_no_numbers(copied):
    text, attack = HOSTILE[0], copied / f"extraction_s{SEED}"
    edit(copied / "run.json", device_name=text, command={"a": text}, settings_dataset=text, settings_model_type=text,
         settings_epoch="many", **{f"settings_{word}": word for word in HOSTILE})
    edit(attack / "run.json", settings_attack=text)
    edit(attack / "summary.json", attack=text, test_accuracy=text, trigger_hits=-1, log10_p=[1], rows=[7, {}])
    edit(copied / "summary.json", rows=[{"model": f"benign {text}", "log10_p": {"T1": float("nan"), "T3": 10**400}}],
         test_accuracy=True, clean=7)
    rows = [{"epoch": 1, "loss": float("inf"), "val_accuracy": 0.5}, [1], {"epoch": "x"}, {"epoch": 2, "loss": 10**400},
            {"epoch": 3, "loss": -1e30}, {"epoch": 1e30, "loss": 5e-324}]
    (copied / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    for flags in ((), ("--show-triggers",)):
        report(copied, *flags)
        page = (copied / "report.html").read_text()
        assert "<script" not in page and "\u202e" not in page and "&lt;script&gt;" in page
        read = read_safe_page(page)
        assert all(read.text.count(printable(word)) >= 2 for word in HOSTILE)
        assert any(printable(text) in image["alt"] for image in read.all("img"))


def test_what_is_no_source_is_refused(source, tmp_path):
    (tmp_path / "folder.html").mkdir()
    before = sorted(os.listdir(tmp_path))
    out = ("-o", tmp_path / "a.html")
    assert "there is no run in" in refusal(tmp_path, *out)
    assert f"name its source's folder, {source}" in refusal(source / "extraction_bits", *out)
    assert "ends in .html" in refusal(source, "-o", source / "run.json")
    assert "is a folder" in refusal(source, "-o", tmp_path / "folder.html")
    assert "there is no folder" in refusal(source, "-o", tmp_path / "no" / "a.html")
    assert "unrecognized arguments" in refusal(source, "--show")
    assert sorted(os.listdir(tmp_path)) == before


def test_damaged_files_of_the_source_are_refused_by_name(copied):
    for name in ("run.json", "summary.json", "metrics.jsonl"):
        good = (copied / name).read_bytes()
        (copied / name).write_bytes(b"{")
        assert name in refusal(copied)
        (copied / name).write_bytes(good)
    assert not (copied / "report.html").exists()


def test_a_benign_run_has_a_page_too(source):
    text = text_of(source.with_name(f"digits_vgg11_none_10_s{SEED}"))
    assert "no watermark" in text and "for who trusts the owner: benign models 0 of 1." in text


@pytest.mark.parametrize("name", ["report.html", ".report.html.partial", "metrics.jsonl", "checkpoints",
                                  "extraction_bits"])
def test_a_page_is_read_and_written_through_no_link(name, copied, tmp_path):
    other = tmp_path / "other"
    if (copied / name).exists():
        (copied / name).rename(other)
    (copied / name).symlink_to(other)
    existed = other.exists()
    assert f"{copied / name} is a symbolic link" in refusal(copied)
    assert other.exists() == existed and (name == "report.html" or not (copied / "report.html").exists())


# ---- its curves ----


def test_a_chart_can_be_read_out():
    one = chart("Loss", "loss", [("source <1>", [(1, 2.5), (2, 0.5)]), ("copy", [(2, 7.0)]), ("none", [])])
    assert one["alt"] == "Chart: Loss, loss against epoch. source <1> from 2.5 to 0.5; copy from 7 to 7"
