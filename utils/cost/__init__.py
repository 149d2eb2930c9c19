"""The benchmark: what a training step and an epoch cost, ours against the official code's, and what rivals add.

May import everything in utils except the doors. Knows nothing of figures; no training imports it.
"""
