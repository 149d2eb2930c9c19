"""`figures.akh`: who counts as a copy and who as honest, and that akh.md is what akh.npz gives."""

import numpy as np

from figures.akh import HERE, collect_rows, count, markdown, relation


def test_a_copy_is_of_one_source_and_its_statistics_and_a_family_is_not_honest():
    assert relation("small/margin-s0", "small/margin-s0/soft") == "copy"
    assert relation("small/margin-s0@clean", "small/margin-s0/soft-clean") == "copy"
    assert relation("small/margin-s0@clean", "small/margin-s0/soft") is None
    assert relation("small/margin-s0", "small/margin-s0@clean") is None
    assert relation("mark/marked-s6", "mark/marked-s7/soft") is None  # both were fine-tuned from mark/none-s100
    assert relation("mark/marked-s6", "mark/none-s100") is None
    assert relation("small/margin-s0", "small/margin-s1/soft") == "honest"
    assert relation("small/base-s1@clean", "mark/none-s100") == "honest"
    assert relation("small/margin-s0@clean", "small/none-s0") == "seed"
    assert relation("narrow/shared-s0", "small/base-s0/soft") == "seed"
    assert relation("small/margin-s0", "r34/margin-s0@clean") == "honest"  # other weights at the start


def test_the_table_is_what_the_answers_give():
    with np.load(HERE / "akh.npz", allow_pickle=False) as data:
        rows = collect_rows(data)
        accuracies = dict(zip(data["names"].tolist(), (data["answers"] == data["labels"]).mean(axis=1).tolist()))
    assert markdown(rows, accuracies) == (HERE / "akh.md").read_text()
    honest = [row for row in rows if row["relation"] == "honest"]
    assert [count(honest, test) for test in ("naive", "equal", "akh")] == ["61 of 851", "4 of 851", "0 of 851"]
    assert all(0 <= row["k"] <= row["n"] and row["bank"] in (2, 3, 4) for row in rows)
