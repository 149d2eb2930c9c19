"""Networks that the scripts cannot use: one sentence, exit status 2, and no folder of a run."""

import pytest
from commands import good, refused, summary, tree
from small_runs import DATA

from models import outside

pytestmark = pytest.mark.usefixtures("quick", "unnamed")
SHARED = tuple(flag for flag in DATA if flag not in ("--width", 2))
TRAIN = (*SHARED, "--trigger-batch", 4, "--steps", 1, "-ep", 1)
ABSENT = "own_networks:absent"
BAD = {  # name -> words of the sentence
    "tv:resnet19": "torchvision has no classifier 'resnet19'; near it are tv:resnet1",
    "tv:": "torchvision has no classifier ''",
    "no_such_package.nets:net": "no_such_package.nets:net cannot be imported (ModuleNotFoundError",
    ABSENT: "own_networks:absent cannot be imported (AttributeError",
    "own_networks:not_callable": "own_networks:not_callable is no function",
    "own_networks:plain:plain": "there is no architecture",
    # it gives no logits for ten classes
    "own_networks:too_few_logits": "it returned (2, 9), not (2, 10)",
    "own_networks:Probabilities": "gives no logits but probabilities, which sum to 1: leave its last softmax out",
    "own_networks:fails": "cannot be built for 10 classes of images of 32 x 32 pixels (RuntimeError: no such layer)",
    "own_networks:weightless": "has no weights to train",
    "own_networks:ends_the_process": "SystemExit: it ends the program",
    "own_networks:two_needed": "missing 1 required positional argument: 'width'",
    # it shows what it cannot do only when it is trained or saved
    "own_networks:OutsideTheStateDict": "keeps tensors that are in no state dict; make them parameters or buffers",
    "own_networks:ComplexBuffer": "cannot be saved and read again (ValueError",
    "own_networks:NoGradient": "cannot be trained: its logits have no gradient with respect to its weights",
    "own_networks:FrozenBackbone": "-tt margin moves images along the gradient",
    "own_networks:ChangesInPlace": "or pass --bn-stats shared",
    "own_networks:TwoInTraining": "gives no logits in train mode: for 2 images and 10 classes it returned tuple",
    "own_networks:two_momenta": "pass shared or clean",
}


@pytest.mark.parametrize("name", BAD)
def test_a_network_that_cannot_be_used_is_refused_before_anything_is_made(name, tmp_path):
    said = refused("train", "-d", tmp_path, *TRAIN, "-mt", name)
    assert BAD[name] in said and tree(tmp_path) == set(), said


def test_every_command_that_takes_a_network_refuses_it(source, tmp_path):
    before = tree(source.parent)
    steal = ("-d", source.parent, *SHARED, "-tmt", "vgg11", "-dmt", "vgg11")
    for command in (("distill", *steal, "-dmt"), ("extraction", *steal, "-tmt"),
                    ("utils.verify", "claim", source, "--suspect", source, "-mt"),
                    ("utils.verify", "export", source, "--to", tmp_path / "out", "-mt"),
                    ("utils.analyze", "margin", source, "--data-dir", tmp_path / "out", "-mt")):
        said = refused(*command, ABSENT)
        assert BAD[ABSENT] in said and command[-1] in said
    assert tree(source.parent) == before and tree(tmp_path) == set()


@pytest.mark.parametrize("text, words", [
    ("def net(classes:", "SyntaxError"), ("import no_such_package", "No module named 'no_such_package'"),
    ("raise ValueError('one line\\nand another')", "ValueError: one line and another"),
    ("import sys; sys.exit('usage: train it by ...')", "cannot be imported")])
def test_a_module_that_cannot_be_imported_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_module.py").write_text(text)
    assert words in refused("train", "-d", tmp_path / "runs", *TRAIN, "-mt", "my_module:net")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name, more, words", [
    ("own_networks:Body", ("--image-size", 48), "of 48 x 48 pixels (RuntimeError: mat1 and mat2 shapes"),
    ("vgg11", ("--width", 2, "--image-size", 24), "pass --image-size 32"),
    ("own_networks:plain", ("--width", 8), "--width 8: it is for res18"),
])
def test_a_size_or_width_that_the_network_does_not_take_is_refused(name, more, words, tmp_path):
    assert words in refused("train", "-d", tmp_path / "runs", *TRAIN, "-mt", name, *more) and tree(tmp_path) == set()


@pytest.mark.parametrize("function, more", [
    ("Views", ()), ("lazy", ()), ("classes_last", ()), ("WholeNumbers", ()), ("RandomInEvaluation", ()),
    ("FrozenBackbone", ("-tt", "base")), ("two_momenta", ("--bn-stats", "clean")),
    ("ChangesInPlace", ("--bn-stats", "shared")),
])
def test_what_these_or_other_settings_can_train_is_trained_and_can_be_claimed(function, more, tmp_path):
    name = f"own_networks:{function}"
    good("train", "-d", tmp_path, *TRAIN, "-mt", name, *more)
    (run,) = tmp_path.iterdir()
    assert summary(run)["model"] == name
    good("utils.verify", "claim", run, "--suspect", run, "-mt", name)


def test_a_clean_model_that_its_command_cannot_use_is_refused(tmp_path):
    """The scripts import no code for --benign and --label-model; carriers need features before a linear layer."""
    runs = {name: tmp_path / f"digits_own_networks-{name}_none_10_" for name in ("plain", "without_linear")}
    for name in runs:
        good("train", "-d", tmp_path, *TRAIN, "-mt", f"own_networks:{name}", "-tt", "none")
    before, train = tree(tmp_path), ("train", "-d", tmp_path, *TRAIN, "-mt", "vgg11", "--width", 2)
    said = refused("train", "-d", tmp_path, *TRAIN, "-mt", "own_networks:without_linear", "--carriers", 2,
                   "--label-model", runs["without_linear"])
    assert "has no linear layer, before which features are taken" in said
    outside.named.clear()
    for more in (("--benign", runs["plain"]), ("--carriers", 2, "--label-model", runs["plain"])):
        said = refused(*train, *more)
        assert "--benign and --label-model of the scripts import no code: name another model there" in said
    assert tree(tmp_path) == before and not outside.named
