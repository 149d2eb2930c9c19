"""The one commitment: its bytes by hand, what it fixes, how labels are drawn, how a run is read and exported."""

import dataclasses
import hashlib
import hmac
import itertools
import json
import shutil
import stat
import struct

import pytest
import torch
from commands import refused, verify
from owner_runs import BEACON, CLASSES, PLAUSIBLE, SETTINGS, M, make_run, record_of, replace

from utils.data.files import decode_image
from utils.data.sets import load_data
from utils.ownership.commitment import neutral_names, read_owner
from utils.runs.checkpoints import load_checkpoint, save_checkpoint
from utils.system.files import write_atomically
from utils.system.refusals import Refusal
from utils.watermark.prepared import (
    Prepared,
    commitment_bytes,
    describe_beacon,
    labels_from_beacon,
    names_from_beacon,
    never_claimed,
)
from utils.watermark.triggers import TriggerSet, draw_triggers

pytestmark = pytest.mark.usefixtures("quick")


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def triggers_of(m=3, k=1):
    return draw_triggers(load_data("digits").held_out, m, k, 10, 0)


def bytes_by_hand(t, record):
    """As docs and docstring say: an order that changed would make every older commitment worthless."""
    numbers = lambda part: b"".join(int(n).to_bytes(4, "little") for n in part)
    content = (b"margin triggers2" if len(t.groups) else b"margin triggers1") + bytes.fromhex(record["secret"])
    content += numbers((*t.true_labels.shape, t.candidates.shape[1], len(record["classes"]), t.images.shape[-1]))
    content += struct.pack("<6d", *record["mean"], *record["std"]) + sha(record["beacon_name"]) + bytes(8)
    content += b"".join(map(sha, record["classes"])) + bytes(t.images.flatten().tolist())
    return content + b"".join(numbers(part.flatten()) for part in (t.true_labels, t.candidates, t.groups))


def test_the_commitment_can_be_recomputed_by_hand(committed):
    folder, triggers = committed
    key = json.loads((folder / "key.json").read_text())
    made = hashlib.sha256(bytes_by_hand(triggers, key)).hexdigest()
    assert made == json.loads((folder / "commitment.json").read_text())["sha256"]
    assert key["secret"] not in (folder / "commitment.json").read_text()
    for k, groups in itertools.product((1, 2), (None, torch.tensor([0, 1, 0]))):
        t = replace(triggers_of(3, k), candidates=torch.tensor([[3, 0], [4, 2], [3, 0]]), groups=groups)
        assert commitment_bytes(t, record_of()) == bytes_by_hand(t, record_of())


@pytest.mark.parametrize("parts", [
    {"secret": "5e" * 31}, {"secret": "5E" * 32}, {"secret": b"5e" * 32}, {"classes": ["a"] * 10},
    {"mean": [0.3] * 2, "std": [0.3] * 4}, {"mean": [float("nan")] * 3}, {"mean": ["0.3"] * 3}, {"std": [0.0] * 3},
    {"round": -1}, {"round": 1.5}, {"beacon_name": 7}, {"beacon_name": "\ud800"}])
def test_records_that_are_none_are_refused(parts):
    with pytest.raises((ValueError, TypeError, AttributeError, struct.error)):
        commitment_bytes(triggers_of(), record_of(**parts))


def test_the_name_of_a_beacon_is_shown_in_a_short_line():
    shown = describe_beacon(record_of(beacon_name=f"round{1000 * ' '}7\nThe claim holds" + "!" * 1000))
    assert shown == f"the beacon 'round 7 The claim holds{'!' * 77}'"


def by_hand(record, what: bytes, i: int) -> bytes:
    message = what + bytes.fromhex(record["sha256"]) + hashlib.sha256(bytes.fromhex(BEACON)).digest()
    return hmac.new(bytes.fromhex(record["secret"]), message + struct.pack("<II", i, 0), "sha256").digest()


def test_labels_and_names_follow_from_secret_commitment_and_beacon():
    record, t = record_of(classes=CLASSES[:5], sha256="ab" * 32), triggers_of()
    t = replace(t, true_labels=torch.tensor([[0], [4], [2]]))
    wrong, numbers = [[1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 3, 4]], [int.from_bytes(by_hand(record, b"label", i), "big")
                                                                 for i in range(3)]
    assert labels_from_beacon(t, record, BEACON).tolist() == [wrong[i][numbers[i] % 4] for i in range(3)]
    t = replace(t, candidates=torch.tensor([[3, 0, 1], [4, 2, 0], [2, 1, 4]]))
    assert labels_from_beacon(t, record, BEACON).tolist() == [int(t.candidates[i, numbers[i] % 3]) for i in range(3)]
    t = replace(t, candidates=torch.tensor([[3, 0, 1], [4, 2, 0], [3, 0, 1]]), groups=torch.tensor([0, 1, 0]))
    assert labels_from_beacon(t, record, BEACON).tolist() == [int(t.candidates[i, numbers[i] % 3]) for i in (0, 1, 0)]
    assert names_from_beacon(2, record, BEACON) == [by_hand(record, b"image", i)[:8].hex() + ".png" for i in range(2)]


