"""EEF, embedded external features (Li et al., AAAI 2022): a secret style in a share of the training images.

May import utils.ownership and everything below it. Knows nothing of the other rivals or of attacks.
"""
