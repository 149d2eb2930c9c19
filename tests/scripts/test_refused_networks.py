"""Networks that the scripts cannot use: one sentence, exit status 2, and no folder of a run."""

import pytest
import torch
from commands import call, good, refused, summary, tree
from shortcuts import skip_fsync_git_and_pictures
from torch import nn

from models import outside

pytestmark = pytest.mark.usefixtures("quick", "unnamed")
DATA = ("-dt", "digits", "-nq", 5, "--train-size", 64, "--batch-size", 32, "-ep", 1, "--device", "cpu")
TRAIN = (*DATA, "--trigger-batch", 4, "--steps", 1)
UNKNOWN = {  # what no name, module or function stands behind
    "tv:resnet19": "torchvision has no classifier 'resnet19'; near it are tv:resnet1",
    "tv:": "torchvision has no classifier ''", "tv:fasterrcnn_resnet50_fpn": "torchvision has no classifier",
    "no_such_package.nets:net": "no_such_package.nets:net cannot be imported (ModuleNotFoundError",
    "own_networks:absent": "own_networks:absent cannot be imported (AttributeError",
    "own_networks:not_callable": "own_networks:not_callable is no function",
    "own_networks": "there is no architecture 'own_networks'", "own_networks:": "there is no architecture",
    "own_networks:plain:plain": "there is no architecture 'own_networks:plain:plain'",
}
USELESS = {  # functions that give no logits for ten classes
    "two_outputs": "gives no logits: for 2 images and 10 classes it returned tuple, not (2, 10)",
    "too_few_logits": "it returned (2, 9), not (2, 10)", "no_module": "it returned a function, no torch.nn.Module",
    "fails": "cannot be built for 10 classes of images of 32 x 32 pixels (RuntimeError: no such layer)",
    "weightless": "has no weights to train",
}
MODULES = {  # what is wrong with a module -> its text, words of the sentence
    "syntax": ("def net(classes:", "SyntaxError"),
    "missing package": ("import no_such_package", "No module named 'no_such_package'"),
    "error of two lines": ("raise ValueError('one line\\nand another')", "ValueError: one line and another"),
    "ends with a text": ("import sys; sys.exit('usage: train it by ...')", "cannot be imported"),
    "ends well": ("import sys; sys.exit()", "cannot be imported"),
}


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A source that attacks may name; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("source")
    with skip_fsync_git_and_pictures():
        good("train", "-d", folder, *TRAIN, "-mt", "vgg11", "--width", 2)
    return folder


def refused_networks(name, folder, words, flags=("-mt", "-dmt")) -> None:
    """Each script refuses the name in a sentence with these words and with its flag, and leaves the folder alone."""
    before = tree(folder)
    for script, flag in (("train", "-mt"), ("extraction", "-dmt"), ("distill", "-dmt"), ("distill", "-tmt")):
        more = TRAIN if script == "train" else (*DATA, "-tmt", "vgg11")
        if flag in flags:
            said = refused(script, "-d", folder, *more, flag, name)
            assert words in said and flag in said, said
    assert tree(folder) == before


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_stands_for_nothing_is_refused(name, source):
    refused_networks(name, source, UNKNOWN[name], ("-mt", "-dmt", "-tmt"))


@pytest.mark.parametrize("name", UNKNOWN)
def test_commands_that_read_runs_refuse_it_too(name, source, tmp_path):
    run, before = source / "digits_vgg11_margin_5_", tree(source)
    for command in (("utils.verify", "claim", run, "--suspect", run), ("utils.verify", "export", run, "--to"),
                    ("utils.report", run, "-o"), ("utils.analyze", "margin", run, "--data-dir")):
        last = [tmp_path / "out"] if command[-1] != run else []
        assert UNKNOWN[name] in refused(*command, *last, "-mt", name)
    assert tree(source) == before and tree(tmp_path) == set()


@pytest.mark.parametrize("function", USELESS)
def test_a_function_that_gives_no_logits_is_refused(function, source):
    refused_networks(f"own_networks:{function}", source, USELESS[function])


@pytest.mark.parametrize("case", MODULES)
def test_a_module_that_cannot_be_imported_is_refused(case, source, tmp_path, monkeypatch):
    text, words = MODULES[case]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_module.py").write_text(text)
    refused_networks("my_module:net", source, words, ("-mt", "-dmt", "-tmt"))


@pytest.mark.parametrize("flags, words", [
    (("-mt", "tv:squeezenet1_1", "--image-size", 16), "-mt tv:squeezenet1_1 cannot be built"),
    (("-mt", "own_transformers:tiny", "--image-size", 48), "of 48 x 48 pixels (AssertionError: Wrong image height"),
    (("-mt", "vgg11", "--width", 2, "--image-size", 24), "pass --image-size 32"),
    (("-mt", "tv:squeezenet1_1", "--width", 8), "--width 8: it is for res18"),
    (("-mt", "own_networks:plain", "--width", 8), "--width 8: it is for res18"),
])
def test_a_size_or_width_that_the_network_does_not_take_is_refused(flags, words, tmp_path):
    said = refused("train", "-d", tmp_path / "runs", *TRAIN, *flags)
    assert words in said and tree(tmp_path) == set()


