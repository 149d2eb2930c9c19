"""The paper's tables and figures: the runs that each needs, and the files that show both side by side.

Runs are commands here, which `start` starts; figures.make is the door. The paper's numbers are in utils.published. May
import that, utils.ownership.pvalues, utils.pages and utils.system. `ten_steps` alone, a process of its own, knows how
a run trains. Knows nothing of figures.false_claims.
"""
