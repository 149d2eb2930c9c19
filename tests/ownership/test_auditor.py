"""What an auditor finds in a trigger set: images that are not the data set's, and those that no seed gave."""

import json
import shutil

import pytest
import torch
from commands import verify
from owner_runs import CLASSES, SETTINGS, M, answer, make_run, replace

from utils.data.sets import load_data
from utils.ownership.auditor import Auditor, audit_triggers, read_auditor
from utils.ownership.commitment import check_commitment, commit_to
from utils.runs.checkpoints import find_checkpoint, read_model, save_checkpoint
from utils.runs.folder import RunFolder
from utils.system.files import sha256_of_file
from utils.system.refusals import Refusal
from utils.training.metrics import predict
from utils.watermark.triggers import draw_triggers

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def auditor():
    return Auditor(load_data("digits").held_out, [], None)


def audit(owner, auditor, triggers=None, drawn_from_seed=True, **settings):
    committed = check_commitment(*owner).settings | settings
    return audit_triggers(owner[1] if triggers is None else triggers, 10, committed, drawn_from_seed, auditor)


def test_a_set_that_train_draws_passes(owner, auditor):
    assert audit(owner, auditor) == [] and audit(owner, auditor, drawn_from_seed=False) == []
    mixed, _ = draw_triggers(auditor.held_out, 20, 3, 10, 3)
    assert audit(owner, auditor, mixed) == []


def test_pictures_that_are_not_the_data_sets_are_found(owner, auditor):
    """Adversarial pictures that every good model answers wrongly differ from the data set's in some pixels."""
    images = owner[1].images.clone()
    images[[4, 9], 0, 3, 3] ^= 1
    assert audit(owner, auditor, replace(owner[1], images=images)) == [
        f"2 of {M} triggers (the first: number 4) are not the image of the data set at its index"]


def test_mislabelled_pictures_are_found(owner, auditor):
    """A 7 that is filed as a 3 and assigned to 7 is hit by every good model."""
    true = owner[1].true_labels.clone()
    true[2, 0] = (true[2, 0] + 1) % 10
    assert audit(owner, auditor, replace(owner[1], true_labels=true)) == [
        f"1 of {M} triggers (the first: number 2) are filed under another true label than the data set's"]


def test_foreign_repeated_and_nameless_images_are_found(owner, auditor):
    t = owner[1]
    assert "not among the held-out ones" in audit(owner, auditor, replace(t, sources=t.sources + 10**6))[0]
    again = replace(t, images=t.images[:1].expand_as(t.images).contiguous(),
                    true_labels=t.true_labels[:1].expand_as(t.true_labels), sources=t.sources[:1].expand_as(t.sources))
    assert audit(owner, auditor, again)[0] == "an image of the data set is used more than once"
    none = torch.zeros(M, 0, dtype=torch.long)
    assert "does not say" in audit(owner, auditor, replace(t, sources=none))[0]
    assert "does not say" in audit(owner, auditor, replace(t, sources=t.sources.expand(M, 2)))[0]


def test_images_that_were_matched_to_a_seeds_labels_are_found(owner, auditor):
    """True images of the data set, under their true labels, in an order that suits the labels; a beacon allows any."""
    t = owner[1]
    order = torch.arange(M).roll(1)
    matched = replace(t, images=t.images[order], true_labels=t.true_labels[order], sources=t.sources[order])
    assert audit(owner, auditor, matched) == ["the images are not those that the committed seed draws"]
    assert audit(owner, auditor, matched, drawn_from_seed=False) == []
    assert audit(owner, auditor, seed=4) == ["the images are not those that the committed seed draws"]
    assert "from 99 held-out images, the data set has 143" in audit(owner, auditor, held_out=99)[0]


def test_candidates_of_a_seed_need_the_label_model(bank, tmp_path, auditor):
    path = find_checkpoint(bank[0])
    clean = read_model(path)
    settings = {"label_strategy": "plausible", "label_choices": 2, "label_model_sha256": sha256_of_file(path)}
    made = make_run(tmp_path / "run", SETTINGS | settings, strategy="plausible", choices=2,
                    predict=lambda images: predict(clean, images))
    assert "was not given the one whose digest" in audit(made, auditor)[0]
    given = auditor._replace(label_model=bank[0])
    assert audit(made, given) == []
    swapped = replace(made[1], candidates=(made[1].candidates + 1) % 10)
    assert audit(made, given, swapped) == ["the candidates are not the label model's most probable classes"]
    assert audit(made, auditor, swapped, drawn_from_seed=False) == []
    for run in bank[:2]:
        shutil.copytree(run, tmp_path / "auditor" / run.name)
    found = read_auditor(tmp_path / "auditor", settings | {"dataset": "digits"}, 32)
    assert found.label_model.name == bank[0].name and [run.name for run in found.bank] == [bank[1].name]


def test_with_an_auditor_a_seed_persuades_a_stranger(owner, bank, tmp_path, capsys):
    for run in bank:
        shutil.copytree(run, tmp_path / "auditor" / run.name)
    flags = ("claim", owner[0], "--auditor", tmp_path / "auditor", "--json", tmp_path / "c.json", "--predictions")
    status, out, _ = verify(capsys, *flags, answer(owner, tmp_path, 0.8))
    report = json.loads((tmp_path / "c.json").read_text())
    assert status == 0 and "images that an auditor rebuilt" in out and report["audit"] == [] and report["bank"] == 5
    assert report["decision"]["log10_p"] == report["stranger_log10_p"] > report["tests"]["T1"]["log10_p"]
    assert verify(capsys, *flags, answer(owner, tmp_path, 0.0))[0] == 1


def test_a_forged_set_is_refused_in_sentences(owner, tmp_path, capsys):
    """Mislabelled pictures under a commitment and a seed of the forger's own: the auditor's copy tells."""
    digits = load_data("digits")
    triggers, _ = draw_triggers(digits.held_out, M, 1, 10, 3)
    images = triggers.images.clone()
    images[0] = 255 - images[0]
    forged, _ = make_run(tmp_path / "forged", committed=False)
    false = replace(triggers, images=images)
    save_checkpoint(forged / "triggers.pt", false.entries)
    commit_to(RunFolder(forged, SETTINGS, "x"), false, CLASSES, 143)
    (tmp_path / "auditor").mkdir()
    answers = answer((forged, false), tmp_path, 1.0)
    assert verify(capsys, "claim", forged, "--predictions", answers, "--trust-owner")[0] == 0
    status, out, _ = verify(capsys, "claim", forged, "--predictions", answers, "--auditor", tmp_path / "auditor")
    assert status == 1 and "the auditor's check failed: 1 of 40 triggers (the first: number 0) are not the image" in out


@pytest.mark.parametrize(("name", "words"), [(None, "name no data set"), ("../x", "name no data set"),
                                             ("cifar10", "put the data set's files into")])
def test_an_auditor_who_brings_nothing_is_told_what_to_bring(name, words, tmp_path):
    with pytest.raises(Refusal, match=words):
        read_auditor(tmp_path, {"dataset": name}, 32)


def test_an_auditors_watermarked_model_is_refused(owner, tmp_path, capsys):
    shutil.copytree(owner[0], tmp_path / "auditor" / "run")
    status, _, err = verify(capsys, "claim", owner[0], "--suspect", owner[0], "--auditor", tmp_path / "auditor")
    assert status == 2
