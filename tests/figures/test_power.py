"""figures.power: ranks by hand, disguises keep what they should, and the table and picture from rows."""

import json

import numpy as np
import pytest

from figures import power
from utils.ownership import pvalues


def test_doubled_ranks_by_hand():
    p = np.array([[0.4, 0.1, 0.3, 0.1, 0.1]])
    allowed = np.array([[False, True, True, True, False]])
    ranks = power.doubled_ranks(p, allowed)[0]
    assert ranks[2] == 6 and ranks[1] == ranks[3] == 3  # third of three; first and second share 1.5


def test_the_first_score_is_that_of_t1p():
    p, true = np.random.default_rng(0).dirichlet(np.ones(6), 9), np.arange(9)[:, None] % 6
    assigned = (true[:, 0] + 1) % 6
    allowed = pvalues.drawn_from(p.shape, true)
    first = next(iter(power.SCORES.values()))
    assert pvalues.draw_tail(first(p, allowed), allowed, assigned) == pvalues.score_randomisation(p, assigned, true)


def test_table_and_picture_follow_from_the_rows(tmp_path):
    def row(copy, seed, m, t1, t1p):
        return {"copy": copy, "seed": seed, "m": m, "hits": 1, "T1": t1, "scores": dict.fromkeys(power.SCORES, t1p),
                "disguises": dict.fromkeys(power.DISGUISES, {"T1": t1, "T1p": t1p}),
                "queries": {n: {"T1": [t1], "T1p": [t1p, -1.0]} for n in (m // 2, m)}}

    rows = [row(copy, seed, m, -2.0, -4.0 + seed) for copy in (*power.COPIES, "benign") for seed in (0, 5)
            for m in (10, 20)]
    found = {"command": "python -m figures.power", "torch": "2", "threads": 1, "rows": rows}
    text = power.power_markdown(json.loads(json.dumps(found)))
    assert "| soft | 0, 1 of 2; -2.00, -1.50 | 0, 1 of 2; -2.00, -1.50 |" in text
    assert "| rank | 0 to 2 | 1 of 1; -4.00" in text and "| rank | others | 0 of 1; 1.00" in text
    assert power.draw_power(json.loads(json.dumps(found))).startswith(b"\x89PNG")
    assert power.claimed([-3.0, -2.9]) == pytest.approx(0.5)
