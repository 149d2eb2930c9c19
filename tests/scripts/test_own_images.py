"""The scripts on a user's own images."""

import json

import pytest
from commands import good, refused, summary, tree
from photos import damage, photos

from utils.data.sets import load_data
from utils.runs.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("quick")
FLAGS = ("-dt", "folder", "-nq", 3, "--batch-size", 16, "--width", 2, "--device", "cpu", "-ep", 1)
SOURCE = "folder_vgg11_margin_3_"


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """A run on a user's images, some of them damaged, beside other images; returns the folder and an attack's flags."""
    folder = tmp_path_factory.mktemp("folder")
    data = ("--data-dir", damage(photos(folder / "pets", n=40)))
    photos(folder / "cars", parts=(".",), classes=("a", "b", "c"), n=20)
    train = ("train", "-d", folder / "runs", *FLAGS, *data, "-mt", "vgg11", "-tt", "margin", "--trigger-batch", 4)
    bad = refused(*train)
    assert "3 of 163 images" in bad and "train/cat/cut.jpg" in bad and not (folder / "runs").exists()
    assert "skipped 3 unreadable images" in good(*train, "--skip-bad-images")
    return folder, ("-e", folder / "runs", *FLAGS, *data, "--skip-bad-images", "-tmt", "vgg11", "-dmt", "vgg11")


def test_own_images_end_to_end(own_images):
    folder, steal = own_images
    source = folder / "runs" / SOURCE
    assert summary(source)["dataset"] == "folder" and summary(source)["train_size"] == 72
    assert load_checkpoint(source / "checkpoints/checkpoint_nat_best.pt")["about"]["classes"] == ["cat", "dog"]
    assert 0.0 in (summary(source)["log10_p"]["T1"], summary(source)["clean"]["log10_p"]["T1"])  # two classes
    # soft and hard need no labels: another folder, smaller and with other classes, will do
    said = good("extraction", *steal, "-at", "soft", "-dsrc", "folder", "--data-dir-source", folder / "cars")
    assert "cropped at random and mirrored" in said
    said = refused("extraction", *steal, "-at", "soft", "-dsrc", "cifar10")  # not into the folder of photographs
    assert "-dsrc cifar10" in said and "name their folder by --data-dir-source" in said
    s = summary(source / "extraction")
    assert s["dataset"] == s["dataset_source"] == "folder" and s["trigger_size"] == 3
    weights = load_checkpoint(source / "extraction/checkpoints/checkpoint_nat_best.pt")["model"]["state_dict"]
    assert weights["1.linear.bias"].shape == (2,)
    assert weights["0.mu"].flatten().tolist() == pytest.approx(load_data("folder", folder / "cars").mean)  # his own
    good("distill", *steal)


def test_a_renamed_class_folder_is_told_from_the_one_that_a_run_was_made_of(tmp_path):
    root = photos(tmp_path / "pets", n=20)
    train = ("train", "-d", tmp_path, *FLAGS, "--data-dir", root, "-mt", "vgg11", "-tt", "margin", "--trigger-batch", 4)
    good(*train)
    for part in ("train", "test"):
        (root / part / "dog").rename(root / part / "hound")
    assert "was made when the class folders of --data-dir had other names: restore them" in refused(*train)
    said = refused("extraction", "-e", tmp_path, *FLAGS, "--data-dir", root, "-tmt", "vgg11", "-dmt", "vgg11")
    assert "its 2 classes are not the source's 2, but have other names or another order" in said
    about = json.loads((tmp_path / SOURCE / "run.json").read_text())
    del about["settings"]["classes_sha256"]  # of a run of before
    (tmp_path / SOURCE / "run.json").write_text(json.dumps(about))
    assert "is finished" in good(*train)


def test_images_and_labels_of_others_are_refused_where_the_runs_own_are_needed(own_images):
    (folder, steal), before = own_images, tree(own_images[0])
    cars, other = folder / "cars", (*steal, "-admsg", "_none", "--train-size", 40)
    bad = refused("extraction", *steal, "-admsg", "_none", "-at", "reg", "-dsrc", "digits")
    assert "-dsrc" in bad and "soft or hard" in bad
    bad = refused("extraction", *steal, "-admsg", "_none", "-dsrc", "svhn", "--data-dir-source", folder / "cars")
    assert "-dsrc svhn" in bad and "name its folder with --data-dir-source" in bad
    bad = refused("extraction", *steal, "-admsg", "_none", "-dsrc", "folder", "--data-dir-source", folder / "runs")
    assert f"--data-dir-source {folder / 'runs'}: only the class {SOURCE}" in bad
    for script in ("extraction", "distill"):
        assert "3 classes are not the source's 2" in refused(script, *other, "--data-dir", cars)
    said = refused("utils.analyze", "energy", folder / "runs" / SOURCE, "--data-dir", cars)
    assert f"--data-dir {cars}: these are not the images" in said
    assert {p for p in tree(folder) - before if ".decoded-" not in p.name} == set()
