"""Settings of figures.rivals: flags of the sources and of the benign models, levels, and titles for rivals.md.

HALVES names what a benign model shares with the source: the same half of the training images, or the other one.
"""

from utils.ownership.verdict import MIN_BANK

ALPHAS = (0.05, 0.001)
COMMON = "-dt folder -mt vgg11 --width 8 --batch-size 32 --select last --device cpu"
BENIGN = "-tt none -nq 1 -ep 10"
SOURCES = {
    "margin": "-tt margin -nq 50 -ep 12 --reduction sum -v 1 --steps 5 --step-size 4",
    "EWE": "-tt ewe -nq 50 -ep 8 --ewe-epochs 4 --ewe-source 9",
    "RS": "-tt rs -nq 50 -ep 24 --rs-draws 2 --rs-sigma-step 0.25 --rs-freeze-bn",
    "EEF": "-tt none -nq 1 -ep 10 --embed-features 0.2",
}
EEF_FLAGS = "--epochs 20"  # of utils.verify eef
HALVES = {"same": "the source's images", "other": "none of its images"}
TESTS = {
    "T1": "T1", "T2": f"T2, and more hits than each of {MIN_BANK} others",
    "T4": f"T4: more hits than each of {MIN_BANK} others",
    "published": "as published, beside one benign model",
    "calibrated": f"the same, and above each of {MIN_BANK} others",
    "Blind Walk": "as published, Blind Walk",
}
