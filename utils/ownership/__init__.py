"""Ownership: commitment to the trigger set, tests on a suspect's answers (T1 to T4), verdict, claim and report.

May import utils.data, utils.runs, utils.training, utils.watermark and utils.system. Knows nothing of how a suspect was
made: no attacks, no rivals.
"""
