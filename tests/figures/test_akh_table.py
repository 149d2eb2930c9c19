"""`figures.akh`: akh.md is what akh.npz gives, and who counts as honest."""

import numpy as np

from figures.akh import HERE, collect_rows, count, markdown


def test_the_table_is_what_the_answers_give():
    with np.load(HERE / "akh.npz", allow_pickle=False) as data:
        rows = collect_rows(data)
        accuracies = dict(zip(data["names"].tolist(), (data["answers"] == data["labels"]).mean(axis=1).tolist()))
    assert markdown(rows, accuracies) == (HERE / "akh.md").read_text()
    honest = [row for row in rows if row["relation"] == "honest"]
    assert [count(honest, test) for test in ("naive", "equal", "akh")] == ["61 of 851", "4 of 851", "0 of 851"]
    assert all(0 <= row["k"] <= row["n"] and row["bank"] in (2, 3, 4) for row in rows)
