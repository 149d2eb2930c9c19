"""Commands of the figures package: the words and numbers they print follow from the runs they read."""

import itertools
import json
import math
import os

import numpy as np
import pytest
import torch
from commands import good, refused
from scipy import stats
from torch import nn

from figures import akh, defences, demo, forger, null, power, regime, rivals, survive, toy
from figures.needed import claimed_share
from figures.rows import collect_rows, rows_table
from figures.shared import HERE, markdown_table, write_result
from utils.data.sets import load_data
from utils.watermark.triggers import TriggerSet, draw_triggers


def test_the_demos_verdict_follows_from_its_table():
    """Two tests double p: log10 p of -3.4 is -3.1 and claims, -3.2 is -2.9 and does not."""
    def verdict(**found):
        rows = {tuple(key.split("_")): {"log10_p": {"T1": -0.1, "T1p": p}, "trigger_hits": 1, "trigger_size": 2,
                                        "test_accuracy": 0.99 if key == "none_benign" else 0.7}
                for key, p in found.items()}
        return demo.verdict(rows)

    rest = {"margin_hard": -0.5, "base_soft": -0.9, "margin_source": -40}
    text = verdict(**rest, margin_soft=-3.4, none_benign=-0.1)
    assert text.startswith("Claimed as copies (p <= 0.001): the margin source's soft copy (p = 10^-3.1). Not claimed: ")
    assert all(name in text.split("Not claimed")[1] for name in ("hard copy", "ERM source's soft copy", "benign model"))
    assert text.endswith("costs 29 points of accuracy.")
    text = verdict(**rest, margin_soft=-3.2, none_benign=-3.4)
    assert "Claimed as copies (p <= 0.001): the benign model WRONGLY (p = 10^-3.1)." in text


@pytest.mark.parametrize("name", ["akh", "cost", "defences", "demo", "forger", "make", "needed", "null", "power",
                                  "regime", "rivals", "rows", "survive", "toy"])
def test_a_command_needs_no_docstring(name, monkeypatch):
    """PYTHONOPTIMIZE=2 leaves them out."""
    monkeypatch.setattr(f"figures.{name}.__doc__", None)
    refused(f"figures.{name}", "--nonsense")


def test_the_demo_makes_its_table_and_goes_on_from_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "COMMON", f"{demo.COMMON} -ep 1 --train-size 128")
    said = good("figures.demo", "-d", tmp_path)
    assert "margin: source" in said and "margin watermark costs" in said
    assert good("figures.demo", "-d", tmp_path).splitlines()[-1] == said.splitlines()[-1]


TABLES = {  # a page beside its JSON -> the text or the table that this gives
    "demo_seeds": demo.seeds_markdown, "null": null.null_markdown, "power": power.power_markdown,
    "rivals": lambda found: rivals.rivals_markdown(found | {"rows": rivals.count_verdicts(found["verdicts"])}),
    "regime": regime.format_table, "regime-narrow": regime.format_table,
    "forger": lambda found: forger.forger_table(found["rows"]), "marked_beacon": rows_table,
    "defences": lambda found: defences.defences_table(found["rows"]),
    "defences_digits": lambda found: defences.defences_table(found["rows"])}


@pytest.mark.parametrize("name", TABLES)
def test_a_committed_page_is_what_its_json_gives(name):
    found, page = json.loads((HERE / f"{name}.json").read_text()), (HERE / f"{name}.md").read_text()
    text = TABLES[name](found)
    assert page == text if text.startswith(("# ", "On ")) else text in page


@pytest.mark.parametrize("name, draw", [("power", power.draw_power), ("regime", regime.draw),
                                        ("survive", survive.draw)])
def test_a_committed_picture_can_be_drawn_anew(name, draw):
    assert draw(json.loads((HERE / f"{name}.json").read_text())).startswith(b"\x89PNG")