# ---- a user's network where no flag of the command names it ---------------------------------------------------------


def test_train_and_prepare_give_no_advice_that_does_not_help(source, tmp_path):
    clean = source / "digits_own_networks-plain_none_5_"
    good("train", "-d", source, *TRAIN, "-mt", "own_networks:plain", "-tt", "none")
    outside.named.clear()
    train = ("train", "-d", tmp_path / "runs", *TRAIN, "-mt", "vgg11", "--width", 2)
    about = "--benign and --label-model of the scripts import no code: name another model there"
    assert about in refused(*train, "--benign", clean)
    for more in (("--label-strategy", "plausible"), ("--carriers", 2)):
        said = refused(*train, *more, "--label-model", clean)
        assert about in said
    said = refused("utils.verify", "prepare", tmp_path / "prepared", "--beacon-name", "b", "-dt", "digits", "-nq", 5,
                   "--label-strategy", "plausible", "--label-model", clean)
    assert about in said
    assert tree(tmp_path) == set() and not outside.named


def test_carriers_need_a_label_model_with_features(source, tmp_path):
    good("train", "-d", source, *TRAIN, "-mt", "own_networks:without_linear", "-tt", "none")
    clean = source / "digits_own_networks-without_linear_none_5_"
    said = refused("train", "-d", tmp_path, *TRAIN, "-mt", "own_networks:without_linear", "--carriers", 2,
                   "--label-model", clean)
    assert "has no linear layer, before which features are taken" in said and tree(tmp_path) == set()


# ---- networks that show what they cannot do only when they are trained or saved -------------------------------------


class _Body(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 4, 4), nn.Linear(16 * 8 * 8, classes)

    def forward(self, x):
        return self.last(self.first(x).relu().flatten(1))


class _Views(_Body):
    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x.view(x.size(0), -1))  # as many networks do it, and only where the memory format allows it


class _WholeNumbers(_Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("order", torch.arange(1023, -1, -1))

    def forward(self, x):
        return self.last(self.first(x).relu().flatten(1)[:, self.order])


class _TwoInTraining(_Body):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


class _WithoutGradient(_Body):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class _Frozen(_Body):
    def forward(self, x):
        with torch.no_grad():
            x = self.first(x).relu()
        return self.last(x.flatten(1))


class _ChangesInPlace(_Body):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("scale", torch.ones(16, 1, 1))

    def forward(self, x):
        x = self.first(x).relu()
        if self.training:
            self.scale.mul_(0.9).add_(x.detach().mean(), alpha=0.1)
        return self.last((x * self.scale).flatten(1))


def lazy(classes):
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def two_momenta(classes):
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16, momentum=0.01), nn.Flatten(),
                         nn.Linear(256, classes))


def ends_the_process(classes):
    raise SystemExit(0)


views, whole_numbers, two_in_training, without_gradient = _Views, _WholeNumbers, _TwoInTraining, _WithoutGradient
frozen, changes_in_place = _Frozen, _ChangesInPlace


@pytest.mark.parametrize("function", ["views", "whole_numbers", "two_in_training", "without_gradient", "lazy",
                                      "two_momenta", "ends_the_process", "frozen", "changes_in_place"])
def test_a_network_is_trained_to_the_end_or_refused_before_anything_is_made(function, tmp_path):
    name = f"{__name__}:{function}"
    done = call("train", "-d", tmp_path, *TRAIN, "-mt", name)
    if done.status == 0:
        run = tmp_path / f"digits_{__name__}-{function}_margin_5_"
        assert summary(run)["model"] == name
        good("utils.verify", "claim", run, "--suspect", run, "-mt", name)
    else:
        assert done.status == 2 and done.err.count("\n") == 1 and done.err.startswith("train.py: error: "), done
        assert name in done.err or "--bn-stats" in done.err
        assert tree(tmp_path) == set(), done.err


@pytest.mark.parametrize("function, more", [
    ("views", ()), ("lazy", ()), ("whole_numbers", ()), ("two_momenta", ("--bn-stats", "clean")),
    ("frozen", ("-tt", "base")), ("changes_in_place", ("--bn-stats", "shared")), ("changes_in_place", ("-tt", "none")),
])
def test_what_another_setting_can_train_is_trained(function, more, tmp_path):
    good("train", "-d", tmp_path, *TRAIN, "-mt", f"{__name__}:{function}", *more)


def test_a_source_without_gradients_of_images_is_not_stolen_by_an_ascent(tmp_path):
    name = f"{__name__}:frozen"
    good("train", "-d", tmp_path, *TRAIN, "-mt", name, "-tt", "base")
    before = tree(tmp_path)
    steal = ("extraction", "-d", tmp_path, *DATA, "-tt", "base", "-tmt", name, "-dmt", "vgg11", "--width", 2)
    assert "-at margin moves images along the gradient" in refused(*steal, "-at", "margin")
    assert tree(tmp_path) == before
