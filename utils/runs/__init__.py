"""Runs on disk: the run folder, its checkpoints, and networks and weights from outside.

May import utils.system and models. Knows nothing of how a model is trained.
"""
