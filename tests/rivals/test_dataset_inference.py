"""Dataset Inference: the distances of both walks worked out by hand, the test of scores, and `utils.verify di`."""

import json
import shutil

import pytest
import torch
from commands import good, refused, verify
from PIL import Image
from torch import nn

import models
from utils.data.sets import load_data
from utils.rivals.dataset_inference import blind_walk, di_features, distance_norm, mingd, score_difference
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, pack_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("quick")


def model_of(first):
    """Two logits: first(x) and 0."""
    return lambda x: torch.stack([first(x), 0 * x[:, 0]], 1)


double = lambda *rows: torch.tensor(rows, dtype=torch.float64)


def test_blind_walk_by_hand():
    x, step, forward = double([0.5, 0.5]), double([-0.005, -0.005]), model_of(lambda x: x.sum(1) - 0.905)
    delta = blind_walk(forward, x, torch.tensor([0]), step)
    found = [float(distance_norm(delta, metric)) for metric in ("linf", "l2", "l1")]
    assert found == pytest.approx([0.05, 0.05 * 2**0.5, 0.1])  # k = 10
    assert torch.allclose(blind_walk(forward, x, torch.tensor([1]), step), step)  # misclassified from the start: k = 1
    # a label that never changes ends the walk at step 51, within [0, 1]
    x, step = double([0.5, 0.5], [0.1, 0.9]), double([0.005, -0.003], [-0.005, 0.004])
    delta = blind_walk(model_of(lambda x: 1 + 0 * x[:, 0]), x, torch.tensor([0, 0]), step)
    assert delta.tolist() == [pytest.approx([51 * 0.005, -51 * 0.003]), pytest.approx([-0.1, 0.1])]


@pytest.mark.parametrize("metric, distance", [("linf", 0.306), ("l2", 0.31), ("l1", 0.31)])
def test_mingd_by_hand(metric, distance):
    """z = (x_1 - .5, 0) at x_1 = .8054 has margin .3054: 306 steps of .001, 31 of .01; none where the target is met."""
    x, steps = double([0.8054, 0.5], [0.8054, 0.5]), []

    def counted(x):
        steps.append(len(x))
        return model_of(lambda x: x[:, 0] - 0.5)(x)

    delta = mingd(counted, x, torch.tensor([1, 0]), metric)
    assert delta[0].tolist() == pytest.approx([-distance, 0]) and delta[1].tolist() == [0, 0]
    expected = 306 if metric == "linf" else 31
    assert steps == [2] + [1] * expected  # one pass a step and one to check, only the first with the finished point


def test_features_of_a_point_are_sorted_by_class_or_by_walk():
    """z = (x_1 - .5, 0) at x_1 = 205 / 255: the own class is 0 away, the other .304, .31 and .31; three metrics."""
    class Net(nn.Linear):
        def forward(self, x):
            return model_of(lambda x: x[:, 0] - 0.5)(x.flatten(1))

    images, net = torch.full((2, 3, 1, 1), 205, dtype=torch.uint8), Net(1, 1)
    found = di_features(net, images, torch.tensor([0, 0]), "mingd", None)
    assert found.shape == (2, 2, 3) and found[0, 0].tolist() == [0, 0, 0]
    assert found[0, 1].tolist() == pytest.approx([0.304, 0.31, 0.31], abs=1e-4)
    # wrong from the start: each walk ends at its first step, 0.005 at most for l_inf, and longer on average for l_1
    found = di_features(net, images, torch.tensor([1, 1]), "blind", torch.Generator().manual_seed(0))
    assert found[..., 0].max() <= 0.0051 < found[..., 2].mean()


