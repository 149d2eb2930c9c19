"""RS, certified watermarks by randomised smoothing (Bansal et al., 2022): training and certificate with noisy weights.

May import utils.ownership and everything below it. Knows nothing of the other rivals or of attacks.
"""
