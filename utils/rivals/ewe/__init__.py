"""EWE, Entangled Watermark Embedding (Jia et al., USENIX Security 2021): triggers that share features with a class.

May import utils.ownership and everything below it. Knows nothing of the other rivals or of attacks.
"""
