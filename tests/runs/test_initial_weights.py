"""`--init`: a training that starts from weights on disk."""

import re

import pytest
import torch

import models
from utils.runs.checkpoints import pack_checkpoint, save_checkpoint
from utils.runs.initial_weights import read_initial_weights
from utils.system.refusals import Refusal


def network(classes=4, seed=0, width=4):
    torch.manual_seed(seed)
    return models.build("res18", classes, width=width)


@pytest.fixture
def written(tmp_path):
    """write(kind) -> the file of `network(seed=1)` in one of the ways in which weights lie on disk."""
    safetensors = pytest.importorskip("safetensors.torch")

    def write(kind, model=None):
        model = model or network(seed=1)
        weights, path = {n: t.clone() for n, t in model.state_dict().items()}, tmp_path / f"{kind}.pt"
        if kind == "checkpoint":
            save_checkpoint(path, pack_checkpoint(model, "res18"))
        elif kind == "safetensors":
            path = path.with_suffix(".safetensors")
            safetensors.save_file(weights, path)
        else:
            network_alone = {n.removeprefix("1."): t for n, t in weights.items() if n.startswith("1.")}
            under = lambda prefix: {prefix + n: t for n, t in network_alone.items()}
            torch.save({
                "compiled": under("_orig_mod."), "compiled in parallel": under("module._orig_mod."),
                "compiled inside": {n.replace("1.layer1.", "1.layer1._orig_mod."): t for n, t in weights.items()},
                "lightning": {"state_dict": under("model."), "epoch": 3}, "own wrapper": under("net.backbone."),
                "lightning of ours": {"state_dict": {f"classifier.{n}": t for n, t in weights.items()}},
                "swa": {"n_averaged": torch.tensor(3), **under("module.")},
                "average beside": {**under("model."), **{n: 0 * t for n, t in under("ema_model.").items()}},
                "average in an entry": {"state_dict": network_alone, "state_dict_ema": {}, "optimizer": {"state": {}}},
                "average alone": {"epoch": 3, "ema": {"module": network_alone}},
                "pytorch-cifar": {"net": under("module."), "acc": 93.0, "epoch": 3},
                "tutorial": {"epoch": 3, "model_state_dict": network_alone, "loss": 0.1},
                "state dict": weights, "wrapped": {"epoch": 3, "state_dict": weights},
                "parallel": {f"module.{n}": t for n, t in weights.items()}, "network alone": network_alone,
                "no counters": {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")},
            }[kind], path)
        return path

    return write


@pytest.mark.parametrize("kind", ["state dict", "checkpoint", "safetensors", "wrapped", "parallel", "network alone",
                                  "no counters", "compiled", "compiled in parallel", "compiled inside", "lightning",
                                  "own wrapper", "lightning of ours", "swa", "average beside", "average in an entry",
                                  "average alone", "pytorch-cifar", "tutorial"])
def test_every_kind_of_file_gives_the_same_model(written, kind):
    model, said = network(), []
    initial = read_initial_weights(written(kind))
    initial.check("res18", 4, 4)
    initial.load_into(model, said.append)
    for (name, tensor), wanted in zip(model.state_dict().items(), network(seed=1).state_dict().values()):
        assert torch.equal(tensor, wanted), name
    assert len(said) == 1 and initial.record()["init_sha256"][:16] in said[0] and "last layer" not in said[0]


def test_a_head_of_other_classes_is_new_and_the_log_says_so(written):
    model, fresh, said = network(classes=6), network(classes=6).state_dict(), []
    read_initial_weights(written("state dict")).load_into(model, said.append)
    old = network(seed=1).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if name.startswith("1.linear") else old)[name]), name
    assert "tells 4 classes apart, so a new one is trained" in said[0]


def test_a_head_that_is_a_convolution_is_new_too(written):
    name, said = "tv:squeezenet1_1", []
    model, old = models.build(name, 6), models.build(name, 4)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initial = read_initial_weights(written("state dict", old))
    initial.check(name, 6, 64)
    initial.load_into(model, said.append)
    assert "tells 4 classes apart, so a new one is trained" in said[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if name.startswith("1.classifier.1.") else old.state_dict())[name]), name


@pytest.mark.parametrize("name, size", [("tv:googlenet", 32), ("tv:inception_v3", 96)])
def test_classifiers_beside_the_one_that_are_not_built_are_left_out(tmp_path, name, size):
    from torchvision.models import get_model

    whole = get_model(name.removeprefix("tv:"), weights=None, num_classes=4, init_weights=False)
    assert any("aux" in key.lower() for key in whole.state_dict())
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    model = models.build(name, 4, size=size)
    read_initial_weights(tmp_path / "w.pt").load_into(model)
    assert torch.equal(model.state_dict()["1.fc.weight"], whole.fc.weight)


@pytest.mark.parametrize("change, words", [
    (lambda w: w | {"1.extra": torch.ones(1)}, "the model has no 1.extra"),
    (lambda w: {n: t for n, t in w.items() if n != "1.conv1.weight"}, "lacks 1.conv1.weight; pass the -mt"),
    (lambda w: w | {"1.conv1.weight": torch.ones(2, 3, 3, 3)}, "the shape (2, 3, 3, 3), the model's has (4, 3, 3, 3)"),
    (lambda w: w | {"1.conv1.weight": torch.full((4, 3, 3, 3), torch.nan)}, "1.conv1.weight is not finite"),
    (lambda w: {"epoch": 3}, "holds no state dict"),
    (lambda w: {}, "holds no state dict"),
])
def test_weights_that_do_not_fit_are_refused_before_a_model_is_made(tmp_path, change, words):
    path = tmp_path / "weights.pt"
    torch.save(change(dict(network().state_dict())), path)
    with pytest.raises(Refusal) as caught:
        read_initial_weights(path).check("res18", 4, 4)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_what_is_beside_a_whole_network_and_an_older_format_are_refused_with_a_way_out(tmp_path):
    weights = network(seed=1).state_dict()
    torch.save({**weights, "criterion.weight": torch.ones(4)}, tmp_path / "more.pt")
    with pytest.raises(Refusal, match="no .*criterion.weight; its own weights are all there: write"):
        read_initial_weights(tmp_path / "more.pt").check("res18", 4, 4)
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(Refusal, match="older format of torch before 1.6.*weights_only=True") as refused:
        read_initial_weights(tmp_path / "old.pt")
    exec(re.search(r"torch\.save\(.*", str(refused.value))[0])  # the way out that it names
    read_initial_weights(tmp_path / "old.pt").check("res18", 4, 4)
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "none.pt")
    with pytest.raises(Refusal, match="holds no state dict: its entries are epoch, optimizer"):
        read_initial_weights(tmp_path / "none.pt")


def test_files_that_are_none_are_refused(tmp_path):
    pytest.importorskip("safetensors")
    for name, content, words in (("a.safetensors", b"\xff" * 40, "no .safetensors file"),
                                 ("a.pt", b"no zip", "no checkpoint that can be read safely"),
                                 ("b.pt", None, "does not exist")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(Refusal, match=words):
            read_initial_weights(tmp_path / name)
