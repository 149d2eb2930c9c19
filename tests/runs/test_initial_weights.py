"""`--init`: a training that starts from weights on disk."""

import math
import re

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn
from torch.nn.utils import prune

import models
from utils.runs.checkpoints import pack_checkpoint
from utils.runs.weights import MeanOf, read_initial_weights
from utils.system.refusals import Refusal


def network(classes=4, seed=0, width=4):
    torch.manual_seed(seed)
    return models.build("res18", classes, width=width)


WEIGHTS = {name: tensor.clone() for name, tensor in network(seed=1).state_dict().items()}
ALONE = {name.removeprefix("1."): tensor for name, tensor in WEIGHTS.items() if name.startswith("1.")}
OF_CHECKPOINT = pack_checkpoint(network(seed=1))


def under(prefix, weights=ALONE):
    return {prefix + name: tensor for name, tensor in weights.items()}


KINDS = {  # ways in which weights lie on disk
    "checkpoint": OF_CHECKPOINT, "state dict": WEIGHTS, "network alone": ALONE,
    "wrapped": {"epoch": 3, "state_dict": WEIGHTS}, "parallel": under("module.", WEIGHTS),
    "no counters": {name: tensor for name, tensor in WEIGHTS.items() if not name.endswith("num_batches_tracked")},
    "compiled": under("_orig_mod."), "compiled in parallel": under("module._orig_mod."),
    "compiled inside": {name.replace("1.layer1.", "1.layer1._orig_mod."): t for name, t in WEIGHTS.items()},
    "lightning": {"state_dict": under("model."), "epoch": 3}, "own wrapper": under("net.backbone."),
    "lightning of ours": {"state_dict": under("classifier.", WEIGHTS)},
    "swa": {"n_averaged": torch.tensor(3), **under("module.")},
    "equal ones beside": {**under("model."), **under("ema_model.")}, "twice": {"net": ALONE, "ema": under("module.")},
    "average in an entry": {"state_dict": ALONE, "state_dict_ema": {}, "optimizer": {"state": {}}},
    "average alone": {"epoch": 3, "ema": {"module": ALONE}},
    "pytorch-cifar": {"net": under("module."), "acc": 93.0, "epoch": 3},
    "tutorial": {"epoch": 3, "model_state_dict": ALONE, "loss": 0.1},
}


@pytest.mark.parametrize("kind", [*KINDS, "safetensors"])
def test_every_kind_of_file_gives_the_same_model(kind, tmp_path):
    model, said, path = network(), [], tmp_path / f"w.{'safetensors' if kind == 'safetensors' else 'pt'}"
    save_file(WEIGHTS, path) if kind == "safetensors" else torch.save(KINDS[kind], path)
    initial = read_initial_weights(path)
    initial.check("res18", 4, 4)
    initial.load_into(model, said.append)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, WEIGHTS[name]), name
    assert len(said) == 1 and initial.sha256[:16] in said[0] and "last layer" not in said[0]


@pytest.mark.parametrize("name, width, head", [("res18", 4, "1.linear"), ("tv:squeezenet1_1", 64, "1.classifier.1.")])
def test_a_head_of_other_classes_is_new_and_the_log_says_so(name, width, head, tmp_path):
    """It is a linear layer, or a convolution."""
    model, old, said = models.build(name, 6, width=width), models.build(name, 4, width=width).state_dict(), []
    fresh = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.save(dict(old), tmp_path / "w.pt")
    initial = read_initial_weights(tmp_path / "w.pt")
    initial.check(name, 6, width)
    initial.load_into(model, said.append)
    assert "tells 4 classes apart, so a new one is trained" in said[0]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if key.startswith(head) else old)[key]), key


@pytest.mark.parametrize("name, size", [("tv:googlenet", 32), ("tv:inception_v3", 96)])
def test_classifiers_beside_the_one_that_are_not_built_are_left_out(name, size, tmp_path, monkeypatch):
    from torchvision.models import get_model

    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor)  # which takes half a minute
    whole = get_model(name.removeprefix("tv:"), weights=None, num_classes=4, init_weights=False)
    assert any("aux" in key.lower() for key in whole.state_dict())
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    model = models.build(name, 4, size=size)
    read_initial_weights(tmp_path / "w.pt").load_into(model)
    assert torch.equal(model.state_dict()["1.fc.weight"], whole.fc.weight)


