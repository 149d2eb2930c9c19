"""Somebody's API: `python tests/api.py MODEL IMAGE.png...` prints `name,label` a line, of one image the label alone."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, restore_model

checkpoint = load_checkpoint(find_checkpoint(sys.argv[1], "last"))
model = restore_model(checkpoint, sys.argv[1])
for path in sys.argv[2:]:
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
    label = checkpoint["about"]["classes"][int(model(pixels).argmax())]
    print(label if len(sys.argv) == 3 else f"{Path(path).name},{label}")
