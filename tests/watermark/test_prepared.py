"""Labels that an image commitment and public randomness draw."""

import pytest

from utils.system.refusals import Refusal
from utils.watermark.prepared import checked_beacon, read_prepared


@pytest.mark.parametrize("text", ["", "abc", "ab" * 15, "ab" * 513, "xy" * 32, "ab" * 32 + " ab"])
def test_values_that_are_no_beacon_are_refused(text):
    with pytest.raises(Refusal, match="--beacon"):
        checked_beacon(text)


def test_prepared_images_are_read_through_no_link(tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "key.json").symlink_to(tmp_path / "other")
    with pytest.raises(Refusal, match="prepared/key.json is a symbolic link; .*remove it"):
        read_prepared(tmp_path / "prepared")
