"""The paper's tables and figures: its numbers, the runs that each needs, and the files that show both side by side.

May import utils.ownership.pvalues and utils.system; runs are only commands here and are started by figures.make.
Knows nothing of how a run trains, and nothing of figures.false_claims.
"""
