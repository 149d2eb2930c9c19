"""Runs on disk: the run folder, its checkpoints, and the settings that say where a run is written.

May import utils.system and models. Knows nothing of how a model is trained or what a trigger is.
"""