def a_run(folder, seed, hits, p, **more):
    folder.mkdir(parents=True)
    log10_p = {"T1": p, "T1p": 2 * p, "T1_conservative": p / 2, "T3": None, "p_subset": None}
    figures = {"test_accuracy": 0.5 + seed / 10, "trigger_hits": hits, "trigger_size": 50, "log10_p": log10_p}
    summary = {"role": "surrogate", "attack": "soft", "seed": seed, "teacher_bn": "paper", **figures, "clean": None}
    summary |= {"dataset": "digits", "dataset_source": "svhn", "model": "res18", "width": 4}
    about = {"settings": {"train_type": "margin", "message": f"s{seed}"}, "command": ["extraction.py", "--seed", "1"]}
    about |= {"device": "cpu", "torch": "2", "threads": 1, "git_commit": "abc"}
    (folder / "summary.json").write_text(json.dumps(summary | more))
    (folder / "run.json").write_text(json.dumps(about))


def test_runs_that_differ_in_the_seed_share_a_row(tmp_path):
    assert "no finished run" in refused("figures.rows", tmp_path)
    a_run(tmp_path / "s1" / "extraction", 1, 10, -3.0)
    a_run(tmp_path / "s2" / "extraction", 2, 14, -5.0)
    a_run(tmp_path / "s1" / "other", 1, 2, -0.2, teacher_bn="clean")
    paper, clean = collect_rows(tmp_path)
    assert (paper["statistics"], paper["seeds"], paper["trigger_hits"]) == ("paper", [1, 2], [10, 14])
    assert paper["log10_T1_harmonic_mean"] == pytest.approx(math.log10(2 / (1e3 + 1e5)))
    # mean of 60 and 70 is 65, their sample deviation 10 / sqrt(2)
    text = "| margin | surrogate soft | paper | digits, thief's svhn | res18 width 4 | s1 s2 | 2 | 65.00 ± 7.07 | "
    text += "10/50, 14/50 | -3.00, -5.00 | -6.00, -10.00 | -1.50, -2.50 | -4.70 |"
    assert text in rows_table([paper, clean]) and clean["statistics"] == "clean"
    assert "| 2 runs of 1 |" in rows_table([paper | {"seeds": [1, 1]}])  # tags are no seeds
    a_run(tmp_path / "s3" / "extraction", 3, 9, -9.0, source_sha256="of an earlier training")
    (tmp_path / "s3" / "checkpoints").mkdir()
    for name in ("nat_best", "latest"):
        (tmp_path / "s3" / "checkpoints" / f"checkpoint_{name}.pt").write_text("weights")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "summary.json").write_text("{}")
    os.mkfifo(tmp_path / "s3" / "checkpoints" / "checkpoint_latest_clean.pt")
    assert collect_rows(tmp_path) == [paper, clean]
    assert markdown_table(["a"], [["\x1b[2J"]]).endswith("| \\x1b[2J |")
    write_result(tmp_path / "v0.25", [paper], "text")
    assert json.loads((tmp_path / "v0.25.json").read_text()) == [paper] and (tmp_path / "v0.25.md").exists()
    file = tmp_path / "s2" / "extraction" / "run.json"
    about = json.loads(file.read_text())
    # flags that the copy of s1 is older than change nothing, other images do
    for more, seeds in (({"image_size": None, "adam": None}, [[1], [1, 2]]), ({"data_sha256": "x"}, [[1], [1], [2]])):
        file.write_text(json.dumps(about | {"settings": about["settings"] | more}))
        assert sorted(row["seeds"] for row in collect_rows(tmp_path)) == seeds
    a_run(tmp_path / "last", 1, 2, -0.1)
    (tmp_path / "last" / "run.json").write_text('{"settings": []}')
    assert "is damaged or foreign" in refused("figures.rows", tmp_path / "last")


def test_the_toy_counts_the_seeds_that_show_its_claim(tmp_path):
    toy.main(["--seeds", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "figure2.json").read_text())
    kept = [found["seeds"][0]["panels"][name]["trigger_correct"] for name in toy.TITLES]
    assert found["seeds"][0]["claim_shows"] == (kept == [True, False, True, True])
    assert found["claim_shows"] == f"{int(kept == [True, False, True, True])} of 1 seeds"
    assert (tmp_path / "figure2.png").stat().st_size > 10_000


