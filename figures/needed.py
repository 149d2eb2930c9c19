"""`python -m figures.needed`: how much of a mark a copy must keep, so that T1 and T1p claim it nine times in ten.

Before any training: m triggers, each label drawn among k candidates. At each trigger the copy's log-probabilities of
the candidates are independent standard normals, as an innocent model's, and the drawn one has `shift` more. It is
answered as drawn in a share r of the triggers; the kept share is (r - 1/k) / (1 - 1/k), 0 for an innocent model and 1
where all are answered as drawn. T1 sees the answers alone, T1p the numbers; each decides at half of p = 0.001, as where
both are run. Writes needed.json and needed.md.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from figures.shared import HERE, figure_parser, markdown_table, write_result
from utils.ownership import pvalues
from utils.system.refusals import COUNT, refuse_in_one_sentence

SIZES, CHOICES, POWER = (50, 100, 200), (2, 3), 0.9
LIMIT = np.log10(0.001 / 2)


@refuse_in_one_sentence
def main(argv=None):
    parser = figure_parser("needed", __doc__)
    parser.add_argument("--draws", type=COUNT, default=4000, help="simulated copies for each shift that is tried")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of needed.json and needed.md")
    args = parser.parse_args(argv)
    cells = [(m, k, test) for k in CHOICES for m in SIZES for test in ("T1", "T1p")]
    rows = [{"m": m, "k": k, "test": test} | smallest_shift(m, k, test, args.draws)
            for m, k, test in tqdm(cells, disable=None, leave=False)]
    command = f"python -m figures.needed --draws {args.draws}"
    text = (f"# How much of the mark must a copy keep?\n\n`{command}`; log-probabilities are simulated, no model is "
            f"asked.\n\n{needed_table(rows)}\n")
    write_result(args.out / "needed.json", {"command": command, "rows": rows}, text)


def simulated_copies(m: int, k: int, shift: float, draws: int):
    """Log-probabilities (draws, m, k) of candidates, of which number 0 was drawn, up to a constant for each trigger."""
    scores = np.random.default_rng(0).standard_normal((draws, m, k))
    scores[:, :, 0] += shift
    return scores


def claimed_share(scores, test: str) -> float:
    """Share of simulated copies (draws, m, k) that T1 or T1p claims."""
    draws, m, k = scores.shape
    if test == "T1":
        hits = (scores.argmax(2) == 0).sum(1)
        return float(np.mean([pvalues.binomial(h, m, 1 / k) <= LIMIT for h in hits]))
    everywhere, drawn = np.ones((m, k), bool), np.zeros(m, int)
    grid = np.rint(scores * pvalues.GRID).astype(int)
    return float(np.mean([pvalues.draw_tail(one, everywhere, drawn) <= LIMIT for one in grid]))


def smallest_shift(m: int, k: int, test: str, draws: int) -> dict:
    """By bisection in [0, 4] to 0.01: {"shift", "answered_as_drawn": r, "kept": (r - 1/k) / (1 - 1/k)}."""
    low, high = 0.0, 4.0
    while high - low > 0.01:
        middle = (low + high) / 2
        enough = claimed_share(simulated_copies(m, k, middle, draws), test) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    rate = float((simulated_copies(m, k, high, draws).argmax(2) == 0).mean())
    kept = (rate - 1 / k) / (1 - 1 / k)
    return {"shift": round(high, 3), "answered_as_drawn": round(rate, 4), "kept": round(kept, 4)}


def needed_table(rows: list[dict]) -> str:
    """Markdown: the kept share that each test needs, in per cent, with the triggers that are then answered as drawn."""
    by = {(row["m"], row["k"], row["test"]): row for row in rows}
    cell = lambda row: f"{100 * row['kept']:.0f} % ({row['m'] * row['answered_as_drawn']:.0f} of {row['m']})"
    lines = [[f"{test}, k = {k}", *(cell(by[m, k, test]) for m in SIZES)] for k in CHOICES for test in ("T1", "T1p")]
    return markdown_table(["kept share needed (answered as drawn)", *(f"m = {m}" for m in SIZES)], lines)


if __name__ == "__main__":
    main()
