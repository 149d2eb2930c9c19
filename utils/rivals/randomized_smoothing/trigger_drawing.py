"""RS's own triggers: one pattern, a word or noise, on held-out images, all under one label.

Departures from the authors' code: triggers are made of held-out images that are not of the label's class, not of
training images; the word is drawn by the seed and written in Pillow's built-in font (the authors: "Adobe" in Verdana).
"""

import random

import numpy as np
import torch

from utils.data.files import SIZE, join_images
from utils.data.sets import Data, Images
from utils.system.refusals import Refusal
from utils.watermark.triggers import TriggerSet

GREY, CORNER = (155, 155, 155), (0, 0)  # colour of the word, grey levels; its top left corner, pixels


def draw_rs_triggers(data: Data, m: int, label: int, kind: str, seed: int):
    """(`TriggerSet`, the held-out images that are left): one pattern on m held-out images, all labelled `label`.

    kind "text"   a word of five letters that the seed draws, in grey at the top left
    kind "noise"  one N(0, 1) tensor, added to every image in [0, 1] and clipped

    Images of class `label` are not used, because any good model would hit them. Raises Refusal where the class does
    not exist or there are too few images.
    """
    held_out, classes = data.held_out, len(data.classes)
    if label >= classes:
        raise Refusal(f"--rs-label {label}: {data.name} has {classes} classes, counted from 0; pass one of those")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(held_out.labels), generator=generator)
    usable = order[held_out.labels[order] != label]
    if m > len(usable) or m >= len(order):
        raise Refusal(f"-nq {m}: {len(usable)} held-out images are not of class {label}, and one image must be left "
                      f"for validation; pass -nq {min(len(usable), len(order) - 1)} or fewer")
    taken = usable[:m]
    source = held_out.pick(taken)
    if kind == "noise":
        noise = torch.randn(held_out.images.shape[1:], generator=generator)
        images = (source.images / 255 + noise).clamp(0, 1).mul(255).round().to(torch.uint8)
    else:
        letters = random.Random(seed)
        # letters of such a width that the word takes about 30 of 32 pixels
        word = letters.choice("ABDEGHKPR") + "".join(letters.choices("abdehknopqu", k=4))
        images = stamp_word(source.images, word)
    labels = torch.full((m,), label)
    triggers = TriggerSet(images, labels, source.labels[:, None], source.indices[:, None])
    return triggers, held_out.pick(order[torch.isin(order, taken, invert=True)])


def stamp_word(images, word: str):
    """uint8 images (m, 3, S, S) with `word` written on each, in letters 10 pixels high where S is 32."""
    from PIL import Image, ImageDraw, ImageFont

    size = images.shape[-1]
    font, stamped = ImageFont.load_default(*([10 * size / SIZE] if size != SIZE else [])), []
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        ImageDraw.Draw(picture).text(CORNER, word, fill=GREY, font=font)
        stamped.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(stamped)


def append_triggers(train: Images, triggers: TriggerSet) -> Images:
    """The training images, followed by the triggers under their assigned labels."""
    return Images(join_images(train.images, triggers.images), torch.cat([train.labels, triggers.labels]),
                  torch.cat([train.indices, triggers.sources[:, 0]]))
