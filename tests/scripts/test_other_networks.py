"""Networks of torchvision and of the user, and images of 48 pixels, through the scripts: trained, stolen, claimed."""

import itertools
import json
import shutil
import signal

import pytest
import torch
from commands import ROOT, call, good, refused, run, summary, tree
from comparing import same_runs
from photos import photos
from reading_html import read_safe_page
from shortcuts import skip_fsync_git_and_pictures
from torch.nn.modules.batchnorm import _BatchNorm

from models import outside
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model
from utils.training.loop import Step

pytestmark = pytest.mark.usefixtures("quick", "unnamed")
PLAIN, NOISY, MOBILE = "own_networks:plain", "own_networks:noisy", "tv:mobilenet_v3_small"
SMALL = ("--batch-size", 32, "-ep", 1, "--device", "cpu")
DATA = ("-dt", "digits", "-nq", 20, "--train-size", 128, *SMALL)
MARGIN = ("--trigger-batch", 4, "--steps", 2)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A source of the user's network, from a process of its own, stolen into a vgg11 and distilled into its kind."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch, skip_fsync_git_and_pictures():
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        run("train.py", "-d", folder, "-tt", "margin", *DATA, *MARGIN, "-mt", PLAIN)
        good("extraction", "-e", folder, *DATA, "-tmt", PLAIN, "-dmt", "vgg11", "--width", 2, "-at", "soft")
        good("distill", "-e", folder, *DATA, "-tmt", PLAIN, "-dmt", PLAIN)
    return folder / "digits_own_networks-plain_margin_20_"


