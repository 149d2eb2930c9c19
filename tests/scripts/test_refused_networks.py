"""Networks that the scripts cannot use: one sentence, exit status 2, and no folder of a run."""

import pytest
from commands import good, refused, summary, tree
from shortcuts import skip_fsync_git_and_pictures

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


@pytest.mark.parametrize("name", ["tv:", "own_networks:absent"])
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


@pytest.mark.parametrize("function, words", [
    ("OutsideTheStateDict", "keeps tensors that are in no state dict; make them parameters or buffers"),
    ("ExtraState", "cannot be saved and read again (AttributeError"),
    ("ComplexBuffer", "cannot be saved and read again (ValueError"),
    ("EndsInTraining", "cannot be trained on cpu (SystemExit: it ends the program with no training"),
    ("NoGradient", "cannot be trained: its logits have no gradient with respect to its weights"),
    ("FrozenBackbone", "-tt margin moves images along the gradient"), ("ChangesInPlace", "or pass --bn-stats shared"),
    ("TwoInTraining", "gives no logits in train mode: for 2 images and 10 classes it returned tuple"),
    ("two_momenta", "pass shared or clean"), ("ends_the_process", "SystemExit: it ends the program"),
])
def test_a_network_that_cannot_be_trained_or_kept_is_refused_before_anything_is_made(function, words, tmp_path):
    said = refused("train", "-d", tmp_path, *TRAIN, "-mt", f"own_networks:{function}")
    assert words in said and tree(tmp_path) == set(), said


@pytest.mark.parametrize("function, more", [
    ("Views", ()), ("lazy", ()), ("WholeNumbers", ()), ("RandomInEvaluation", ()), ("FrozenBackbone", ("-tt", "base")),
    ("two_momenta", ("--bn-stats", "clean")), ("ChangesInPlace", ("--bn-stats", "shared")),
])
def test_what_these_or_other_settings_can_train_is_trained_and_can_be_claimed(function, more, tmp_path):
    name = f"own_networks:{function}"
    good("train", "-d", tmp_path, *TRAIN, "-mt", name, *more)
    (run,) = tmp_path.iterdir()
    assert summary(run)["model"] == name
    good("utils.verify", "claim", run, "--suspect", run, "-mt", name)


def test_a_source_without_gradients_of_images_is_not_stolen_by_an_ascent(tmp_path):
    name = "own_networks:FrozenBackbone"
    good("train", "-d", tmp_path, *TRAIN, "-mt", name, "-tt", "base")
    before = tree(tmp_path)
    steal = ("extraction", "-d", tmp_path, *DATA, "-tt", "base", "-tmt", name, "-dmt", "vgg11", "--width", 2)
    assert "-at margin moves images along the gradient" in refused(*steal, "-at", "margin")
    assert tree(tmp_path) == before
