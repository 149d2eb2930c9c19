"""What the paper states: its numbers, and which of them belong beside a run.

Imports nothing of this project. `numbers` needs the standard library alone, because Snakemake reads it in an
environment of its own.
"""
