"""Many suspects: Holm's correction by hand, the list, and the log of who was asked."""

import json
import math

import numpy as np
import pytest
from commands import verify
from owner_runs import answer, make_run

from utils.ownership.claim import decide_together, holm

pytestmark = pytest.mark.usefixtures("quick")


def test_holm_by_hand():
    """p = 0.01, 0.04, 0.03 of three: 3 * 0.01, then 2 * 0.03, then 0.04, which may not be below the one before."""
    adjusted = holm([math.log10(p) for p in (0.01, 0.04, 0.03)])
    assert [10**p for p in adjusted] == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.0, 0.0]) == [0.0, 0.0] and holm([-3.0]) == [-3.0] and holm([]) == []
    assert holm([-math.inf, 0.0])[0] == -math.inf


def test_holm_keeps_the_error_of_a_whole_list():
    rng = np.random.default_rng(0)
    p = np.log10(rng.random((2000, 20)))
    false_claims = np.mean([min(holm(row.tolist())) <= math.log10(0.05) for row in p])
    assert 0.03 < false_claims < 0.07  # of single tests it would be 0.64


def test_a_refused_claim_counts_in_the_list_and_stays_refused():
    reports = [{"decision": {"holds": True, "log10_p": -3.2}}, {"decision": {"holds": False, "why": "none"}}]
    decide_together(reports, 1e-3)
    assert reports[0]["decision"]["holds"] is False  # 10^-3.2 * 2 is above 0.001
    assert reports[0]["decision"]["holm_log10_p"] == pytest.approx(-3.2 + math.log10(2))
    assert reports[1]["decision"] == {"holds": False, "why": "none"}


def test_a_list_is_judged_together(tmp_path, capsys):
    owner = make_run(tmp_path / "run")
    capsys.readouterr()
    stolen, innocent = answer(owner, tmp_path, 0.6, "stolen.csv"), answer(owner, tmp_path, 0.0, "innocent.csv")
    listed = tmp_path / "suspects.txt"
    listed.write_text(f"# two files and the owner's own weights\n\npredictions {stolen}\npredictions {innocent}\n"
                      f"suspect {owner[0]}\n")
    claim = ("claim", owner[0], "--trust-owner", "--suspects", listed)
    status, out, _ = verify(capsys, *claim, "--json", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["suspects"]
    assert status == 0 and [entry["decision"]["holds"] for entry in found] == [True, False, False]
    p = [entry["decision"]["log10_p"] for entry in found]
    assert found[0]["decision"]["holm_log10_p"] == pytest.approx(p[0] + math.log10(3))
    assert "The claim holds against 1 of 3 suspects" in out
    # a list without a single theft, and one that a stranger would have to believe
    listed.write_text(f"predictions {innocent}\n")
    assert verify(capsys, *claim)[0] == 1
    status, out, _ = verify(capsys, "claim", owner[0], "--suspects", listed)
    assert status == 1 and "does not hold, and nobody was asked" in out


@pytest.mark.parametrize("text, words", [
    ("", "names 0 suspects"), ("model a", "line 1: 'model a' is there twice, or is not one of"), ("suspect", "line 1"),
    ("suspect a\n\nsuspect a", "line 3: 'suspect a' is there twice"), ("suspect a\n" + "".join(
        f"suspect {i}\n" for i in range(1000)), "names 1001"),
])
def test_lists_that_are_none_are_refused(tmp_path, capsys, text, words):
    (tmp_path / "list").write_text(text)
    status, _, err = verify(capsys, "claim", tmp_path, "--suspects", tmp_path / "list")
    assert status == 2 and words in err


def test_a_long_list_is_refused_at_once(tmp_path, capsys):
    test_lists_that_are_none_are_refused(tmp_path, capsys, "".join(f"url {i}\n" for i in range(10**6)), "1001 suspects")


def test_a_list_that_is_no_text_or_missing_is_refused(tmp_path, capsys):
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    for name, words in (("list", "is no text"), ("none", "does not exist")):
        status, _, err = verify(capsys, "claim", tmp_path, "--suspects", tmp_path / name)
        assert status == 2 and words in err

