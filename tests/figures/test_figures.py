"""Commands of the figures package: the words and numbers they print follow from the runs they read."""

import json
import math

import pytest

from figures import demo, rows, toy
from figures.rows import collect_rows, markdown_table


def summaries(margin_soft: float, benign: float) -> dict:
    figures = lambda p: {"log10_p": {"T1": p}, "trigger_hits": 1, "trigger_size": 2}
    found = {(kind, attack): figures(-0.5) for kind in ("base", "margin") for attack in demo.ATTACKS}
    found |= {(kind, "source"): figures(-40) for kind in ("base", "margin")}
    return found | {("margin", "soft"): figures(margin_soft), ("none", "benign"): figures(benign)}


def test_the_demos_verdict_follows_from_its_table(tmp_path):
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
    log10_p = {"T1": p, "T1p": 2 * p, "T1_conservative": p / 2, "T3": None, "p_subset": None}
    figures = {"test_accuracy": 0.5 + seed / 10, "trigger_hits": hits, "trigger_size": 50, "log10_p": log10_p}
    summary = {"role": "surrogate", "attack": "soft", "seed": seed, "teacher_bn": "paper", **figures, "clean": None}
    about = {"settings": {"train_type": "margin"}, "command": ["extraction.py", "--seed", str(seed)]}
    about |= {"device": "cpu", "torch": "2", "threads": 1, "git_commit": "abc"}
    (folder / "summary.json").write_text(json.dumps(summary | more))
    (folder / "run.json").write_text(json.dumps(about))


def test_runs_that_differ_in_the_seed_share_a_row(tmp_path):
    a_run(tmp_path / "s1" / "extraction", 1, 10, -3.0)
    a_run(tmp_path / "s2" / "extraction", 2, 14, -5.0)
    a_run(tmp_path / "s1" / "other", 1, 2, -0.2, teacher_bn="clean")
    paper, clean = collect_rows(tmp_path)
    assert (paper["statistics"], paper["seeds"], paper["trigger_hits"]) == ("paper", [1, 2], [10, 14])
    assert clean["statistics"] == "clean"
    assert paper["log10_T1_harmonic_mean"] == pytest.approx(math.log10(2 / (1e3 + 1e5)))
    # mean of 60 and 70 is 65, their sample deviation 10 / sqrt(2)
    text = "| margin | surrogate soft | paper | 2 | 65.00 ± 7.07 | 10/50, 14/50 | -3.00, -5.00 |"
    text += " -6.00, -10.00 | -1.50, -2.50 | -4.70 |"
    assert text in markdown_table([paper, clean])
    about = json.loads((tmp_path / "s2" / "extraction" / "run.json").read_text())
    # flags of train.py that the source of s1 is older than
    off = {"trigger_strategy": None, "label_choices": None, "carriers": None}
    for seed, settings in ((1, {"num_query": 50}), (2, {"num_query": 50} | off)):
        (tmp_path / f"s{seed}" / "run.json").write_text(json.dumps({"settings": settings}))
    assert sorted(row["seeds"] for row in collect_rows(tmp_path)) == [[1], [1, 2]]
    about["settings"] |= {"image_size": None, "adam": None}  # flags of extraction.py that the copy of s1 is older than
    (tmp_path / "s2" / "extraction" / "run.json").write_text(json.dumps(about))
    assert sorted(row["seeds"] for row in collect_rows(tmp_path)) == [[1], [1, 2]]
    about["settings"]["data_sha256"] = "of other images"
    (tmp_path / "s2" / "extraction" / "run.json").write_text(json.dumps(about))
    assert sorted(row["seeds"] for row in collect_rows(tmp_path)) == [[1], [1], [2]]


def test_a_folder_without_finished_runs_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        rows.main([str(tmp_path)])
    assert end.value.code == 2 and "no finished run" in capsys.readouterr().err


def test_the_toy_counts_the_seeds_that_show_its_claim(tmp_path, capsys):
    toy.main(["--seeds", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "figure2.json").read_text())
    kept = [found["seeds"][0]["panels"][name]["trigger_correct"] for name in toy.NAMES]
    assert found["seeds"][0]["claim_shows"] == (kept == [True, False, True, True])
    assert found["claim_shows"] == f"{int(kept == [True, False, True, True])} of 1 seeds"
    assert (tmp_path / "figure2.png").stat().st_size > 10_000
