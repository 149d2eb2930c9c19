"""Claims in front of somebody who does not trust the owner: where the labels come from decides what T1 is worth."""

import json
import math

import pytest
import torch
from commands import verify
from owner_runs import CLASSES, SETTINGS, M, answer, make_run, replace

from utils.answers.answers import Answers
from utils.data.sets import load_data
from utils.ownership.commitment import Commitment, check_commitment
from utils.ownership.label_origin import label_origin
from utils.ownership.verdict import OwnershipCase
from utils.watermark.prepared import image_commitment, labels_from_beacon
from utils.watermark.triggers import draw_triggers, redraw_labels

pytestmark = pytest.mark.usefixtures("quick")

SALT, BEACON = "12" * 32, "5a" * 32
PREPARED = {"dataset": "digits", "num_query": M, "seed": 3, "held_out": 143}


def beacon_settings(triggers, **change):
    """The committed settings of a run whose labels a beacon drew for these images, with changes in the record."""
    record = {"classes": CLASSES, "settings": PREPARED, "beacon_name": "round 7", "salt": SALT}
    record["sha256"] = image_commitment(triggers, **record)
    return SETTINGS | {"beacon": BEACON, "image_commitment": record | change}


@pytest.fixture(scope="module")
def images():
    return draw_triggers(load_data("digits").held_out, M, 1, 10, 3)[0]


@pytest.fixture(scope="module")
def by_beacon(images, tmp_path_factory):
    """(run folder, trigger set) whose labels a beacon drew."""
    settings = beacon_settings(images)
    labels = labels_from_beacon(settings["image_commitment"]["sha256"], BEACON, images.true_labels, 10,
                                images.candidates)
    return make_run(tmp_path_factory.mktemp("beacon") / "run", settings, labels)


def test_labels_of_a_beacon_are_recognised(by_beacon):
    folder, triggers = by_beacon
    commitment = check_commitment(folder, triggers)
    origin = label_origin(triggers, 10, commitment)
    assert (origin.kind, origin.beacon_name, origin.beacon, origin.penalty) == ("beacon", "round 7", BEACON, 0)
    assert label_origin(triggers, 10, commitment, BEACON, origin.image_commitment).kind == "beacon"
    wrong = label_origin(triggers, 10, commitment, "5b" * 32)
    assert wrong.kind == "chosen" and "is not that of the beacon 'round 7'" in wrong.why
    wrong = label_origin(triggers, 10, commitment, BEACON, "0" * 64)
    assert wrong.kind == "chosen" and "not the published one" in wrong.why


@pytest.mark.parametrize(("change", "why"), [
    ({"beacon_name": "round 8"}, "not those of the image commitment"), ({"salt": "13" * 32}, "not those of the image"),
    ({"settings": PREPARED | {"seed": 4}}, "not those of the image"), ({"salt": "zz"}, "damaged"),
    ({"classes": None}, "not those of the image"), ({"sha256": None}, "not those of the image"),
])
def test_a_changed_record_is_no_beacon(images, by_beacon, change, why):
    settings = beacon_settings(images, **change)
    origin = label_origin(by_beacon[1], 10, Commitment("match", "0", "now", settings, "2.6"))
    assert origin.kind == "chosen" and why in origin.why


def test_labels_that_no_beacon_draws_are_chosen(by_beacon):
    folder, triggers = by_beacon
    settings = beacon_settings(triggers)
    commitment = lambda changed: Commitment("match", "0", "now", changed, "2.6")
    labels = triggers.labels.clone()
    labels[0] = next(y for y in range(10) if y not in (labels[0], triggers.true_labels[0, 0]))
    assert "draws" in label_origin(replace(triggers, labels=labels), 10, commitment(settings)).why
    assert label_origin(triggers, 10, commitment(settings | {"beacon": "5b" * 32})).kind == "chosen"
    assert label_origin(triggers, 10, commitment(settings | {"beacon": None})).kind == "chosen"
    # a beacon's labels do not pass as those of a seed
    assert label_origin(triggers, 10, commitment(SETTINGS | {"held_out": 143})).kind == "chosen"


@pytest.mark.parametrize("seed", [-1, 2**31, 3.0, "3", None])
def test_only_seeds_that_the_bound_counts_are_seeds(owner, seed):
    settings = check_commitment(*owner).settings | {"seed": seed}
    assert label_origin(owner[1], 10, Commitment("match", "0", "now", settings, "2.6")).kind == "chosen"


