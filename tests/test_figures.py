"""Commands of the figures package: the words and numbers they print follow from the runs they read."""

import json
import math

import pytest

from figures import demo, errors, rivals, rows, toy
from figures.false_claims.runs import write_image_halves
from figures.false_claims.settings import HALVES
from figures.false_claims.verdicts import eef_verdicts, trigger_verdicts, verdict_row
from figures.rows import collect_rows, markdown_table


def summaries(margin_soft: float, benign: float) -> dict:
    figures = lambda p: {"log10_p": {"T1": p}, "trigger_hits": 1, "trigger_size": 2}
    found = {(kind, attack): figures(-0.5) for kind in ("base", "margin") for attack in demo.ATTACKS}
    found |= {(kind, "source"): figures(-40) for kind in ("base", "margin")}
    return found | {("margin", "soft"): figures(margin_soft), ("none", "benign"): figures(benign)}


def test_the_demo_says_what_its_table_shows(tmp_path):
    text = demo.verdict(summaries(-3.2, -0.1))
    assert "ERM watermark: theft shown (T1, p <= 0.001) for no attack; not for soft, hard, reg" in text
    assert "margin watermark: theft shown (T1, p <= 0.001) for soft; not for hard, reg" in text
    assert "benign model: not claimed" in text
    text = demo.verdict(summaries(-2.9, -3.0))
    assert "margin watermark: theft shown (T1, p <= 0.001) for no attack" in text
    assert "benign model: WRONGLY claimed" in text
    demo.draw(summaries(-3.2, -0.1), tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def a_run(folder, seed, hits, p, **more):
    folder.mkdir(parents=True)
    log10_p = {"T1": p, "T1_conservative": p / 2, "T3": None, "p_subset": None}
    figures = {"test_accuracy": 0.5 + seed / 10, "trigger_hits": hits, "trigger_size": 50, "log10_p": log10_p}
    summary = {"role": "surrogate", "attack": "soft", "seed": seed, "teacher_bn": "paper", **figures, "clean": None}
    about = {"settings": {"train_type": "margin"}, "command": ["extraction.py", "--seed", str(seed)]}
    about |= {"device": "cpu", "torch": "2", "threads": 1, "git_commit": "abc"}
    (folder / "summary.json").write_text(json.dumps(summary | more))
    (folder / "run.json").write_text(json.dumps(about))


def test_rows_put_seeds_side_by_side(tmp_path):
    a_run(tmp_path / "s1" / "extraction", 1, 10, -3.0)
    a_run(tmp_path / "s2" / "extraction", 2, 14, -5.0)
    a_run(tmp_path / "s1" / "other", 1, 2, -0.2, teacher_bn="clean")
    paper, clean = collect_rows(tmp_path)
    assert (paper["statistics"], paper["seeds"], paper["trigger_hits"]) == ("paper", [1, 2], [10, 14])
    assert clean["statistics"] == "clean"
    assert paper["log10_T1_harmonic_mean"] == pytest.approx(math.log10(2 / (1e3 + 1e5)))
    # mean of 60 and 70 is 65, their sample deviation 10 / sqrt(2)
    text = "| margin | surrogate soft | paper | 2 | 65.00 ± 7.07 | 10/50, 14/50 | -3.00, -5.00 | -1.50, -2.50 | -4.70 |"
    assert text in markdown_table([paper, clean])
    about = json.loads((tmp_path / "s2" / "extraction" / "run.json").read_text())
    about["settings"]["data_sha256"] = "of other images"
    (tmp_path / "s2" / "extraction" / "run.json").write_text(json.dumps(about))
    assert sorted(row["seeds"] for row in collect_rows(tmp_path)) == [[1], [1], [2]]


def test_rows_of_nothing_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        rows.main([str(tmp_path)])
    assert end.value.code == 2 and "no finished run" in capsys.readouterr().err


def test_the_toy_counts_its_seeds(tmp_path, capsys):
    toy.main(["--seeds", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "figure2.json").read_text())
    kept = [found["seeds"][0]["panels"][name]["trigger_correct"] for name in toy.NAMES]
    assert found["seeds"][0]["claim_shows"] == (kept == [True, False, True, True])
    assert found["claim_shows"] == f"{int(kept == [True, False, True, True])} of 1 seeds"
    assert (tmp_path / "figure2.png").stat().st_size > 10_000


# ---- false claims of the rivals -----------------------------------------------------------------------------


class Bar:
    update = lambda *_: None


def test_the_interval_by_hand():
    """With none or all of n claimed one end solves q^n = 0.025; with 1 of 2 both ends are 1 - or + sqrt(0.975)."""
    assert errors.interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))  # 0.3085
    assert errors.interval(10, 10) == pytest.approx((0.025**0.1, 1))
    assert errors.interval(1, 2) == pytest.approx((1 - 0.975**0.5, 0.975**0.5))


