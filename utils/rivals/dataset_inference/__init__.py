"""DI, Dataset Inference (Maini et al., ICLR 2021): does a suspect know the source's training images?

May import utils.ownership and everything below it. Knows nothing of the other rivals or of attacks.
"""
