"""Where the labels of a trigger set come from, which decides how much T1 is worth to somebody who trusts nobody.

T1 is exact if the labels were drawn once, uniformly. An owner who lies may have tried many draws, or matched images to
labels. So a stranger believes T1 as it is where later public randomness drew the labels ("beacon"), times the number of
seeds where a seed of the owner's did ("seed"), and not at all where the owner chose them ("chosen").
"""

import math
from typing import NamedTuple

from utils.ownership.commitment import Commitment, labels_match_seed
from utils.watermark.prepared import checked_beacon, image_commitment, labels_from_beacon
from utils.watermark.triggers import TriggerSet, labels_are_uniform

SEEDS = 2**31  # what --seed takes


class LabelOrigin(NamedTuple):
    """kind "beacon", "seed" or "chosen"; for "chosen" `why` says what rules out the others, else what was recomputed.

    beacon_name, beacon, image_commitment  of kind "beacon", else None
    """

    kind: str
    why: str
    beacon_name: str | None = None
    beacon: str | None = None
    image_commitment: str | None = None

    @property
    def penalty(self) -> float:
        """What a stranger adds to log10 p of T1: a Bonferroni bound over everything that could have been tried."""
        return math.log10(SEEDS) if self.kind == "seed" else 0.0


def label_origin(triggers: TriggerSet, classes: int, commitment: Commitment, beacon: str | None = None,
                 published_images: str | None = None) -> LabelOrigin:
    """Recompute the labels of a committed trigger set from its beacon or its seed.

    classes            number of classes
    beacon             the beacon's value as who decides has read it at its source, where he has
    published_images   the image commitment as it was published, where he has read that
    """
    settings, choices = commitment.settings, triggers.candidates.shape[1]
    chosen = lambda why: LabelOrigin("chosen", why)
    if commitment.state != "match":
        return chosen(f"the commitment is {commitment.state}: nothing shows that the labels were fixed beforehand")
    strategy = settings.get("label_strategy")
    if settings.get("train_type") in (None, "none") or not labels_are_uniform(strategy):
        kind = f"{settings.get('train_type')}, {strategy}"
        return chosen(f"the labels were not drawn uniformly from the wrong ones ({kind})")
    if choices != (settings.get("label_choices") if strategy == "plausible" else 0):
        return chosen(f"{choices} candidates a trigger are not those of the committed settings ({strategy})")
    if settings.get("image_commitment") is not None:
        return _from_beacon(triggers, classes, settings, beacon, published_images)
    if beacon or published_images:
        return chosen("the owner committed to a seed, and to no images and beacon")
    seed = settings.get("seed")
    if not (isinstance(seed, int) and 0 <= seed < SEEDS and labels_match_seed(triggers, classes, settings)):
        return chosen(f"the labels are not those that the committed seed draws (under PyTorch {commitment.torch} they "
                      "should be)")
    return LabelOrigin("seed", "they are those that the owner's seed draws")


def _from_beacon(triggers, classes: int, settings: dict, read: str | None, published: str | None) -> LabelOrigin:
    record = settings["image_commitment"]
    try:
        parts = {name: record[name] for name in ("classes", "settings", "beacon_name", "salt")}
        digest, beacon = image_commitment(triggers, **parts), checked_beacon(settings["beacon"])
        drawn = labels_from_beacon(digest, beacon, triggers.true_labels, classes, triggers.candidates)
        name = str(record["beacon_name"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
        return LabelOrigin("chosen", "the record of the image commitment is damaged")
    if digest != record.get("sha256"):
        return LabelOrigin("chosen", "the images are not those of the image commitment")
    if not bool((drawn == triggers.labels).all()):
        return LabelOrigin("chosen", f"the labels are not those that the beacon {beacon[:16]}... draws")
    if read and read != beacon:
        return LabelOrigin("chosen", f"the owner's value {beacon[:16]}... is not that of the beacon {name!r}")
    if published and published != digest:
        return LabelOrigin("chosen", "the image commitment is not the published one")
    return LabelOrigin("beacon", f"they follow from the image commitment {digest} and the beacon {name!r} = {beacon}",
                       name, beacon, digest)
