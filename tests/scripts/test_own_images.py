"""The scripts on a user's own images."""

import pytest
from commands import call, good, refused, summary, tree
from photos import damage, photos
from small_runs import TRAIN

from utils.analyze import main as analyze_main
from utils.runs.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """A run on a user's images, some of them damaged; returns its folder and flags."""
    folder = tmp_path_factory.mktemp("folder")
    data = damage(photos(folder / "pets", n=40))
    photos(folder / "cars", parts=(".",), classes=("a", "b", "c"), n=20)
    photos(folder / "birds", parts=(".",), classes=("a", "b", "c"), n=40)
    flags = ("-dt", "folder", "--data-dir", data, "-nq", 3, "--batch-size", 16, "--width", 2, "--device", "cpu")
    flags += ("-ep", 1)
    bad = call("train", "-d", folder / "runs", *flags, "-mt", "vgg11", "-tt", "margin", "--trigger-batch", 4)
    assert bad.status == 2 and not (folder / "runs").exists()
    assert "3 of 163 images" in bad.err and "train/cat/cut.jpg" in bad.err
    flags += ("--skip-bad-images",)
    out = good("train", "-d", folder / "runs", *flags, "-mt", "vgg11", "-tt", "margin", "--trigger-batch", 4)
    assert "skipped 3 unreadable images" in out
    return folder, flags


def test_own_images_end_to_end(own_images):
    folder, flags = own_images
    source = folder / "runs" / "folder_vgg11_margin_3_"
    assert summary(source)["dataset"] == "folder" and summary(source)["train_size"] == 72
    assert load_checkpoint(source / "checkpoints/checkpoint_nat_best.pt")["about"]["classes"] == ["cat", "dog"]
    assert 0.0 in (summary(source)["log10_p"]["T1"], summary(source)["clean"]["log10_p"]["T1"])  # two classes
    steal = ("-e", folder / "runs", *flags, "-tmt", "vgg11", "-dmt", "vgg11")
    # soft and hard need no labels: another folder, smaller and with other classes, will do
    said = good("extraction", *steal, "-at", "soft", "-dsrc", "folder", "--data-dir-source", folder / "cars")
    assert "cropped at random and mirrored" in said
    s = summary(source / "extraction")
    assert s["dataset"] == s["dataset_source"] == "folder" and s["trigger_size"] == 3
    assert load_checkpoint(source / "extraction/checkpoints/checkpoint_nat_best.pt")["model"]["state_dict"][
        "1.linear.bias"].shape == (2,)
    good("distill", *steal)


def test_labels_of_other_classes_are_refused_where_they_are_needed(own_images):
    folder, flags = own_images
    steal = ("-e", folder / "runs", *flags, "-tmt", "vgg11", "-dmt", "vgg11", "-admsg", "_none")
    before = tree(folder)
    for more in (("-dsrc", "folder", "--data-dir-source", folder / "cars"), ("-dsrc", "digits")):
        bad = refused("extraction", *steal, "-at", "reg", *more)
        assert "-dsrc" in bad and "soft or hard" in bad
    bad = refused("extraction", *steal, "--data-dir", folder / "birds")  # not the source's data
    assert "3 classes are not the source's 2" in bad
    bad = refused("distill", *steal, "--data-dir", folder / "birds")
    assert "classes" in bad
    assert {p for p in tree(folder) - before if ".decoded-" not in p.name} == set()


def test_the_same_flags_on_other_images_are_refused(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        photos(tmp_path / name, seed=seed)
    flags = ("-d", tmp_path / "runs", "-dt", "folder", "-nq", 2, "-mt", "vgg11", "--width", 2, "-ep", 1,
             "--batch-size", 8, "-tt", "none")
    good("train", *flags, "--data-dir", tmp_path / "one")
    done = call("train", *flags, "--data-dir", tmp_path / "two")
    assert done.status == 2 and "data-sha256" in done.err and "-msg" in done.err


def test_an_analysis_needs_the_runs_own_images(own_images, capsys):
    folder, other = own_images[0] / "runs" / "folder_vgg11_margin_3_", own_images[0] / "birds"
    with pytest.raises(SystemExit) as end:
        analyze_main(["energy", str(folder), "--data-dir", str(other)])
    assert end.value.code == 2 and f"--data-dir {other}: these are not the images" in capsys.readouterr().err
    assert not (folder / "energy.json").exists()


def test_models_with_other_classes_are_refused(own_images, tmp_path):
    pets = own_images[0] / "runs" / "folder_vgg11_margin_3_"
    said = refused("train", "-d", tmp_path / "r", *TRAIN, "--label-strategy", "highest", "--label-model", pets)
    assert "--label-model" in said and "2 classes" in said
    said = refused("train", "-d", tmp_path / "r", *TRAIN, "--benign", pets)
    assert f"--benign {pets} is no independent model but the result of 'margin'" in said
    assert tree(tmp_path) == set()
