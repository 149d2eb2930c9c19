"""What the paper states: NUMBERS[table][row, column] = (mean, sd or None).

Accuracies are in per cent; p-values are log10 of the stated order of magnitude. Where the paper shows values only in a
picture, there are none here. It imports the standard library alone, because Snakemake reads it in an environment of its
own.
"""

ACC, TRIG, P, P_SCORES = "accuracy %", "trigger %", "log10 p", "log10 p (T1p)"
MODELS = ("source", "soft", "hard", "reg")


def _row(row, column, means, sds=None):
    """The entries of one column for all `MODELS`, in their order."""
    return {(f"{row}, {m}", column): (v, sd) for m, v, sd in zip(MODELS, means, sds or [None] * 4)}


NUMBERS = {
    "table1": {("source", ACC): (93.10, None), ("source", TRIG): (100.0, None),
               ("soft", ACC): (90.60, None), ("soft", TRIG): (0.0, None)},
    "table2": {
        **_row("CIFAR-10 DI", ACC, (92.03, 92.50, 92.27, 92.23), (0.25, 0.17, 0.38, 0.59)),
        **_row("CIFAR-10 EEF", ACC, (91.86, 87.75, 86.86, 86.04), (0.22, 0.37, 0.61, 0.19)),
        **_row("CIFAR-10 EWE", ACC, (86.10, 83.97, 82.22, 88.88), (0.54, 1.02, 0.50, 0.35)),
        **_row("CIFAR-10 RS", ACC, (84.17, 88.93, 89.62, 90.14), (1.01, 1.18, 0.97, 0.08)),
        **_row("CIFAR-10 margin", ACC, (87.81, 91.17, 91.88, 93.05), (0.76, 0.76, 0.40, 0.20)),
        **_row("CIFAR-10 DI", P, (-3, -2, -2, -2)),
        **_row("CIFAR-10 EEF", P, (-7, -4, -4, -3)),
        **_row("CIFAR-10 margin", P, (-12, -8, -8, -8)),
        **_row("CIFAR-10 EWE", TRIG, (26.88, 51.01, 36.05, 1.64), (8.22, 5.58, 6.48, 1.05)),
        **_row("CIFAR-10 RS", TRIG, (95.67, 7.67, 6.33, 3.00), (4.93, 4.04, 1.15, 0.00)),
        **_row("CIFAR-10 margin", TRIG, (100.0, 82.0, 51.33, 72.67), (0.0, 1.0, 4.93, 6.66)),
        **_row("CIFAR-100 DI", ACC, (70.97, 72.70, 71.33, 72.87), (0.74, 0.26, 0.31, 0.59)),
        **_row("CIFAR-100 EWE", ACC, (55.11, 53.00, 46.78, 63.73), (1.67, 1.57, 1.00, 0.40)),
        **_row("CIFAR-100 RS", ACC, (59.87, 65.66, 65.79, 64.99), (2.78, 1.53, 0.39, 0.30)),
        **_row("CIFAR-100 margin", ACC, (62.13, 67.66, 70.65, 70.24), (4.36, 0.36, 0.49, 0.46)),
        **_row("CIFAR-100 DI", P, (-3, -2, -2, -2)),
        **_row("CIFAR-100 margin", P, (-10, -7, -6, -6)),
        **_row("CIFAR-100 EWE", TRIG, (68.14, 30.90, 15.10, 5.73), (10.16, 11.34, 5.64, 3.42)),
        **_row("CIFAR-100 RS", TRIG, (99.0, 2.67, 4.33, 2.0), (1.73, 1.53, 4.16, 1.0)),
        **_row("CIFAR-100 margin", TRIG, (100.0, 70.67, 40.0, 62.66), (0.0, 7.57, 8.89, 10.12)),
    },
    "table3": {("EWE", TRIG): (2.0, 2.0), ("RS", TRIG): (1.67, 0.0), ("margin", TRIG): (0.0, 0.0)},
    "table4": {("source", ACC): (87.81, 0.76), ("source", TRIG): (100.0, 0.0),
               ("soft, SVHN images", ACC): (63.99, 3.90), ("soft, SVHN images", TRIG): (72.0, 6.08),
               ("soft, VGG-11", ACC): (86.00, 2.17), ("soft, VGG-11", TRIG): (32.0, 7.21)},
    "table5": {(m, "margin, pixels in [0, 1]"): v for m, v in zip(
        MODELS, ((0.0232, 0.0011), (0.0094, 0.0006), (0.0078, 0.0008), (0.0080, 0.0005)))},
    "table6": {(f"k = {k}, {model}", column): (v, None) for k, values in (
        (2, (79.28, 100.0, 90.30, 42.0, 80.06, 67.0, 75.24, 89.0)),
        (5, (44.80, 100.0, 89.76, 10.0, 44.40, 83.0, 39.66, 85.0)),
    ) for (model, column), v in zip(
        ((m, c) for m in ("source", "distill", "soft", "soft, CIFAR-100 images") for c in (ACC, TRIG)), values)},
    "table7": {(m, c): (v, None) for m, values in (
        ("source", (84.14, -7.7472, -15.1316, None)), ("reg", (92.00, -7.8103, -7.2842, -6.9181)),
        ("soft", (86.62, -7.2169, -7.3657, -6.2308)), ("soft, other images", (80.10, -6.7147, -8.0391, -6.1190)),
    ) for c, v in zip((ACC, "energy of D", "energy of successes", "energy of failures"), values) if v is not None},
    "table8": {("source", ACC): (89.47, 0.66), ("source", TRIG): (100.0, 0.0),
               ("margin extraction", ACC): (84.94, 0.48), ("margin extraction", TRIG): (98.33, 0.58)},
    "table9": {("source", ACC): (87.81, 0.76), ("source", TRIG): (100.0, 0.0),
               ("fine-tuned", ACC): (90.64, 0.34), ("fine-tuned", TRIG): (82.33, 2.52)},
}
