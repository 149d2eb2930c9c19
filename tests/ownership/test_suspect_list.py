"""Many suspects: Holm's correction by hand, and the list."""

import json
import math

import pytest
from commands import refused, verify
from owner_runs import answer

from utils.ownership.claim import decide_together

pytestmark = pytest.mark.usefixtures("quick")


def holm(log10_p):
    """The decisions on claims with these p-values, None for one that was refused without."""
    reports = [{"decision": {"holds": p is not None and p <= -3} | ({} if p is None else {"log10_p": p})}
               for p in log10_p]
    decide_together(reports, 1e-3)
    return [report["decision"] for report in reports]


def test_holm_by_hand():
    """p = 0.01, 0.04, 0.03 of three: 3 * 0.01, then 2 * 0.03, then 0.04, which may not be below the one before."""
    adjusted = [decision["holm_log10_p"] for decision in holm([math.log10(p) for p in (0.01, 0.04, 0.03)])]
    assert [10**p for p in adjusted] == pytest.approx([0.03, 0.06, 0.06])
    assert [decision["holm_log10_p"] for decision in holm([-math.inf, 0.0])] == [-math.inf, 0]
    refused = holm([-3.2, None])  # counts: 10^-3.2 * 2 is above 0.001
    assert refused[0] == {"holds": False, "log10_p": -3.2, "holm_log10_p": pytest.approx(-3.2 + math.log10(2))}
    assert refused[1] == {"holds": False}


def test_a_list_is_judged_together(owner, tmp_path):
    stolen, innocent = answer(owner, tmp_path, 0.6, "stolen.csv"), answer(owner, tmp_path, 0.0, "innocent.csv")
    listed = tmp_path / "suspects.txt"
    listed.write_text(f"# two files and the owner's own weights\n\npredictions {stolen}\npredictions {innocent}\n"
                      f"suspect {owner[0]}\n")
    claim = ("claim", owner[0], "--trust-owner", "--suspects", listed)
    status, out, _ = verify(*claim, "--json", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["suspects"]
    assert status == 0 and [entry["decision"]["holds"] for entry in found] == [True, False, False]
    p = [entry["decision"]["log10_p"] for entry in found]
    assert found[0]["decision"]["holm_log10_p"] == pytest.approx(p[0] + math.log10(3))
    assert "The claim holds against 1 of 3 suspects" in out
    # a list without a single theft, and one that a stranger would have to believe
    listed.write_text(f"predictions {innocent}\n")
    assert verify(*claim)[0] == 1
    status, out, _ = verify("claim", owner[0], "--suspects", listed)
    assert status == 1 and "does not hold, and nobody was asked" in out


def test_a_suspect_that_fails_while_it_is_asked_loses_no_other(owner, tmp_path):
    listed, stolen, asked = tmp_path / "list", answer(owner, tmp_path, 0.6, "stolen.csv"), tmp_path / "asked"
    claim = ("claim", owner[0], "--trust-owner", "--json", tmp_path / "c.json", "--suspects", listed)
    listed.write_text(f"command false {{png}}\npredictions {stolen}\n")
    status, out, _ = verify(*claim)
    found = json.loads((tmp_path / "c.json").read_text())["suspects"]
    assert status == 0 and [entry["decision"]["holds"] for entry in found] == [False, True]
    assert "nothing is known of it (" in out and "ended with status 1" in out
    listed.write_text("command false {png}\ncommand false  {png}\n")
    assert "ended with status 1" in refused("utils.verify", *claim)
    listed.write_text(f"command sh -c 'touch {asked}; echo 3' {{png}}\npredictions {tmp_path}/none.csv\n")
    assert "none.csv does not exist" in refused("utils.verify", *claim) and not asked.exists()


LISTS = {
    "names 0 suspects": b"", "line 1: 'model a' is there twice, or is not one of": b"model a",
    "is no text": b"\xff\xfe",
    "line 3: 'suspect a' is there twice": b"suspect a\n\nsuspect a", "names 1000000 suspects": b"url a\n" * 10**6,
}


@pytest.mark.parametrize("words", LISTS)
def test_lists_that_are_none_are_refused(words, tmp_path):
    (tmp_path / "list").write_bytes(LISTS[words])
    assert words in refused("utils.verify", "claim", tmp_path, "--suspects", tmp_path / "list")


def test_figures_that_are_written_are_private_and_flags_of_one_suspect_go_with_no_list(owner, tmp_path):
    answers = answer(owner, tmp_path, 0.6)
    verify("claim", owner[0], "--trust-owner", "--predictions", answers, "--json", tmp_path / "c.json")
    assert (tmp_path / "c.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "list").write_text(f"predictions {answers}\n")
    for suspect in (("--suspects", tmp_path / "list"), ("--predictions", answers)):
        for flags in (("--sequential",), ("--keep-answers", tmp_path / "kept")):
            said = refused("utils.verify", "claim", owner[0], "--trust-owner", *suspect, *flags)
            assert f"{flags[0]} is for one suspect that is asked image by image" in said