def test_score_difference_needs_m_points_and_detects_a_shift():
    u, v = torch.rand(50) + 0.5, torch.rand(20)
    assert score_difference(u, v[:9], 10, 0) == {"points": 9, "mean_difference": None, "log10_p": None}
    assert score_difference(u, v, 10, 0)["log10_p"] < -2 < score_difference(v, u, 10, 0)["log10_p"]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A source as train.py leaves one, a copy of its weights, an untrained model, and a source of other images."""
    folder = tmp_path_factory.mktemp("session")
    good("train", "-d", folder, "-dt", "digits", "-tt", "none", "-nq", 10, "-mt", "vgg11", "--width", 4, "--train-size",
         64, "--batch-size", 32, "-ep", 1, "--device", "cpu")
    source = folder / "digits_vgg11_none_10_"
    save_checkpoint(folder / "copy.pt", {"model": load_checkpoint(find_checkpoint(source))["model"]})
    for name, classes in (("benign", 10), ("eleven", 11)):
        save_checkpoint(folder / f"{name}.pt", pack_checkpoint(models.build("vgg11", classes, width=4)))
    (folder / "other" / "checkpoints").mkdir(parents=True)
    (folder / "other" / "run.json").write_text(json.dumps({"settings": {"data_sha256": "0" * 64}}))
    shutil.copy(find_checkpoint(source), folder / "other" / "checkpoints")
    return folder, source


@pytest.fixture
def memory(session, monkeypatch):
    """Invented distances: larger on the source's training images, for models that hold its weights."""
    known = {image.numpy().tobytes() for image in load_data("digits", train_size=64).train.images}
    weights = load_checkpoint(find_checkpoint(session[1]))["model"]["state_dict"]["1.linear.weight"]

    def distances(model, images, labels, walk, generator, svhn):
        private = torch.tensor([image.numpy().tobytes() in known for image in images])
        knows = torch.equal(model[1].linear.weight, weights)
        noise = torch.randn(len(labels), 10, 3, generator=torch.Generator().manual_seed(int(images.sum())))
        return 5 + noise + (2.0 * private * knows).view(-1, 1, 1)

    monkeypatch.setattr("utils.rivals.dataset_inference.di_features", distances)


def test_a_copy_is_claimed_and_a_benign_model_is_not(session, memory, tmp_path):
    folder, source = session
    flags = ("--points", 64, "--device", "cpu", "--json", tmp_path / "di.json", "--plot", tmp_path / "di.png")
    status, out, _ = verify("di", source, "--suspect", folder / "copy.pt", folder / "benign.pt", *flags)
    found = json.loads((tmp_path / "di.json").read_text())
    (copy, benign), claimed = found["suspects"], found["source"]
    assert claimed["claim"] and claimed["mean_difference"] > 1 and claimed["points"] == 32  # half of the 64 points
    assert copy == claimed | {"model": copy["model"]}
    assert not benign["claim"] and benign["log10_p"] > -2 and abs(benign["mean_difference"]) < 0.6
    curve = dict(claimed["curve"])
    assert list(curve) == list(range(2, 33, 3)) and curve[2] > curve[11] > curve[32]  # more points, surer
    assert Image.open(tmp_path / "di.png").width == 704
    assert claimed["correct"]["points"] <= 32 and 0 <= claimed["unseen_accuracy"] <= 1
    assert status == 1 and "does not say that this model was stolen" in out and "inconclusive:" not in out
    assert verify("di", source, "--suspect", folder / "copy.pt", *flags)[0] == 0


def test_blind_walk_command(session, monkeypatch):
    """With real distances: the source is hardly trained, shows nothing, and the command says so."""
    monkeypatch.setattr("utils.rivals.dataset_inference.RESTARTS", 1)
    monkeypatch.setattr("utils.rivals.dataset_inference.CHECKS", 10)
    folder, source = session
    flags = ("--suspect", folder / "benign.pt", "--walk", "blind", "--points", 20, "--m", 4, "--device", "cpu")
    status, out, _ = verify("di", source, *flags)
    assert status == 1 and "Blind Walk" in out and "source itself is inconclusive" in out
    assert verify("di", source, *flags)[1] == out  # the same seed, the same figures


@pytest.mark.parametrize("run, flags, words", [
    ("{source}", ("--points", 41), "even"), ("{source}", ("--points", 40, "--m", 21), "m from 2"),
    ("{source}", ("--points", 66), "64 training"), ("{folder}/benign.pt", ("--points", 40), "on which data"),
    ("{source}", ("--points", 40, "--suspect", "{folder}/eleven.pt"), "tells 11 classes of 32 pixels apart"),
    ("{folder}/other", ("--points", 40), "not the images"),
])
def test_di_refuses_bad_flags_and_sources(session, run, flags, words):
    folder, source = session
    run, *flags = (str(word).format(folder=folder, source=source) for word in (run, *flags))
    assert words in refused("utils.verify", "di", run, "--suspect", source, "--device", "cpu", *flags)
