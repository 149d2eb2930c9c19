"""Folders of small pictures, as a user might bring them."""

import numpy as np
from PIL import Image


def photos(root, parts=("train", "test"), classes=("cat", "dog"), n=15, seed=0):
    """Small pictures of several sizes, modes and formats."""
    modes = [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("RGB", "jpg"), ("CMYK", "jpg"), ("1", "bmp"),
             ("LA", "png")]
    rng = np.random.default_rng(seed)
    for part in parts:
        for c, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                mode, ending = modes[i % len(modes)]
                size = [(32, 32), (48, 20), (7, 90), (1, 1), (64, 64)][i % 5]
                colour = np.full((size[1], size[0], 3), 50 + 65 * c, np.uint8) + rng.integers(0, 40, 3).astype(np.uint8)
                Image.fromarray(colour).convert(mode).save(folder / f"{i:03}.{ending}")
    return root


def damage(root):
    """Add a truncated picture, a text file named .png and a link to nothing."""
    good = (root / "train" / "cat" / "004.jpg").read_bytes()
    (root / "train" / "cat" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (root / "train" / "dog" / "text.png").write_text("no picture")
    (root / "test" / "dog" / "lost.png").symlink_to(root / "nowhere.png")
    return root