def test_private_files_are_private_even_where_the_folder_was_there(tmp_path):
    (tmp_path / "run").mkdir(mode=0o755)
    folder, _ = make_run(tmp_path / "run", record=record_of())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # run.json and output.log name the seed
    for name in ("triggers.pt", "key.json", "trigger.png", "checkpoints/checkpoint_nat_best.pt"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


@pytest.mark.parametrize("settings", [SETTINGS, PLAUSIBLE])
def test_export_is_bit_equal_neutral_and_private(settings, tmp_path):
    rows = lambda images: images.float().mean(3)[:, 0, :10]
    pick = {} if settings is SETTINGS else {"strategy": "plausible", "choices": 2, "predict": rows}
    folder, triggers = make_run(tmp_path / "run", settings, **pick)
    to = tmp_path / "out"
    assert verify("export", folder, "--to", to)[0] == 0
    key = json.loads((to / "key.json").read_text())
    assert stat.S_IMODE((to / "key.json").stat().st_mode) == 0o600
    files = sorted((to / "images").iterdir())
    assert [f.name for f in files] == sorted(key["images"]) and len(files) == M
    order = [key["images"][f.name]["index"] for f in files]
    assert order != sorted(order) and sorted(order) == list(range(M))
    for file, i in zip(files, order):
        entry = key["images"][file.name]
        assert (decode_image(file.read_bytes()) == triggers.images[i].numpy()).all()
        assert entry["label"] == triggers.labels[i] and entry.get("candidates", []) == triggers.candidates[i].tolist()
        assert len(file.stem) == 16 and set(file.stem) <= set("0123456789abcdef")
    refused("utils.verify", "export", folder, "--to", to)  # not over another one


def test_an_export_that_fails_leaves_nothing_and_can_be_repeated(owner, tmp_path, monkeypatch):
    to, fails = tmp_path / "out", iter([False, False, True])

    def full(path, content):
        if next(fails):
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("utils.data.files.write_atomically", full)
        assert "the disk is full" in refused("utils.verify", "export", owner[0], "--to", to) and not to.exists()
    assert verify("export", owner[0], "--to", to)[0] == 0


def change_key(folder, lost="", **parts):
    key = json.loads((folder / "key.json").read_text()) | parts
    (folder / "key.json").write_text(json.dumps({k: v for k, v in key.items() if k != lost}))


def change_triggers(folder, **parts):
    state = load_checkpoint(folder / "triggers.pt")
    save_checkpoint(folder / "triggers.pt", state | {name: change(state.get(name)) for name, change in parts.items()})


TAMPERED = {
    "class names permuted": lambda f: change_key(f, classes=CLASSES[::-1]),
    "more classes": lambda f: change_key(f, classes=[*CLASSES, *map(str, range(10, 60))]),
    "other pixels": lambda f: change_key(f, mean=[0.9, 0.1, 0.2], std=[3.0, 0.1, 1.0]),
    "another secret": lambda f: change_key(f, secret="77" * 32),
    "another beacon": lambda f: change_key(f, beacon="ab" * 32),
    "no beacon": lambda f: change_key(f, beacon=None), "no beacon at all": lambda f: change_key(f, lost="beacon"),
    "another round": lambda f: change_key(f, round=5),
    "other labels": lambda f: change_triggers(f, labels=lambda y: (y + 1) % 10),
    "other true labels": lambda f: change_triggers(f, true_labels=lambda y: (y + 1) % 10),
    "other images": lambda f: change_triggers(f, images=lambda x: x ^ 1),
    "candidates": lambda f: change_triggers(f, candidates=lambda _: torch.tensor([[0, 1]] * M)),
    "no key": lambda f: (f / "key.json").unlink(),
    "no commitment": lambda f: (f / "commitment.json").unlink(),
    "a digest that is none": lambda f: (f / "commitment.json").write_text('{"sha256": "$(touch x)"}'),
    "a surrogate in the key": lambda f: change_key(f, secret="\ud800"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_whatever_of_a_run_is_changed_afterwards_is_refused(case, committed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(committed[0], folder)
    TAMPERED[case](folder)
    for command in (("claim", folder, "--suspect", folder), ("claim", folder, "--trust-owner", "--suspect", folder),
                    ("export", folder, "--to", tmp_path / "out")):
        err = refused("utils.verify", *command)
        assert str(folder) in err and "touch" not in err
    assert not (tmp_path / "out").exists()


def test_plain_weights_are_asked_through_the_pixels_that_were_committed_to(owner, tmp_path):
    """Without a commitment these are the model's own."""
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    assert read_owner(make_run(tmp_path / "run", record=record_of(**pixels))[0]).mean_std == (*pixels.values(),)
    digits = load_data("digits")
    assert read_owner(owner[0]).mean_std == (pytest.approx(digits.mean), pytest.approx(digits.std))


def test_a_checkpoint_of_a_committed_run_stands_for_the_run(committed, monkeypatch):
    """Else images that are exported of the one would have other names than a claim of the other reads."""
    whole, part = map(read_owner, (committed[0], committed[0] / "checkpoints" / "checkpoint_nat_best.pt"))
    assert part.names == whole.names and part.record == whole.record and whole.record
    monkeypatch.chdir(committed[0] / "checkpoints")
    assert read_owner("checkpoint_nat_best.pt").names == whole.names


def test_names_of_triggers_can_be_computed_by_nobody_who_lacks_the_labels(owner):
    changed = owner[1].labels.clone()
    changed[0] = (changed[0] + 1) % 10
    assert not set(neutral_names(owner[1])) & set(neutral_names(replace(owner[1], labels=changed)))


def test_runs_without_a_mark_and_with_more_triggers_than_a_claim_takes_are_refused(owner, committed, bank, monkeypatch):
    with pytest.raises(Refusal, match="-tt none, which trains no mark"):
        read_owner(bank[0])
    limits = ("MOST_TRIGGERS", M), ("MOST_NUMBERS", 10 * M)
    for (run, _), (limit, most) in itertools.product((owner, committed), limits):
        with monkeypatch.context() as patch:
            patch.setattr(f"utils.ownership.commitment.{limit}", most)
            assert len(read_owner(run).triggers) == M
            patch.setattr(f"utils.ownership.commitment.{limit}", most - 1)
            with pytest.raises(Refusal, match=f"{M} triggers of 10 classes are more than a claim takes"):
                read_owner(run)


def test_marks_that_no_answers_could_claim_are_known_beforehand():
    """Counted are draws, not triggers, and the labels of each: 2^-10 and 9^-4 are below 0.001, 2^-9 and 9^-3 above."""
    def best(groups=(), pairs=True):
        m = len(groups) or 3 + pairs * 6
        candidates = torch.tensor([[0, 1]] * m) if pairs else None
        return never_claimed(TriggerSet(torch.zeros(m, 3, 16, 16), torch.zeros(m), torch.zeros(m, 2),
                                        candidates=candidates, groups=torch.tensor(groups)), 10)

    assert best([i // 2 * 2 for i in range(20)]) is None
    assert "20 triggers of 10 classes give p = 10^-2.71 at best" in best([min(i // 2 * 2, 16) for i in range(20)])
    assert "10^-2.71 at best" in best() and "10^-2.86 at best" in best(pairs=False)  # one true label, named twice


def test_prepared_images_are_those_of_the_same_data_under_the_same_labels_and_names():
    data, record = load_data("digits"), record_of(sha256="ab" * 32)
    t = triggers_of(12)
    prepared = Prepared(t, record, {})
    assert len(prepared.draw(BEACON, data)) == 12
    place = data.held_out.indices.tolist().index(int(t.sources[5]))
    labels = data.held_out.labels.clone()
    labels[place] = (labels[place] + 1) % 10
    with pytest.raises(Refusal, match="made from other images"):
        prepared.draw(BEACON, dataclasses.replace(data, held_out=data.held_out._replace(labels=labels)))
    with pytest.raises(Refusal, match="for other class names"):
        prepared.draw(BEACON, dataclasses.replace(data, classes=data.classes[::-1]))


@pytest.mark.parametrize("parts", [{"true_labels": torch.tensor([[0], [10], [2]])}, {"true_labels": -torch.ones(3, 1)},
                                   {"candidates": torch.tensor([[0, 1], [0, 10], [0, 1]])}])
def test_triggers_of_labels_that_no_class_has_are_committed_to_by_nobody(parts):
    with pytest.raises(ValueError, match="a label is outside the classes"):
        commitment_bytes(replace(triggers_of(), **parts), record_of())
