"""The plot of `utils.verify certify`: trigger accuracy against the size of the noise on the weights."""

from pathlib import Path

from utils.system.machine import figure_png, new_figure


def draw_noise_plot(results: list[dict]) -> bytes:
    """A PNG with two lines for each of `results`, the mean and the median of the noisy models' trigger accuracies."""
    figure, (ax,) = new_figure(6.4, 4, 1, 1)
    for i, result in enumerate(results):
        sigmas, means, medians = zip(*result["curve"])
        name = f"{result['role']} {Path(result['model']).name}"
        ax.plot(sigmas, [100 * v for v in means], "o-", ms=3, color=f"C{i % 10}", label=f"{name}, mean")
        ax.plot(sigmas, [100 * v for v in medians], "--", lw=1, color=f"C{i % 10}", label=f"{name}, median")
    ax.set(xlabel="standard deviation of the noise on the weights", ylabel="triggers answered, %", ylim=(-3, 103))
    ax.legend(fontsize=7)
    return figure_png(figure)
