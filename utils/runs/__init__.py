"""Runs on disk: the run folder, its checkpoints, and networks and weights from outside."""
