"""Free energy of test images and triggers (Table 7), and which share of the triggers an energy filter would refuse.

The filter is that of Liu et al. (2020): it refuses inputs of high energy, and its threshold is set so that it refuses
5 % of the clean test images.
"""

from utils.analysis.finished_run import FinishedRun
from utils.training.metrics import predict


def free_energy(logits, temperature: float = 1.0):
    """-T logsumexp(logits / T), (N, C) -> (N,); the lower, the more an input resembles the training data."""
    return -temperature * (logits / temperature).logsumexp(1)


def refused_share(clean, suspect, share: float = 0.05) -> float:
    """Share of the `suspect` energies (M,) above the threshold that refuses `share` of the `clean` energies (N,)."""
    return float((suspect > clean.quantile(1 - share)).double().mean())


def report_energy(run: FinishedRun) -> dict:
    """A run's row of Table 7; mean energies, separately for triggers that the model answers as assigned and others."""
    clean_logits, trigger_logits = predict(run.model, run.test.images), predict(run.model, run.triggers.images)
    clean_energy, trigger_energy = free_energy(clean_logits), free_energy(trigger_logits)
    hit = trigger_logits.argmax(1) == run.triggers.labels.to(trigger_logits.device)
    mean = lambda values: round(float(values.mean()), 6) if len(values) else None
    return {
        "test_accuracy": float((clean_logits.argmax(1).cpu() == run.test.labels).float().mean()),
        "energy_clean": mean(clean_energy),
        "energy_success": mean(trigger_energy[hit]), "energy_failed": mean(trigger_energy[~hit]),
        "successes": int(hit.sum()), "triggers": len(hit),
        "refused_at_5_percent": refused_share(clean_energy, trigger_energy),
    }
