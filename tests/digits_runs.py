"""Flags and folder names of the runs on digits that the tests of the scripts share."""

DATA = ("-dt", "digits", "-nq", 10, "--train-size", 256, "--batch-size", 64, "--width", 4, "--device", "cpu")
TRAIN = (*DATA, "-mt", "res18", "--trigger-batch", 4, "--steps", 2, "-ep", 1)
STEAL = (*DATA, "-tmt", "res18", "-dmt", "res18", "-ep", 1)
SOURCE, BENIGN = "digits_res18_margin_10_", "digits_res18_none_10_"
RUNS = {  # of the fixture `world`: folder -> role, and a key of its summary with its value
    BENIGN: ("benign", "objective", "none"), "digits_res18_base_10_": ("source", "objective", "base"),
    SOURCE: ("source", "objective", "margin"), f"{SOURCE}/extraction": ("surrogate", "attack", "soft"),
    f"{SOURCE}/extraction_hard": ("surrogate", "attack", "hard"),
    f"{SOURCE}/extraction_reg": ("surrogate", "attack", "reg"),
    f"{SOURCE}/distillation": ("surrogate", "attack", "distill"),
}