def found_of(claimed):
    verdicts = [verdict_row("EEF", "published", 0.01, "other", one) for one in claimed]
    verdicts += [verdict_row("EWE", "T2", level, "same", level > 0.01) for level in (0.05, 0.001) for _ in range(2)]
    return {"verdicts": verdicts, "benign": {"same": [0.9, 0.95], "other": [0.5]},
            "sources": {"EWE": {"claimed": False, "hits": 3, "of": 50}, "EEF": {"claimed": True}},
            "perceptrons": [{"source": {"claim": claim}} for claim in (True, False)]}


def test_false_claims_are_counted_for_each_method_test_level_and_what_is_shared(tmp_path, capsys):
    (tmp_path / "rivals.json").write_text(json.dumps(found_of([True] * 9 + [False])))
    rivals.main(["--redraw", "--out", str(tmp_path)])
    text = (tmp_path / "rivals.md").read_text()
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| E")]
    assert [line[0].removeprefix("| ") for line in table] == ["EEF", "EWE", "EWE"]
    assert table[0][2:5] == ["0.01", "none of its images", "9 of 10"] and "0.555 to 0.997" in table[0][5]
    assert [line[2:5] for line in table[1:]] == [["0.05", "the source's images", "2 of 2"],
                                                 ["0.001", "the source's images", "0 of 2"]]
    assert "EWE NOT claimed, 3 of 50 triggers hit; EEF claimed; DI claimed in 1 of 2 draws" in text
    assert "test accuracy 90.0 to 95.0 %" in text and text in capsys.readouterr().out


def test_a_bank_holds_five_others_and_t1_needs_none(monkeypatch):
    asked = []

    def ask(*words):
        asked.append([str(word) for word in words])
        tests = {"T1": {"log10_p": -1.0}, "T2": {"log10_p": -2.0},
                 "T4": {"log10_p": math.log10(1 / 6 if words[3] == "same3" else 2 / 6)}}
        return words[-1] > 0.01, {"hits": 1, "triggers": 50, "tests": tests}

    monkeypatch.setattr("figures.false_claims.verdicts.ask_verify", ask)
    benign = {"same": [f"same{i}" for i in range(7)], "other": ["other0", "other1"]}
    source, verdicts = trigger_verdicts("RS", "source", benign, Bar())
    assert not source["claimed"] and len(verdicts) == 9 * 3
    for words in asked:
        suspect, bank = words[3], words[words.index("--benign") + 1 : words.index("--alpha")]
        assert len(set(bank)) == 5 and set(bank) <= set(benign["same"]) - {suspect}
    assert [v["claimed"] for v in verdicts if v["test"] == "T4"] == [i == 3 for i in range(9)]
    assert [v["claimed"] for v in verdicts if v["test"] == "T2"] == [True, False] * 9
    asked.clear()
    _, verdicts = trigger_verdicts("margin", "source", benign, Bar())
    assert {v["test"] for v in verdicts} == {"T1"} and not any("--benign" in words for words in asked)


def test_the_models_that_calibrate_eef_are_not_judged(monkeypatch):
    def ask(*words):
        suspects = words[words.index("--suspect") + 1 :]
        bank = words[words.index("--benign") + 1 : words.index("--device")]
        assert bank == tuple(f"same{i}" for i in range(6)) and not set(bank) & set(suspects)
        row = {"log10_p": -3.0, "difference": 0.4, "above": 2, "published": True, "claim": False}
        return False, {"suspects": [row | {"model": run} for run in suspects]}

    monkeypatch.setattr("figures.false_claims.verdicts.ask_verify", ask)
    benign = {"same": [f"same{i}" for i in range(8)], "other": ["other0"]}
    _, verdicts = eef_verdicts("victim", benign, "images", Bar())
    assert [v["shares"] for v in verdicts] == ["same"] * 4 + ["other"] * 2
    assert [v["claimed"] for v in verdicts] == [True, False] * 3


def test_the_halves_share_no_training_image(tmp_path):
    halves = {name: tmp_path / name for name in HALVES}
    write_image_halves(halves)
    files = {name: {path.name for path in folder.glob("train/*/*.png")} for name, folder in halves.items()}
    assert not files["same"] & files["other"] and len(files["same"] | files["other"]) == 1438
    assert all(len(list(folder.glob("test/*/*.png"))) == 359 for folder in halves.values())


@pytest.mark.parametrize("flags, words", [
    (("--same", "6"), "--same 6"), (("--repeats", "0"), "at least 1"), (("--redraw",), "leave the flag out"),
])
def test_a_measurement_of_rivals_is_refused_before_it_begins(tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as end:
        rivals.main([*flags, "--out", str(tmp_path), "--dir", str(tmp_path / "runs")])
    assert end.value.code == 2 and words in capsys.readouterr().err and not list(tmp_path.iterdir())
