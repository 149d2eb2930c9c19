"""Training: the loop, one step, CUDA graphs, several processes, and accuracy.

May import utils.system. Calls an `Objective` and has never heard of watermarks.
"""
