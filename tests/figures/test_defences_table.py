"""figures.defences on a copy of digits."""

import json

import pytest
from commands import good
from digits_runs import SOURCE, STEAL, TRAIN

from figures.defences import main
from utils.attacks.defences import DEFENCES


def test_a_copy_is_measured_under_every_defence(tmp_path, capsys):
    good("train", "-d", tmp_path, "-tt", "margin", *TRAIN, "-ep", 2)
    good("extraction", "-e", tmp_path, *STEAL, "-at", "soft")
    copy, file = tmp_path / SOURCE / "extraction", tmp_path / "defences.json"
    main([str(copy), "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    summary = json.loads((copy / "summary.json").read_text())
    assert [row["defence"] for row in rows] == [defence.name for defence in DEFENCES]
    assert rows[0]["accuracy"] == pytest.approx(summary["test_accuracy"]) and rows[0]["refused"] == 0
    assert (rows[0]["hits"], rows[0]["log10_p"]) == (summary["trigger_hits"], summary["log10_p"]["T1"])
    refusing = next(row for row in rows if row["defence"].startswith("refuses the 20%"))
    assert refusing["accuracy"] < rows[0]["accuracy"]
    assert "| none; labels only, cached, delayed | 1 soft |" in (tmp_path / "defences.md").read_text()
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / SOURCE), "--json", str(file)])
    assert ended.value.code == 2 and "is no finished run of distill.py" in capsys.readouterr().err