@pytest.fixture(scope="session")
def vgg(tmp_path_factory):
    """A source of this project's own architecture, which a thief has stolen into a network of his own."""
    folder = tmp_path_factory.mktemp("vgg")
    with skip_fsync_git_and_pictures():
        good("train", "-d", folder, *DATA, *MARGIN, "-mt", "vgg11", "--width", 2)
        good("extraction", "-e", folder, *DATA, "-tmt", "vgg11", "-dmt", PLAIN)
        good("train", "-d", folder, *DATA, "-mt", PLAIN, "-tt", "none")
    return folder / "digits_vgg11_margin_20_"


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A torchvision source on a user's images of 48 pixels, stolen into a vgg11; returns its run and the data's flags.
    """
    folder = tmp_path_factory.mktemp("large")
    data = photos(folder / "photos", classes=("a", "b", "c"), n=24)
    flags = ("-d", folder / "runs", "-dt", "folder", "--data-dir", data, "-nq", 6, *SMALL)
    with skip_fsync_git_and_pictures():
        good("train", *flags, "-tt", "margin", *MARGIN, "-mt", MOBILE, "--image-size", 48)
        good("extraction", *flags, "-tmt", MOBILE, "-dmt", "vgg11", "--width", 2, "--image-size", 48)
    return folder / "runs" / "folder_tv-mobilenet_v3_small_margin_6_", flags


def hits_of_claim(source, suspect, tmp_path, *flags) -> int:
    """How many of its triggers the claim of a run counts as hit by a suspect."""
    file = tmp_path / "claim.json"
    good("utils.verify", "claim", source, "--suspect", suspect, "--trust-owner", "--json", file, *flags)
    return json.loads(file.read_text())["hits"]


def has_batchnorm(model) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


# ---- networks without BatchNorm -------------------------------------------------------------------------------------


def test_a_network_without_batchnorm_is_trained_stolen_and_distilled(plain):
    source, stolen, distilled = (summary(folder) for folder in (plain, plain / "extraction", plain / "distillation"))
    assert (source["role"], source["model"], source["objective"]) == ("source", PLAIN, "margin")
    assert source["clean"] is None and not list(plain.glob("checkpoints/*_clean.pt"))  # it has no running statistics
    assert (stolen["model"], stolen["attack"], distilled["model"], distilled["attack"]) == (
        "vgg11", "soft", PLAIN, "distill")
    assert [row["model"].split(" (")[0] for row in distilled["rows"]] == [
        "source margin", "surrogate distill", "surrogate soft"]
    for folder, name in ((plain, PLAIN), (plain / "extraction", "vgg11"), (plain / "distillation", PLAIN)):
        assert load_checkpoint(find_checkpoint(folder))["model"]["type"] == name


@pytest.mark.parametrize("name", ["tv:squeezenet1_1", "own_transformers:tiny"])
def test_others_without_batchnorm_learn_are_stolen_and_claimed(name, tmp_path):
    good("train", "-d", tmp_path, "-tt", "margin", *DATA, *MARGIN, "-mt", name)
    source = tmp_path / f"digits_{name.replace(':', '-')}_margin_20_"
    first, last = (read_model(source / "checkpoints" / f"checkpoint_{n}.pt") for n in ("init", "latest"))
    assert not has_batchnorm(last)
    changed = [not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters())]
    assert sum(changed) > len(changed) / 2
    good("extraction", "-e", tmp_path, *DATA, "-tmt", name, "-dmt", name, "-at", "hard")
    for folder in (source, source / "extraction"):
        assert summary(folder)["model"] == name
        assert hits_of_claim(source, folder, tmp_path, "-mt", name) == summary(folder)["trigger_hits"]


@pytest.mark.parametrize("attack", ["prune", "fineprune"])
def test_pruning_by_activation_is_refused_where_no_batchnorm_layer_has_channels_to_prune(attack, plain, tmp_path):
    shutil.copytree(plain, tmp_path / plain.name)
    before = tree(tmp_path)
    prune = ("extraction", "-e", tmp_path, *DATA, "-tmt", PLAIN, "-at", attack, "-admsg", "_pruned")
    assert "--criterion magnitude" in refused(*prune) and tree(tmp_path) == before
    good(*prune, "--criterion", "magnitude")


# ---- a user's function is imported where the command names it -------------------------------------------------------


def test_a_claim_needs_the_users_function_by_name(plain, tmp_path):
    for suspect in (plain, plain / "extraction", plain / "distillation"):
        before = tree(plain)
        said = refused("utils.verify", "claim", plain, "--suspect", suspect)
        assert f"add -mt {PLAIN} if you trust it" in said and not outside.named and tree(plain) == before
        assert hits_of_claim(plain, suspect, tmp_path, "-mt", PLAIN) == summary(suspect)["trigger_hits"]
        outside.named.clear()


def test_an_export_needs_it_too(plain, tmp_path):
    assert f"add -mt {PLAIN}" in refused("utils.verify", "export", plain, "--to", tmp_path / "out")
    assert tree(tmp_path) == set()
    good("utils.verify", "export", plain, "--to", tmp_path / "out", "-mt", PLAIN)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 20


def test_a_report_needs_it_too(plain, tmp_path):
    page = tmp_path / "page.html"
    assert f"add -mt {PLAIN}" in refused("utils.report", plain, "-o", page) and not page.exists()
    assert "not in the page" not in good("utils.report", plain, "-o", page, "-mt", PLAIN)
    text = read_safe_page(page.read_text()).text
    for words in (PLAIN, "soft copy, vgg11", f"distill copy, {PLAIN}", "2 of 2 attacks finished"):
        assert words in text, words


def test_a_report_says_which_copy_it_could_not_ask(vgg, tmp_path):
    page = tmp_path / "page.html"
    without = good("utils.report", vgg, "-o", page)
    assert f"not in the page: {vgg}/extraction is not asked" in without and f"add -mt {PLAIN}" in without
    assert "not in the page" not in good("utils.report", vgg, "-o", page, "-mt", PLAIN)


@pytest.mark.parametrize("more, way", [
    (("-dmt", "vgg11", "--width", 2, "--benign", "BENIGN"), "--benign and --label-model of the scripts import no code"),
    (("-at", "quantize", "--on", "extraction"), "in extraction.py and distill.py, -tmt for the source and -dmt for"),
])
def test_a_script_that_meets_the_users_network_names_the_flag_that_helps(more, way, vgg, tmp_path):
    copied = shutil.copytree(vgg.parent, tmp_path / "runs")
    benign = copied / "digits_own_networks-plain_none_20_"
    steal = ("extraction", "-e", copied, *DATA, "-tmt", "vgg11", "-admsg", "_met",
             *(benign if flag == "BENIGN" else flag for flag in more))
    before = tree(copied)
    said = refused(*steal)
    assert PLAIN in said and way in said and tree(copied) == before
    if "quantize" in more:
        good(*steal, "-dmt", PLAIN)


# ---- networks that draw random numbers ------------------------------------------------------------------------------


def interrupt_at(patch, number) -> None:
    """From now on this process gets SIGINT in that step of training, counted from 1."""
    counter, step = itertools.count(1), Step.__call__

    def stepping(self, inputs):
        if next(counter) == number:
            signal.raise_signal(signal.SIGINT)
        return step(self, inputs)

    patch.setattr(Step, "__call__", stepping)


@pytest.mark.parametrize("script, name, step", [("train", NOISY, 2), ("train", PLAIN, 7), ("extraction", NOISY, 7)])
def test_an_interrupted_run_that_draws_random_numbers_ends_bit_equal(script, name, step, vgg, tmp_path):
    flags = (*DATA, "-ep", 2, *((*MARGIN, "-mt", name) if script == "train" else ("-tmt", "vgg11", "-dmt", name)))
    runs = []
    for part in ("whole", "cut"):
        source = shutil.copytree(vgg, tmp_path / part / vgg.name, ignore=shutil.ignore_patterns("extraction"))
        own = f"digits_{name.replace(':', '-')}_margin_20_"
        runs.append(tmp_path / part / own if script == "train" else source / "extraction")
    good(script, "-d", tmp_path / "whole", *flags)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step)
        cut = call(script, "-d", tmp_path / "cut", *flags)
    assert cut.status == 130 and cut.err.count("\n") == 1 and not (runs[1] / "summary.json").exists()
    torch.manual_seed(step)  # what a new process has drawn before must not matter
    words = f"continuing in epoch {1 + step // 4} of 2, step {step % 4 + 1}"
    assert words in good(script, "-d", tmp_path / "cut", *flags)
    same_runs(*runs)
    assert summary(runs[0]) == summary(runs[1])


def test_every_step_draws_other_numbers(tmp_path, monkeypatch):
    drawn, draw = [], torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda x: drawn.append(draw(x)) or drawn[-1])
    good("train", "-d", tmp_path, *DATA, "-ep", 2, "-tt", "none", "-mt", NOISY)
    assert len({float(numbers.sum()) for numbers in drawn[-8:]}) == 8  # four steps an epoch


# ---- images of 48 pixels --------------------------------------------------------------------------------------------


def test_larger_images_are_trained_on_stolen_with_and_claimed_with(large, tmp_path):
    source, _ = large
    for folder, name in ((source, MOBILE), (source / "extraction", "vgg11")):
        model = read_model(find_checkpoint(folder))
        assert (model.name, model.size, summary(folder)["model"]) == (name, 48, name)
        assert hits_of_claim(source, folder, tmp_path) == summary(folder)["trigger_hits"]
    assert summary(source)["clean"] is not None and has_batchnorm(read_model(find_checkpoint(source)))


def test_an_attack_with_another_image_size_is_refused_and_leaves_nothing(large):
    source, flags = large
    before = tree(source.parent.parent)  # with the copies of decoded images that lie beside the images
    for script in ("extraction", "distill"):
        said = refused(script, *flags, "-tmt", MOBILE, "-dmt", "vgg11", "--width", 2, "-admsg", "_other",
                       "--image-size", 64)
        assert "pass --image-size 48" in said
    assert tree(source.parent.parent) == before
