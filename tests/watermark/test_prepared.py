"""Labels that an image commitment and public randomness draw."""

import pytest
from owner_runs import replace

from utils.data.sets import load_data
from utils.system.refusals import Refusal
from utils.watermark.prepared import check_images, checked_beacon, read_prepared
from utils.watermark.triggers import draw_triggers


@pytest.mark.parametrize("text", ["", "abc", "ab" * 15, "ab" * 513, "xy" * 32, "ab" * 32 + " ab"])
def test_values_that_are_no_beacon_are_refused(text):
    with pytest.raises(Refusal, match="--beacon"):
        checked_beacon(text)


def test_prepared_images_must_be_those_of_the_data():
    digits = load_data("digits")
    for k in (1, 3):
        triggers, _ = draw_triggers(digits.held_out, 5, k, 10, seed=0)
        check_images(triggers, digits)
        for name, change in (("images", triggers.images ^ 1), ("true_labels", (triggers.true_labels + 1) % 10),
                             ("sources", triggers.sources + 10**6)):
            with pytest.raises(Refusal, match="other images"):
                check_images(replace(triggers, **{name: change}), digits)


def test_prepared_images_are_read_through_no_link(tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "key.json").symlink_to(tmp_path / "other")
    with pytest.raises(Refusal, match="prepared/key.json is a symbolic link; .*remove it"):
        read_prepared(tmp_path / "prepared")
