"""Images: data sets and folders of images, their fixed split, and augmented batches."""
