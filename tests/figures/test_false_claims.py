"""False claims of the rival methods: who is compared with whom, and how claims are counted."""

import math

import pytest

from figures.rivals import count_verdicts, rivals_markdown, trigger_verdicts, verdict_row
from figures.shared import interval


def test_clopper_pearson_interval_by_hand():
    """For 0 or n of n, one end solves q^n = 0.025; for 1 of 2, the ends are 1 - sqrt(0.975) and sqrt(0.975)."""
    assert interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))  # 0.3085
    assert interval(10, 10) == pytest.approx((0.025**0.1, 1))
    assert interval(1, 2) == pytest.approx((1 - 0.975**0.5, 0.975**0.5))


def test_false_claims_are_counted_by_method_test_level_and_shared_images():
    verdicts = [verdict_row("EEF", "published", 0.01, "other", i < 9) for i in range(10)]
    verdicts += [verdict_row("EWE", "T2", level, "same", level > 0.01) for level in (0.05, 0.001) for _ in range(2)]
    found = {"rows": count_verdicts(verdicts), "benign": {"same": [0.9, 0.95], "other": [0.5]},
             "sources": {"EWE": {"claimed": False, "hits": 3, "of": 50}, "EEF": {"claimed": True}},
             "perceptrons": [{"source": {"claim": claim}} for claim in (True, False)]}
    text = rivals_markdown(found)
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| E")]
    assert [line[0].removeprefix("| ") for line in table] == ["EEF", "EWE", "EWE"]
    assert table[0][2:5] == ["0.01", "none of its images", "9 of 10"] and "0.555 to 0.997" in table[0][5]
    assert [line[2:5] for line in table[1:]] == [["0.05", "the source's images", "2 of 2"],
                                                 ["0.001", "the source's images", "0 of 2"]]
    assert "EWE NOT claimed, 3 of 50 triggers hit; EEF claimed; DI claimed in 1 of 2 draws" in text
    assert "test accuracy 90.0 to 95.0 %" in text


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
