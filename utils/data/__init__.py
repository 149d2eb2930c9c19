"""Images: data sets and folders of images, their fixed split, and augmented batches.

May import utils.system. Knows nothing of models, training or watermarks.
"""
