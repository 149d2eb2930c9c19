"""Training: the loop and its step, faster steps, several processes, and accuracy.

May import utils.system and models. Calls an `Objective` and knows of watermarks only what is measured of them.
"""