def test_a_beacon_persuades_a_stranger_and_a_seed_does_not(owner, by_beacon, tmp_path, capsys):
    stolen = answer(by_beacon, tmp_path, 0.6)
    status, out, _ = verify(capsys, "claim", by_beacon[0], "--predictions", stolen, "--json", tmp_path / "c.json",
                            "--beacon", BEACON, "--plot", tmp_path / "c.png")
    report = json.loads((tmp_path / "c.json").read_text())
    assert status == 0 and "drawn by public randomness" in out and "for a stranger, rests on T1" in out
    assert report["labels"]["kind"] == "beacon" and report["limit"] == -3
    assert report["stranger_log10_p"] == report["tests"]["T1"]["log10_p"] == report["decision"]["log10_p"]
    for wrong in (("--beacon", "00" * 32), ("--image-commitment", "0" * 64)):
        status, out, _ = verify(capsys, "claim", by_beacon[0], "--predictions", stolen, *wrong)
        assert status == 1 and "T1 does not apply" in out and "T1           does not apply" in out
    assert verify(capsys, "claim", by_beacon[0], "--predictions", stolen, "--beacon", "nonsense")[0] == 2
    assert verify(capsys, "claim", by_beacon[0], "--predictions", answer(by_beacon, tmp_path, 0.0))[0] == 1

    stolen = answer(owner, tmp_path, 0.6)
    status, out, _ = verify(capsys, "claim", owner[0], "--predictions", stolen, "--json", tmp_path / "c.json")
    report = json.loads((tmp_path / "c.json").read_text())
    assert status == 1 and "pass --auditor DIR, or --trust-owner" in out and "drawn from a seed" in out
    assert report["stranger_log10_p"] == pytest.approx(report["tests"]["T1"]["log10_p"] + math.log10(2**31))
    status, out, _ = verify(capsys, "claim", owner[0], "--predictions", stolen, "--trust-owner")
    assert status == 0 and "for the owner, rests on T1" in out


def test_a_stranger_multiplies_by_the_number_of_seeds(owner):
    """h hits of 9 classes' chance: 10 of 10 wrong answers hit is 9^-10, which 2^31 seeds make worthless."""
    folder, triggers = owner
    commitment = check_commitment(folder, triggers)
    case = lambda stranger: OwnershipCase(triggers, 10, commitment, [], 1e-3, stranger, [] if stranger else None)
    for hits in (3, 10, 13, 14):
        labels = triggers.true_labels[:, 0].clone()
        labels[:hits] = triggers.labels[:hits]
        answers = Answers(labels.numpy(), None)
        plain = -hits * math.log10(9)
        assert case(False).decide(answers)["log10_p"] == pytest.approx(plain)
        found = case(True).decide(answers)
        assert found["log10_p"] == pytest.approx(min(plain + 31 * math.log10(2), 0), abs=1e-9)
        assert found["holds"] == (hits >= 13) and case(False).decide(answers)["holds"] == (hits > 3)
        # the sequential test and the number of queries ask for as much: each hit is worth (1/2) / (1/9)
        enough = hits * math.log10(9 / 2) >= 3 + 31 * math.log10(2)
        assert (case(True).sequence(answers, range(M))["decision"] == "claim") == enough
        assert (case(True).curve(answers)["sufficed_95"] is not None) == (hits >= 13)
    assert case(True).limit == pytest.approx(-3 - 31 * math.log10(2))


def grind(answers, true, held_out, seeds):
    """The seed among `seeds` whose labels an innocent model's answers hit most."""
    return max(seeds, key=lambda seed: int((redraw_labels(true, 10, seed, held_out) == answers).sum()))


def test_a_forger_who_tries_seeds_persuades_himself_alone():
    """An innocent model that errs on every image: 10,000 tried seeds make T1 small, and the forger believes his claim.

    Neither the seed's bound nor a beacon lets him have it.
    """
    digits = load_data("digits")
    order = draw_triggers(digits.held_out, M, 1, 10, 0)[0]
    answers = (order.true_labels[:, 0] * 7 + torch.arange(M) * 3 + 1) % 10
    answers = torch.where(answers == order.true_labels[:, 0], (answers + 1) % 10, answers)
    seed = grind(answers, order.true_labels, 143, range(10_000))
    labels = redraw_labels(order.true_labels, 10, seed, 143)
    forged = replace(order, labels=labels)
    settings = SETTINGS | {"seed": seed, "held_out": 143}
    innocent = Answers(answers.numpy(), None)
    commitment = Commitment("match", "0", "now", settings, "2.6")
    decide = lambda **more: OwnershipCase(forged, 10, commitment, [], 1e-3, **more).decide(innocent)
    assert decide()["holds"]
    assert not decide(stranger=True)["holds"] and not decide(stranger=True, audit=[])["holds"]
    assert decide(stranger=True, audit=[])["log10_p"] > -1
    # the same images under the labels of beacons that he cannot choose: over 200 of them he is as lucky as chance
    digest = image_commitment(order, CLASSES, PREPARED, "round 7", SALT)
    lucky = 0
    for i in range(200):
        drawn = labels_from_beacon(digest, f"{i:064x}", order.true_labels, 10, order.candidates)
        case = OwnershipCase(replace(order, labels=drawn), 10, commitment, [], 1e-3)
        lucky += case.t1(innocent) <= -2
    assert lucky <= 10  # P(Bin(200, 0.01) > 10) is 4e-6