def parts_of(take_apart) -> dict:
    """The weights of a network, one of which is taken apart by a function of (module, name)."""
    model = network()
    take_apart(model[1].conv1, "weight")
    return model.state_dict()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change, words", [
    (lambda w: w | {"1.extra": torch.ones(1)}, "no 1.extra; its own weights are all there: write the file without"),
    (lambda w: {n: t for n, t in w.items() if n != "1.conv1.weight"}, "lacks 1.conv1.weight; pass the -mt"),
    (lambda w: w | {"1.conv1.weight": torch.ones(2, 3, 3, 3)}, "the shape (2, 3, 3, 3), the model's has (4, 3, 3, 3)"),
    (lambda w: w | {"1.conv1.weight": torch.full((4, 3, 3, 3), torch.nan)}, "1.conv1.weight is not finite"),
    (lambda w: parts_of(prune.identity), "saved in parts: put them together by torch.nn.utils.prune.remove before"),
    (lambda w: parts_of(nn.utils.weight_norm), "by torch.nn.utils.remove_weight_norm before saving"),
    (lambda w: parts_of(nn.utils.spectral_norm), "by torch.nn.utils.remove_spectral_norm before saving"),
    (lambda w: parts_of(nn.utils.parametrizations.weight_norm), "by torch.nn.utils.parametrize.remove_param"),
    (lambda w: {"state_dict": w, "ema": under("module.", {n: t + 1 for n, t in w.items()}) | {"decay": torch.ones(1)}},
     "holds more than one network"),
    (lambda w: under("teacher.", {n: t + 1 for n, t in ALONE.items()}) | under("student."), "more than one network"),
    (lambda w: {"epoch": 3, "optimizer": {}}, "holds no state dict: its entries are epoch, optimizer"),
    (lambda w: {}, "holds no state dict: its entries are none"),
])
def test_weights_that_do_not_fit_are_refused_before_a_model_is_made(tmp_path, change, words):
    torch.save(change(WEIGHTS), path := tmp_path / "weights.pt")
    with pytest.raises(Refusal) as caught:
        read_initial_weights(path).check("res18", 4, 4)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_an_older_format_is_refused_with_a_way_out_that_works(tmp_path):
    torch.save(WEIGHTS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(Refusal, match="older format of torch before 1.6.*weights_only=True") as refused:
        read_initial_weights(tmp_path / "old.pt")
    exec(re.search(r"torch\.save\(.*", str(refused.value))[0])
    read_initial_weights(tmp_path / "old.pt").check("res18", 4, 4)


@pytest.mark.parametrize("name, content, words", [
    ("a.safetensors", b"\xff" * 40, "no .safetensors file"),
    ("b.safetensors", b"\x08" + bytes(7) + b"nonsense", "no .safetensors file"), ("b.pt", None, "does not exist"),
    ("a.pt", b"no zip", "a.pt is no checkpoint that can be read safely"),
    ("empty.pt", b"", "empty.pt is no checkpoint that can be read safely: it is empty"),
    ("empty.safetensors", b"", "no .safetensors file that can be read: it is empty"),
    ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer: run git lfs pull"),
    ("page.pt", b"<html><body>404", "a web page: download the file itself"),
    ("other.pt", save(ALONE), "a safetensors file: give it the ending .safetensors"),
    ("other.safetensors", b"PK\x03\x04\0\0", "a file of torch.save: give it the ending .pt")])
def test_files_that_are_none_are_refused(name, content, words, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal, match=words):
        read_initial_weights(tmp_path / name)


def test_the_mean_of_models_is_that_of_their_log_probabilities():
    """Odds of 1 : 9 and 4 : 1 have the geometric mean 2 : 3, whatever is added to the logits of a model."""
    answers = torch.tensor([[[0, math.log(9)]], [[1000 + math.log(4), 1000]]], dtype=torch.float64)
    models = [type("Fixed", (torch.nn.Module,), {"forward": lambda self, x, a=a: a})() for a in answers]
    assert MeanOf(models)(None).softmax(1).tolist() == [pytest.approx([0.4, 0.6])]


def test_numbers_of_a_kind_that_nobody_trains_with_are_refused(tmp_path):
    save_file(WEIGHTS | {"1.conv1.weight": WEIGHTS["1.conv1.weight"].to(torch.float8_e4m3fn)},
              path := tmp_path / "w.safetensors")
    with pytest.raises(Refusal, match="1.conv1.weight holds torch.float8_e4m3fn numbers; save it as float32"):
        read_initial_weights(path).check("res18", 4, 4)
