"""Networks of torchvision and of the user, and images of 48 pixels, through the scripts: trained, stolen, claimed."""

import json
import sys

import pytest
from commands import ROOT, finished, good, refused, summary, tree
from photos import photos

from models import outside
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model

pytestmark = pytest.mark.usefixtures("quick", "unnamed")
PLAIN, MOBILE = "own_networks:plain", "tv:mobilenet_v3_small"
SMALL = ("-nq", 10, "--batch-size", 32, "-ep", 1, "--device", "cpu")
DATA = ("-dt", "digits", "--train-size", 128, *SMALL)  # four steps
MARGIN = ("-tt", "margin", "--trigger-batch", 4, "--steps", 2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A source of the user's network, from a process of its own, stolen into a vgg11 and distilled into its kind."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        finished(sys.executable, "train.py", "-d", folder, *DATA, *MARGIN, "-mt", PLAIN)
    good("extraction", "-e", folder, *DATA, "-tmt", PLAIN, "-dmt", "vgg11", "--width", 2, "-at", "soft")
    good("distill", "-e", folder, *DATA, "-tmt", PLAIN, "-dmt", PLAIN)
    return folder / "digits_own_networks-plain_margin_10_"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A torchvision source on a user's images of 48 pixels, stolen into a vgg11; returns its run and the flags."""
    folder = tmp_path_factory.mktemp("large")
    data = photos(folder / "photos", classes=("a", "b", "c"), n=24)
    flags = ("-d", folder / "runs", "-dt", "folder", "--data-dir", data, *SMALL, "-nq", 6)
    good("train", *flags, *MARGIN, "-mt", MOBILE, "--image-size", 48)
    flags += ("-tmt", MOBILE, "-dmt", "vgg11", "--width", 2)
    good("extraction", *flags, "--image-size", 48)
    return folder / "runs" / "folder_tv-mobilenet_v3_small_margin_6_", flags


def hits_of_claim(source, suspect, tmp_path, *flags) -> int:
    """How many of its triggers the claim of a run counts as hit by a suspect; a mark of six could not reach 0.001."""
    file = tmp_path / "claim.json"
    good("utils.verify", "claim", source, "--suspect", suspect, "--trust-owner", "--alpha", 0.1, "--json", file, *flags)
    return json.loads(file.read_text())["hits"]


def test_a_network_without_batchnorm_is_trained_stolen_and_distilled(plain):
    for folder, name in ((plain, PLAIN), (plain / "extraction", "vgg11"), (plain / "distillation", PLAIN)):
        assert summary(folder)["model"] == name == load_checkpoint(find_checkpoint(folder))["model"]["type"]
    assert summary(plain)["clean"] is None  # it has no running statistics
    assert not list(plain.glob("checkpoints/*_clean.pt"))
    assert [row["model"].split(" (")[0] for row in summary(plain / "distillation")["rows"]] == [
        "source margin", "surrogate distill", "surrogate soft"]


def test_claim_and_export_need_the_users_function_by_name_and_a_report_names_it(plain, tmp_path):
    before = tree(plain)
    claims = [("utils.verify", "claim", plain, "--suspect", suspect) for suspect in (plain, plain / "distillation")]
    for command in (*claims, ("utils.verify", "export", plain, "--to", tmp_path / "out")):
        said = refused(*command)
        assert f"add -mt {PLAIN}" in said and not outside.named and tree(plain) == before and tree(tmp_path) == set()
    for *_, suspect in claims:
        assert hits_of_claim(plain, suspect, tmp_path, "-mt", PLAIN) == summary(suspect)["trigger_hits"]
    good("utils.verify", "export", plain, "--to", tmp_path / "out", "-mt", PLAIN)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 10
    assert "not in the page" not in good("utils.report", plain, "-o", page := tmp_path / "page.html")
    assert f"distill copy, {PLAIN}" in page.read_text() and "2 of 2 attacks finished" in page.read_text()


def test_larger_images_are_trained_on_stolen_with_and_claimed_with(large, tmp_path):
    source, flags = large
    for folder, name in ((source, MOBILE), (source / "extraction", "vgg11")):
        model = read_model(folder)
        assert (model.name, model.size, summary(folder)["model"]) == (name, 48, name)
        assert hits_of_claim(source, folder, tmp_path) == summary(folder)["trigger_hits"]
    assert summary(source)["clean"] is not None  # it has BatchNorm
    before = tree(source.parent.parent)  # with the copies of decoded images that lie beside the images
    for script in ("extraction", "distill"):
        assert "pass --image-size 48" in refused(script, *flags, "-admsg", "_other", "--image-size", 64)
    assert tree(source.parent.parent) == before
