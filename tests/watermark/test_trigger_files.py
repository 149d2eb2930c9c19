"""Models and trigger sets in checkpoints: ours, the official code's, and inconsistent ones; and prepared sets."""

import pickle

import pytest
import torch
from hostile_files import refusal_of, rezip
from official_checkpoint import official, trigger_set
from owner_runs import replace

import models
from utils.runs.checkpoints import load_checkpoint, pack_checkpoint, restore_model, save_checkpoint
from utils.system.refusals import Refusal
from utils.watermark.prepared import checked_beacon, read_prepared
from utils.watermark.trigger_files import pack_triggers, read_triggers, unpack_source

pytestmark = pytest.mark.usefixtures("quick")


def test_an_official_checkpoint_can_be_read(tmp_path):
    model, trigger = official(tmp_path / "official.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "official.pt", weights_only=True)  # which is why we allow numpy's scalars
    checkpoint = load_checkpoint(tmp_path / "official.pt")
    assert float(checkpoint["optimizer"]["param_groups"][0]["lr"]) == pytest.approx(0.1 - 0.09 * 0.07)
    again, triggers = unpack_source(checkpoint, "official.pt")
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    for part in ("images", "labels", "true_labels"):  # pixels too: the floats are those of 8 bits
        assert torch.equal(getattr(triggers, part), getattr(trigger, part)), part
    assert triggers.sources.shape == (6, 0)
    del checkpoint["query_model"]["state_dict"]["original_response"]
    assert unpack_source(checkpoint, "official.pt")[1].true_labels.shape == (6, 0)
    checkpoint["query_model"]["state_dict"]["response"] += 99
    assert not restore_model(checkpoint, "official.pt").training  # only weights are read of a suspect


def test_an_official_checkpoint_of_an_older_numpy_can_be_read(tmp_path):
    """Before 2.0 numpy pickled its scalars under `numpy.core`."""
    names = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    official(tmp_path / "new.pt")
    rezip(tmp_path / "new.pt", tmp_path / "old.pt", lambda content: content.replace(*names))
    assert [name in (tmp_path / "old.pt").read_bytes() for name in names] == [False, True]
    assert float(load_checkpoint(tmp_path / "old.pt")["best"]) == 0.88


@pytest.mark.parametrize("spoil", [
    lambda c: c["model"].update(type="../../res18"),
    lambda c: c["model"]["state_dict"].update({"1.linear.bias": 7}),
    lambda c: c["model"]["state_dict"].update({"1.layers.0.weight": torch.zeros(1_000_000, 1)}),
    lambda c: c["model"]["state_dict"].pop("1.linear.weight"),
    lambda c: c.update(model=[1, 2]),
    lambda c: c["query_model"]["state_dict"].update(response=torch.full((30,), -1)),
    lambda c: c["query_model"]["state_dict"].update(response=torch.full((30,), 5)),  # of classes 0 to 4
    lambda c: c["query_model"]["state_dict"].update(original_response=torch.full((30, 1), 5)),
    lambda c: c["query_model"].update(
        state_dict={k: t[:0] for k, t in c["query_model"]["state_dict"].items()}),  # no triggers at all
    lambda c: c["query_model"]["state_dict"].update(query=torch.zeros(30, 3, 32, 33)),
    lambda c: c["query_model"]["state_dict"].update(original_response=torch.zeros(4)),
    lambda c: c["query_model"]["state_dict"].update(sources=torch.zeros(30, 1000, dtype=torch.int8)),
])
def test_checkpoints_with_inconsistent_parts_are_refused(spoil, files, tmp_path):
    checkpoint = load_checkpoint(files / "model.pt")
    spoil(checkpoint)
    save_checkpoint(tmp_path / "model.pt", checkpoint)
    assert refusal_of(tmp_path / "model.pt")


@pytest.fixture
def plausible():
    """30 triggers of 5 classes, of which two are candidates of each label."""
    labels = torch.arange(30) % 5
    return replace(trigger_set(30), labels=labels, true_labels=labels[:, None],
                   candidates=torch.stack([labels, (labels + 1) % 5], 1))


def test_a_set_is_read_as_it_was_saved_with_candidates_and_without(plausible, tmp_path):
    equal = lambda one, two: all(torch.equal(part, getattr(two, name)) for name, part in vars(one).items())
    save_checkpoint(tmp_path / "triggers.pt", vars(plausible))
    again = read_triggers(tmp_path / "triggers.pt", 5)
    assert equal(plausible, again) and again.candidates.shape == (30, 2)
    packed = pack_checkpoint(models.build("res18", 5, width=2), **pack_triggers(plausible))
    assert equal(plausible, unpack_source(packed, "one.pt")[1])
    plain = replace(plausible, candidates=None)
    assert plain.candidates.shape == (30, 0) and plain.candidates.dtype == torch.int64 and len(plain) == 30
    save_checkpoint(tmp_path / "triggers.pt", vars(plain))
    assert equal(plain, read_triggers(tmp_path / "triggers.pt", 5))


@pytest.mark.parametrize("spoil, words", [
    (lambda c: c[:29], "not 2 to 5 for each trigger"), (lambda c: torch.tensor(3), "not 2 to 5 for each trigger"),
    (lambda c: c.double(), "none of the 5 classes"),
    (lambda c: c.clone().index_fill_(0, torch.tensor(7), -1), "none of the 5 classes"),
    (lambda c: c.clone().index_fill_(0, torch.tensor(7), 2), "named twice"),
    (lambda c: (c + 1) % 5, "not among its candidates"), (lambda c: c.tolist(), "no attribute"),
])
def test_candidates_that_do_not_fit_are_refused(plausible, spoil, words, tmp_path):
    save_checkpoint(tmp_path / "triggers.pt", vars(plausible) | {"candidates": spoil(plausible.candidates)})
    assert words in refusal_of(tmp_path / "triggers.pt")


@pytest.mark.parametrize("text", ["", "abc", "ab" * 15, "ab" * 513, "xy" * 32, "ab" * 32 + " ab"])
def test_values_that_are_no_beacon_are_refused(text):
    with pytest.raises(Refusal, match="--beacon"):
        checked_beacon(text)


def test_prepared_images_are_read_through_no_link(tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "key.json").symlink_to(tmp_path / "other")
    with pytest.raises(Refusal, match="prepared/key.json is a symbolic link; .*remove it"):
        read_prepared(tmp_path / "prepared")


@pytest.mark.parametrize("size, fits", [(8, False), (16, True), (256, True), (264, False)])
def test_the_sides_of_trigger_images_are_bounded(size, fits, tmp_path):
    one = replace(trigger_set(1), images=torch.zeros(1, 3, size, size, dtype=torch.uint8))
    save_checkpoint(tmp_path / "triggers.pt", vars(one))
    assert (refusal_of(tmp_path / "triggers.pt") is None) == fits


def test_bytes_of_a_trigger_set_are_bounded(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "triggers.pt", vars(trigger_set(1)))
    monkeypatch.setattr("utils.watermark.trigger_files.TRIGGERS_LIMIT", 1000)
    assert "triggers.pt is larger than 1000 bytes" in refusal_of(tmp_path / "triggers.pt")


def test_pixels_of_an_official_checkpoint_are_cut_to_bytes(files):
    """Numbers beyond [0, 1] do not wrap around."""
    checkpoint = load_checkpoint(files / "model.pt")
    state = checkpoint["query_model"]["state_dict"]
    state["query"] = torch.full((30, 3, 32, 32), 1.25)
    state["query"][:, 0] = -0.25
    images = unpack_source(checkpoint, "one.pt")[1].images
    assert images[:, 0].unique().tolist() == [0] and images[:, 1:].unique().tolist() == [255]