def test_doubled_ranks_by_hand():
    p = np.array([[0.4, 0.1, 0.3, 0.1, 0.1]])
    allowed = np.array([[False, True, True, True, False]])
    ranks = power.doubled_ranks(p, allowed)[0]
    assert ranks[2] == 6 and ranks[1] == ranks[3] == 3  # third of three; first and second share 1.5


def test_the_table_is_what_the_answers_give():
    with np.load(HERE / "akh.npz", allow_pickle=False) as data:
        found = akh.collect_rows(data)
        accuracies = dict(zip(data["names"].tolist(), (data["answers"] == data["labels"]).mean(axis=1).tolist()))
    assert akh.markdown(found, accuracies) == (HERE / "akh.md").read_text()


def test_eleven_of_eleven_coins_are_needed_and_enough():
    """2^-11 is the first power below 0.0005; one miss of eleven is 12 * 2^-11."""
    for m, claimed in ((10, 0.0), (11, 1.0)):
        sure = np.array([[[1.0, 0]] * m])
        assert claimed_share(sure, "T1") == claimed_share(sure, "T1p") == claimed
    assert claimed_share(np.array([[[1.0, 0]] * 10 + [[0, 1]]]), "T1") == 0
    # T1p: the label that was not drawn is ahead once, by nearly nothing: 2 of 2^12 sums are as large
    assert claimed_share(np.array([[[1, 0]] * 11 + [[0, 0.125]]]), "T1p") == 1


def test_no_innocent_model_is_claimed_more_often_than_alpha():
    """300 draws of 16 labels: each share of p <= alpha is one that a rate of alpha explains."""
    true = torch.arange(16)[:, None] % 5
    triggers = TriggerSet(torch.zeros(16, 3, 32, 32, dtype=torch.uint8), true[:, 0], true)
    logits = np.random.default_rng(0).normal(size=(2, 16, 5))
    logits[0, np.arange(16), np.arange(16) % 5] += 3  # the good model is right where it is sure
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    found = null.simulate_null(triggers, null.suspects_of(*p), [str(i) for i in range(5)], 300)
    assert set(found) == {"C - 1", "k = 2"}
    for kind, suspects in found.items():
        assert set(suspects) == {"good", "poor", "constant", "permuted"}
        for (name, tests), test, alpha in itertools.product(suspects.items(), null.TESTS, (0.3, 0.1, 0.01)):
            k = int((np.array(tests[test]) <= math.log10(alpha) + 1e-4).sum())
            assert len(tests[test]) == 300 and stats.binom.sf(k - 1, 300, alpha) > 1e-4, (kind, name, test, alpha, k)


class OneLabel(nn.Module):
    """Answers the same class to every image."""

    def __init__(self, label):
        super().__init__()
        self.logits = nn.Parameter(torch.eye(10)[label])

    def forward(self, x):
        return self.logits.expand(len(x), 10)


def test_the_best_seed_is_the_luckiest_of_those_tried():
    """The suspect answers 3 to everything: T1 by hand from the binomial of the answers that are not the true label."""
    digits = load_data("digits")
    found = forger.forge_seeds(OneLabel(3), digits, 60)
    best = 0.0
    for seed in range(60):
        triggers = draw_triggers(digits.held_out, 40, 1, 10, seed)
        wrong = int((triggers.true_labels[:, 0] != 3).sum())
        hits = int((triggers.labels == 3).sum())
        if hits > 2:
            best = min(best, math.log10(stats.binom.sf(hits - 1, wrong, 1 / 9)))
    assert found["log10_p"] == pytest.approx(best) and best < -1
    assert found["stranger_log10_p"] is None and not found["stranger"]  # labels of a seed are none for a stranger


def test_many_image_commitments_win_no_more_than_their_number():
    found = forger.forge_beacon(OneLabel(3), load_data("digits"))
    assert -3.5 < found["log10_p"] == found["stranger_log10_p"] < 0
