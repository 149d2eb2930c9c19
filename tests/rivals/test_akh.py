"""AKH: the shared mistakes counted by hand, its test of them, and `utils.verify akh`."""

import json

import numpy as np
import pytest
from commands import good, refused, verify

from utils.data.sets import load_data
from utils.rivals.akh import AKH_ALPHA, TOLERANCE, akh_figures, same_label_share, shared_mistakes
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model, save_checkpoint
from utils.training.metrics import predict

pytestmark = pytest.mark.usefixtures("quick")

# ten images of class 0; the columns: what source, suspect and benign model answer
TRUE = np.zeros(10, int)
SOURCE = np.array([1, 1, 1, 1, 1, 1, 2, 2, 0, 0])
SUSPECT = np.array([1, 1, 3, 1, 0, 1, 2, 2, 5, 0])
BENIGN = np.array([2, 3, 1, 1, 1, 0, 3, 0, 5, 1])


def test_shared_mistakes_by_hand():
    # all three err on images 0 to 3 and 6; on 3 both have the source's label; left: 0, 1, 6 (suspect), 2 (benign)
    assert shared_mistakes(TRUE, SOURCE, SUSPECT, BENIGN) == (3, 4)
    assert shared_mistakes(TRUE, SOURCE, BENIGN, SUSPECT) == (1, 4)
    assert shared_mistakes(TRUE, SOURCE, BENIGN, BENIGN) == (0, 0)  # nothing tells a model from itself
    assert shared_mistakes(TRUE, SOURCE, SOURCE, BENIGN) == (3, 3)
    assert shared_mistakes(TRUE, TRUE, SUSPECT, BENIGN) == (0, 0)  # a source without mistakes
    # suspect and source both err on 0 to 3, 5 to 7 and differ on 2; benign and source on 0 to 4, 6, agree on 2 to 4
    assert same_label_share(TRUE, SOURCE, SUSPECT) == pytest.approx(6 / 7)
    assert same_label_share(TRUE, SOURCE, BENIGN) == pytest.approx(3 / 6)
    assert same_label_share(TRUE, SOURCE, TRUE) == 0


def test_the_benign_model_that_is_hardest_to_beat_decides():
    found = akh_figures(TRUE, SOURCE, SUSPECT, [BENIGN, SOURCE, SUSPECT])
    assert (found["k"], found["n"], found["log10_p"], found["nearest"], found["claim"]) == (0, 1, 0, 1, False)
    assert found["benign_share"] == 1 and found["share"] == pytest.approx(6 / 7)
    assert 10 ** found["log10_rank"] == pytest.approx(3 / 4)  # two of three share as much
    alone = akh_figures(TRUE, SOURCE, SUSPECT, [BENIGN])
    assert (alone["k"], alone["n"], alone["nearest"]) == (3, 4, 0) and 10 ** alone["log10_rank"] == pytest.approx(1 / 2)
    # odds of 1.25: each with probability 5/9; odds of 1: P(Bin(4, 1/2) >= 3) = 5/16
    assert 10 ** alone["log10_p"] == pytest.approx(4 * (5 / 9) ** 3 * (4 / 9) + (5 / 9) ** 4)
    assert 10 ** akh_figures(TRUE, SOURCE, SUSPECT, [BENIGN], 1)["log10_p"] == pytest.approx(5 / 16)
    many = akh_figures(*(np.tile(answers, 100) for answers in (TRUE, SOURCE, SUSPECT)), [np.tile(BENIGN, 100)])
    assert (many["k"], many["n"]) == (300, 400) and many["log10_p"] < -10 and many["claim"] and not alone["claim"]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A source as train.py leaves one, benign models of two other seeds, files of other models."""
    folder = tmp_path_factory.mktemp("session")
    flags = ("-d", folder, "-dt", "digits", "-nq", 10, "-mt", "vgg11", "--width", 4, "--train-size", 256,
             "--batch-size", 32, "-ep", 1, "--device", "cpu")
    for seed in (0, 1, 2):
        good("train", *flags, "-tt", "none", "--seed", seed, "-msg", seed)
    runs = [folder / f"digits_vgg11_none_10_{seed}" for seed in (0, 1, 2)]
    source, stolen = (load_checkpoint(find_checkpoint(run)) for run in runs[:2])
    save_checkpoint(folder / "copy.pt", {"model": source["model"]})
    save_checkpoint(folder / "stolen.pt", stolen | {"about": stolen["about"] | {"attack": "soft"}})
    swapped = stolen["about"] | {"classes": stolen["about"]["classes"][::-1]}
    save_checkpoint(folder / "swapped.pt", stolen | {"about": swapped})
    return folder, *runs


def test_the_command_asks_test_images_and_counts_as_the_functions_do(session, tmp_path):
    folder, source, first, second = session
    flags = ("akh", source, "--benign", first, first, second, "--device", "cpu", "--json", tmp_path / "akh.json",
             "--suspect")
    status, out, _ = verify(*flags, folder / "copy.pt", first)
    figures, test = json.loads((tmp_path / "akh.json").read_text()), load_data("digits").test
    answers = [predict(read_model(run), test.images).argmax(1).numpy()
               for run in (source, first, second)]
    for row, suspect, run in zip(figures["suspects"], answers, (folder / "copy.pt", first)):
        assert row == {"model": str(run)} | akh_figures(test.labels.numpy(), answers[0], suspect, answers[1:])
    copy, benign = figures["suspects"]
    assert copy["share"] == 1 and copy["k"] == copy["n"]
    assert copy["log10_p"] == pytest.approx(copy["n"] * np.log10(5 / 9))
    assert benign["k"] == benign["n"] == 0 and not benign["claim"]  # it is itself among --benign
    assert figures["settings"] == {"benign": [str(first), str(second)], "alpha": AKH_ALPHA, "tolerance": TOLERANCE,
                                   "images": 359, "notes": []}
    assert status == 1 and f"answers {(answers[0] != test.labels.numpy()).sum()} of 359 test images wrongly" in out
    assert "Inconclusive is not innocent." in out and "nothing below 1/3 is shown" in out  # one was named twice
    assert verify(*flags, folder / "copy.pt")[0] == 1 - copy["claim"]


@pytest.mark.parametrize("run, benign, suspect, words", [
    ("{1}", "{1}", "{0}/nothing", "there is no run in"), ("{1}", "{0}/stolen.pt", "{1}", "no independent model"),
    ("{0}/copy.pt", "{1}", "{1}", "on which data"), ("{1}", "{0}/swapped.pt", "{1}", "--benign {0}/swapped.pt was"),
    ("{1}", "{1}", "{0}/swapped.pt", "in another order"),
])
def test_akh_refuses_wrong_models_in_one_sentence(session, run, benign, suspect, words):
    run, benign, suspect, words = (text.format(session[0], session[2]) for text in (run, benign, suspect, words))
    assert words in refused("utils.verify", "akh", run, "--benign", benign, "--suspect", suspect, "--device", "cpu")
