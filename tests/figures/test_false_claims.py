"""False claims of the rival methods: who is compared with whom; how they are counted is in test_figures.py."""

import math

import pytest

from figures.rivals import rivals_markdown, trigger_verdicts
from figures.shared import interval


def test_clopper_pearson_interval_by_hand():
    """For 0 or n of n, one end solves q^n = 0.025; for 1 of 2, the ends are 1 - sqrt(0.975) and sqrt(0.975)."""
    assert interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))  # 0.3085
    assert interval(10, 10) == pytest.approx((0.025**0.1, 1))
    assert interval(1, 2) == pytest.approx((1 - 0.975**0.5, 0.975**0.5))


def test_a_source_that_is_not_claimed_is_said_to_be_none():
    found = {"rows": [], "benign": {}, "perceptrons": [], "sources": {"EWE": {"claimed": False, "hits": 3, "of": 50}}}
    assert "The sources themselves: EWE NOT claimed, 3 of 50 triggers hit; DI" in rivals_markdown(found)


def test_a_bank_holds_five_other_models_and_t1_needs_none(monkeypatch):
    asked = []

    def ask(*words):
        asked.append([str(word) for word in words])
        tests = {"T1": {"log10_p": -1.0}, "T2": {"log10_p": -2.0},
                 "T4": {"log10_p": math.log10(1 / 6 if words[3] == "same3" else 2 / 6)}}
        return words[-1] > 0.01, {"hits": 1, "triggers": 50, "tests": tests}

    monkeypatch.setattr("figures.rivals.ask_verify", ask)
    benign = {"same": [f"same{i}" for i in range(7)], "other": ["other0", "other1"]}
    source, verdicts = trigger_verdicts("RS", "source", benign)
    assert not source["claimed"] and len(verdicts) == 9 * 3
    for words in asked:
        suspect, bank = words[3], words[words.index("--benign") + 1 : words.index("--alpha")]
        assert len(set(bank)) == 5 and set(bank) <= set(benign["same"]) - {suspect}
    assert [v["claimed"] for v in verdicts if v["test"] == "T4"] == [i == 3 for i in range(9)]
    assert [v["claimed"] for v in verdicts if v["test"] == "T2"] == [True, False] * 9
    asked.clear()
    _, verdicts = trigger_verdicts("margin", "source", benign)
    assert {v["test"] for v in verdicts} == {"T1"} and not any("--benign" in words for words in asked)
