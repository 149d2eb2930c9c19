"""Labels that an image commitment and public randomness draw."""

import hashlib

import pytest
import torch
from owner_runs import replace

from utils.data.sets import load_data
from utils.system.refusals import Refusal
from utils.watermark.prepared import check_images, checked_beacon, image_commitment, labels_from_beacon, read_prepared
from utils.watermark.triggers import draw_triggers

COMMITMENT, BEACON = "00" * 32, "ff" * 32
NONE = torch.zeros(3, 0, dtype=torch.long)


def by_hand(i: int) -> int:
    key = hashlib.sha256(bytes(32) + b"\xff" * 32).digest()
    return int(hashlib.sha256(key + bytes(7) + bytes([i])).hexdigest(), 16)


def test_labels_follow_from_the_two_hashes():
    true = torch.tensor([[0], [4], [2]])
    labels = labels_from_beacon(COMMITMENT, BEACON, true, 5, NONE)
    wrong = [[1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 3, 4]]
    assert labels.tolist() == [wrong[i][by_hand(i) % 4] for i in range(3)]
    candidates = torch.tensor([[3, 0, 1], [4, 2, 0], [2, 1, 4]])
    labels = labels_from_beacon(COMMITMENT, BEACON, true, 5, candidates)
    assert labels.tolist() == [candidates[i, by_hand(i) % 3].item() for i in range(3)]


def test_labels_are_uniform_and_change_with_either_half():
    true = torch.zeros(4000, 1, dtype=torch.long)
    none = torch.zeros(4000, 0, dtype=torch.long)
    labels = labels_from_beacon(COMMITMENT, BEACON, true, 5, none)
    counts = torch.bincount(labels, minlength=5).tolist()
    assert counts[0] == 0 and all(abs(n - 1000) < 5 * (1000 * 0.75) ** 0.5 for n in counts[1:])
    for other in (("01" * 32, BEACON), (COMMITMENT, "fe" * 32)):
        same = (labels_from_beacon(*other, true, 5, none) == labels).double().mean()
        assert abs(same - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_every_part_but_the_labels_is_committed_to():
    triggers, _ = draw_triggers(load_data("digits").held_out, 5, 1, 10, seed=0)
    settings, classes = {"seed": 0}, [str(i) for i in range(10)]
    digest = lambda t, *more: image_commitment(t, *(more or (classes, settings, "round 7", "ab")))
    own = digest(triggers)
    relabelled = replace(triggers, labels=(triggers.labels + 1) % 10)
    assert digest(relabelled) == own
    for name in ("images", "true_labels", "sources"):
        assert digest(replace(triggers, **{name: getattr(triggers, name) + 1})) != own
    assert digest(replace(triggers, candidates=triggers.labels[:, None])) != own
    for more in (([*classes[:9], "x"], settings, "round 7", "ab"), (classes, {"seed": 1}, "round 7", "ab"),
                 (classes, settings, "round 8", "ab"), (classes, settings, "round 7", "ac")):
        assert digest(triggers, *more) != own


@pytest.mark.parametrize("text", ["", "abc", "ab" * 15, "ab" * 513, "xy" * 32, "ab" * 32 + " ab"])
def test_values_that_are_no_beacon_are_refused(text):
    with pytest.raises(Refusal, match="--beacon"):
        checked_beacon(text)


def test_a_beacon_may_be_written_in_capitals():
    assert checked_beacon(" 0xAB" + "cd" * 20 + "\n") == "ab" + "cd" * 20


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
