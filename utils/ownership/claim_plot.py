"""The plot of a claim: p-value against the number of queries."""

from utils.system.machine import figure_png, new_figure


def draw_claim_plot(report: dict) -> bytes:
    """A PNG of the median and the 90 % band of log10 p in random orders; `report` of `OwnershipCase`, with a curve."""
    curve = report["curve"]
    figure, (ax,) = new_figure(6.4, 4, 1, 1)
    n = range(1, len(curve["median"]) + 1)
    ax.fill_between(n, curve["low"], curve["high"], alpha=0.25, lw=0, label="90 % of random orders")
    ax.plot(n, curve["median"], label="median")
    ax.axhline(report["limit"], color="black", ls="--", lw=1, label=f"claimed below 10^{report['limit']:.1f}")
    if report["sequential"]["decision"] == "claim":
        ax.axvline(report["sequential"]["queries"], color="tab:red", lw=1, label="sequential test stops")
    ax.set(xlabel="queries", ylabel=f"log10 p of {curve['test']}", xlim=(0, len(curve["median"])))
    ax.set_title(f"{report['hits']} of {report['triggers']} triggers hit", fontsize=10)
    ax.legend(fontsize=8)
    return figure_png(figure)
