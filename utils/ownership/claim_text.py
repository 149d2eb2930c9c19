"""The report of a claim in words."""

from utils.ownership.timestamp_token import Stamp, describe_stamp
from utils.ownership.verdict import BETA


def claim_sentence(report: dict) -> str:
    """The decision of a report (see `OwnershipCase.report`) in one sentence."""
    d, share = report["decision"], f"{report['hits']} of {report['triggers']} triggers"
    plausible = report["commitment"]["settings"].get("label_strategy") == "plausible"
    label = "assigned label" if plausible else "assigned wrong label"
    if d["rests_on"] == "SPRT":
        s = report["sequential"]
        if d["holds"]:
            return (f"The claim holds: after {s['queries']} queries a copy's hit rate explains the answers "
                    f"10^{s['log10_likelihood_ratio']:.1f} times as well as an independent model's.")
        return f"The claim does not hold: the sequential test said {s['decision']!r} after {s['queries']} queries."
    if "log10_p" not in d:
        return f"The claim does not hold: {d['why']}."
    p = f"10^{d['log10_p']:.1f}" if d["log10_p"] < -2 else f"{10 ** d['log10_p']:.2g}"
    chance = f"an independent model would do so with probability {p} at most ({d['rests_on']})"
    if d["holds"]:
        return (f"The claim holds: the suspect gave the {label} for {share}, and {chance}, "
                f"below {report['alpha']:g}.")
    return (f"The claim does not hold: the suspect gave the {label} for {share}, and {chance}, "
            f"above {report['alpha']:g}.")


def claim_text(report: dict) -> str:
    """The whole report as lines of text: commitment, hits, tests, sequential test, decision, sentence."""
    s, d = report["sequential"], report["decision"]
    lines = [head_lines(report)]
    lines.append(f"hits         {report['hits']} of {report['triggers']}, {report['answered']} answered")
    if report["before"]:
        lines.append(f"{'':<13}{report['before']}")
    titles = {"T1": "label randomisation", "T1p": "score randomisation", "T2": "benign rate", "T3": "paired t",
              "T4": "rank among benign"}
    for name, test in report["tests"].items():
        value = f"log10 p = {test['log10_p']:.2f}" if test["why_not"] is None else f"does not apply: {test['why_not']}"
        lines.append(f"{name:<13}{value} ({titles[name]})" if test["why_not"] is None else f"{name:<13}{value}")
        if name == "T1p" and report["stranger_log10_p"] is not None:
            lines.append(f"{'':<13}log10 p = {report['stranger_log10_p']:.2f} for who does not trust the owner")
    if s["decision"] == "does not apply":
        lines.append("sequential test does not apply")
    else:
        lines.append(f"sequential   {s['decision']} after {s['queries']} queries; H0 {s['H0']}, H1 {s['H1']}, "
                     f"errors {s['alpha']:g} and {BETA:g}")
    if report["curve"]:
        half, most = (report["curve"][key] or "more than all" for key in ("sufficed_half", "sufficed_95"))
        lines.append(f"queries      {half} suffice in half of all random orders, {most} in 95 % of them")
    if d["rests_on"]:
        lines.append(f"decision     for {report['decided_for']}, rests on {d['rests_on']} at alpha = "
                     f"{report['alpha']:g}: {d['why']}")
    return "\n".join([*lines, report["sentence"]])


def head_lines(report: dict) -> str:
    """What does not depend on the suspect: commitment and its date, origin of the labels, who was asked before."""
    c, stamps = report["commitment"], report["timestamps"]
    made = f" (SHA-256 {c['digest']}, made {c['created']})" if c["digest"] else ""
    lines = [f"commitment   {c['state']}{made}"]
    if c["digest"]:
        lines.append(f"date         {describe_stamp(Stamp(**stamps['commitment']))}")
    lines.append(_labels_line(report["labels"]))
    if stamps["images"]:
        lines.append(f"images       {describe_stamp(Stamp(**stamps['images']))}")
    return "\n".join([*lines, f"asked        {report['asked']}"])


def _labels_line(labels: dict) -> str:
    """Where the labels come from, see `LabelOrigin`."""
    origin = {"beacon": "drawn by public randomness", "seed": "drawn from a seed", "chosen": "not shown to be drawn"}
    return f"labels       {origin[labels['kind']]}: {labels['why']}"
