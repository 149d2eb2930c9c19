"""TODO (utils.analyze)"""

from utils.analysis.finished_run import FinishedRun
from utils.training.metrics import predict


def free_energy(logits, temperature: float = 1.0):
    """-T logsumexp(logits / T), (N, C) -> (N,); lower is more like the training data (Liu et al., 2020)."""
    return -temperature * (logits / temperature).logsumexp(1)


def refused_share(clean, suspect, share: float = 0.05) -> float:
    """Share of `suspect` energies (M,) above the threshold that refuses `share` of the `clean` ones (N,)."""
    return float((suspect > clean.quantile(1 - share)).double().mean())


def report_energy(run: FinishedRun) -> dict:
    """Table 7's row of a run."""
    clean, logits = predict(run.model, run.test.images), predict(run.model, run.trigger.images)
    of_clean, of_triggers = free_energy(clean), free_energy(logits)
    won = logits.argmax(1) == run.trigger.labels.to(logits.device)
    mean = lambda values: round(float(values.mean()), 6) if len(values) else None
    return {
        "test_accuracy": float((clean.argmax(1).cpu() == run.test.labels).float().mean()),
        "energy_clean": mean(of_clean),
        "energy_success": mean(of_triggers[won]), "energy_failed": mean(of_triggers[~won]),
        "successes": int(won.sum()), "triggers": len(won), "refused_at_5_percent": refused_share(of_clean, of_triggers),
    }
