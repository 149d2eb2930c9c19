"""Dataset Inference: distances worked by hand, rows, regressor and test, and a session as the owner types it."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from test_scripts import good
from test_verify import call
from torch import nn

import models
from figures.false_claims.perceptrons import di_verdicts, perceptron_figures
from utils.data.sets import load_data
from utils.ownership import pvalues
from utils.rivals.dataset_inference.distances import blind_walk, di_features, distance_norm, mingd, walk, walk_noise
from utils.rivals.dataset_inference.regressor import di_embed, di_regressor, score_difference
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, pack_checkpoint, save_checkpoint


def model_of(first):
    """Two logits: first(x) and 0."""
    return lambda x: torch.stack([first(x), 0 * x[:, 0]], 1)


double = lambda *rows: torch.tensor(rows, dtype=torch.float64)
NORMS = ("linf", "l2", "l1")


# ---- distances ----------------------------------------------------------------------------------------------


def test_blind_walk_by_hand():
    x, step = double([0.5, 0.5]), double([-0.005, -0.005])
    delta = walk(model_of(lambda x: x.sum(1) - 0.905), x, torch.tensor([0]), step)
    found = [float(distance_norm(delta, metric)) for metric in NORMS]
    assert found == pytest.approx([0.05, 0.05 * 2**0.5, 0.1])  # k = 10
    wrong = walk(model_of(lambda x: x.sum(1) - 0.905), x, torch.tensor([1]), step)
    assert torch.allclose(wrong, step)  # misclassified from the start: k = 1


def test_a_blind_walk_that_never_flips_keeps_step_51_within_the_box():
    asked = []

    def constant(x):
        asked.append(len(x))
        return torch.ones(len(x), 2) * torch.tensor([1.0, 0.0])

    x, step = double([0.5, 0.5], [0.1, 0.9]), double([0.005, -0.003], [-0.005, 0.004])
    delta = walk(constant, x, torch.tensor([0, 0]), step)
    assert delta.tolist() == [pytest.approx([51 * 0.005, -51 * 0.003]), pytest.approx([-0.1, 0.1])]
    assert asked == [2] * 50


@pytest.mark.parametrize("metric, unit", [("linf", 0.005), ("l2", 0.005 * 3072**0.5), ("l1", 0.01 * 3072)])
def test_the_noise_has_the_published_size_and_the_same_seed_the_same_noise(metric, unit):
    draw = lambda: walk_noise((8, 3, 32, 32), metric, torch.Generator().manual_seed(1))
    assert distance_norm(draw(), metric).tolist() == pytest.approx([unit] * 8, rel=0.1)
    assert abs(float(draw().mean())) < 2e-4 and torch.equal(draw(), draw())
    if metric == "l1":  # a Laplacian's excess kurtosis is 3
        assert stats.kurtosis(walk_noise((10**6,), metric, torch.Generator().manual_seed(0))) > 2.5


@pytest.mark.parametrize("metric, distance", [("linf", 0.306), ("l2", 0.31), ("l1", 0.31)])
def test_mingd_by_hand(metric, distance):
    """z = (x_1 - .5, 0) at x_1 = .8054, margin .3054: 306 steps of .001, 31 of .01; at the target itself none."""
    x, steps = double([0.8054, 0.5], [0.8054, 0.5]), []

    def counted(x):
        steps.append(len(x))
        return model_of(lambda x: x[:, 0] - 0.5)(x)

    delta = mingd(counted, x, torch.tensor([1, 0]), metric)
    assert delta[0].tolist() == pytest.approx([-distance, 0]) and delta[1].tolist() == [0, 0]
    expected = 306 if metric == "linf" else 31
    assert steps == [2] + [1] * expected  # one forward a step and the check, the finished point only in the first


def linear_model(classes=4, pixels=48):
    """A linear classifier of (N, 3, 4, 4) images, whose l2 margins are known."""
    layer = nn.Linear(pixels, classes, dtype=torch.float64)
    return nn.Sequential(nn.Flatten(), layer.requires_grad_(False))


@pytest.mark.parametrize("metric, slack", [("linf", 0.001), ("l2", 0.01)])
def test_mingd_finds_a_linear_models_margins(metric, slack):
    model = linear_model(2)
    nn.init.normal_(model[1].weight)
    x = 0.5 + 0.02 * torch.randn(30, 3, 4, 4, dtype=torch.float64)
    logits = model(x)
    w = model[1].weight[0] - model[1].weight[1]
    dual = w.abs().sum() if metric == "linf" else w.norm()
    exact = (logits[:, 0] - logits[:, 1]).abs() / dual
    found = distance_norm(mingd(model, x, 1 - logits.argmax(1), metric), metric)
    assert ((found >= exact) & (found <= exact + slack + 1e-9)).all()


@pytest.mark.parametrize("metric", NORMS)
def test_walks_stay_in_the_box_and_end_at_the_target(metric):
    model = linear_model()
    nn.init.normal_(model[1].weight)
    x = torch.rand(40, 3, 4, 4, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    y, target = model(x).argmax(1), torch.arange(40) % 4
    delta = mingd(model, x, target, metric)
    assert 0 <= float((x + delta).min()) and float((x + delta).max()) <= 1
    assert (model(x + delta).argmax(1) == target).float().mean() > 0.9
    assert (distance_norm(delta, metric)[y == target] == 0).all()
    if metric == "l1":
        assert (delta[(x == 0) | (x == 1)] == 0).all()
    blind = blind_walk(model, x, y, metric, torch.Generator().manual_seed(0))
    assert 0 <= float((x + blind).min()) and float((x + blind).max()) <= 1


def test_a_smaller_margin_is_a_smaller_distance():
    x = torch.stack([torch.linspace(0.51, 0.79, 15), torch.full((15,), 0.5)], 1).double()
    model = model_of(lambda x: x[:, 0] - 0.5)
    for metric in NORMS:
        found = distance_norm(mingd(model, x, torch.ones(15, dtype=torch.long), metric), metric)
        assert (found.diff() > 0).all()
        step = torch.zeros(15, 2).double() - 0.004
        found = distance_norm(walk(model, x, torch.zeros(15, dtype=torch.long), step), metric)
        assert (found.diff() >= 0).all() and found[0] < found[3]


class Scale(nn.Module):
    """(N, 3, 32, 32) -> C logits, linear in the mean of each channel."""

    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, classes), requires_grad=False)

    def forward(self, x):
        return 100 * x.mean((2, 3)) @ self.weight


@pytest.mark.parametrize("classes, columns", [(4, 4), (10, 10), (12, 10)])
def test_mingd_features_have_a_column_a_class_nearest_first(classes, columns, monkeypatch):
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.STEPS", 20)
    model, images = Scale(classes), torch.randint(100, 150, (6, 3, 32, 32), dtype=torch.uint8)
    features = di_features(model, images, torch.zeros(6, dtype=torch.long), "mingd", None)
    assert features.shape == (6, columns, 3)
    assert ((features[:, 0] == 0).all()) == (classes <= 10)  # the predicted class; of many it is left out
    assert (features.diff(dim=1) >= 0).all() == (classes <= 10)
    if classes > 10:  # the second-ranked class first, unsorted
        x = images.float().div(255)
        second = model(x).argsort(1, descending=True)[:, 1]
        direct = distance_norm(mingd(model, x, second, "l2"), "l2")
        assert features[:, 0, 1].tolist() == pytest.approx(direct.tolist())


class Zero(Scale):
    """Answers 0 to everything."""

    def forward(self, x):
        return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()


def test_blind_features_are_ten_restarts_and_longer_on_svhn():
    images, y = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    draw = lambda svhn: di_features(Zero(10), images, y, "blind", torch.Generator().manual_seed(0), svhn)
    features = draw(False)
    assert features.shape == (4, 10, 3) and features.unique().numel() == 120
    assert 0.25 < features[:, :, 0].min() and features[:, :, 0].max() <= 51 * 0.005
    assert features[:, :, 1].mean() == pytest.approx(51 * 0.005 * 3072**0.5, rel=0.05)
    assert draw(True)[:, :, 0].min() == pytest.approx(128 / 255)  # 101 steps of .01 lead beyond the box


# ---- rows, regressor, test ----------------------------------------------------------------------------------


def test_layouts():
    features = torch.arange(40 * 30.0).view(40, 10, 3)
    mean, std = torch.zeros(3), torch.ones(3)
    assert di_embed(features, mean, std, "image").tolist() == features.view(40, 30).tolist()
    official = di_embed(features, mean, std, "official")
    assert official.shape == (40, 30) and official[0].tolist() == [30.0 * i for i in range(30)]
    scaled = di_embed(features, torch.tensor([0.0, 1, 2]), torch.tensor([1.0, 2, 4]), "image")
    assert scaled[0, :6].tolist() == [0, 0, 0, 3, 1.5, 0.75]  # (0, 1, 2) and (3, 4, 5), metric by metric


def test_regressor():
    rows = torch.randn(100, 30, generator=torch.Generator().manual_seed(3))
    score = di_regressor(rows + 1, rows - 1, 0)
    assert score(rows + 1).mean() < -0.99 and score(rows - 1).mean() > 0.99
    again = di_regressor(rows + 1, rows - 1, 0)
    assert torch.equal(score(rows), again(rows)) and score(rows).abs().max() <= 1
    same = di_regressor(rows, rows, 0)
    others = torch.randn(2, 1000, 30, generator=torch.Generator().manual_seed(4))
    assert float(same(others[0]).mean() - same(others[1]).mean()) == pytest.approx(0, abs=0.05)


def p_of(u, v, seed=0, m=None, repeats=1, **more):
    return 10 ** pvalues.subset_pvalues(u, v, m or len(u), repeats, np.random.default_rng(seed), **more)


def test_welch_and_paired_numbers():
    u, v = (0.9, 0.8, 0.7, 0.6, 0.5), (0.4, 0.5, 0.3, 0.2, 0.1)
    assert p_of(u, v)[0] == pytest.approx(0.001975, abs=5e-7)
    assert p_of(u, v, alternative="two-sided")[0] == pytest.approx(0.003950, abs=5e-7)
    assert p_of(u, v, paired=True)[0] == pytest.approx(0.000112, abs=5e-7)
    assert p_of(v, u)[0] == pytest.approx(1 - 0.001975, abs=5e-7)


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
def test_subsets_against_scipy(alternative):
    rng = np.random.default_rng(0)
    u, v = rng.normal(0.3, 1, 12), rng.normal(0, 3, 12)
    for paired in (False, True):
        picks = np.random.default_rng(5)
        for p in p_of(u, v, 5, 7, 6, paired=paired, alternative=alternative):
            pick = picks.choice(12, 7, replace=False)
            test = stats.ttest_rel if paired else lambda a, b, **more: stats.ttest_ind(a, b, equal_var=False, **more)
            assert p == pytest.approx(test(u[pick], v[pick], alternative=alternative).pvalue)


@pytest.mark.parametrize("paired", [False, True])
def test_scores_without_variance_are_decided_by_sign(paired):
    ones = np.ones(10)
    log = lambda u, v, **more: pvalues.subset_pvalues(u, v, 10, 3, np.random.default_rng(0), paired=paired, **more)
    assert (log(ones * 0.1, ones * 0.1) == 0).all()
    assert (log(ones, -ones) < -40).all() and np.isfinite(log(ones, -ones)).all()
    assert (log(-ones, ones) == 0).all() and (log(-ones, ones, alternative="two-sided") < -40).all()
    with pytest.raises(ValueError):
        pvalues.subset_pvalues(ones, ones[:9], 5, 3, np.random.default_rng(0))


def test_null_is_about_uniform_and_the_harmonic_mean_mildly_anti_conservative():
    rng, single, reported = np.random.default_rng(0), [], []
    for seed in range(100):
        u, v = torch.tensor(rng.normal(size=(2, 500)))
        single += list(p_of(u, v, seed, 10, 2))
        reported.append(score_difference(u, v, 10, seed)["log10_p"])
    assert stats.kstest(single, "uniform").pvalue > 0.01
    assert (np.array(reported) < np.log10(0.05)).mean() < 0.15 and (np.array(reported) < -2).mean() <= 0.04
    assert min(reported) < -1


def test_difference_needs_m_points_and_sees_a_shift():
    u, v = torch.rand(50) + 0.5, torch.rand(20)
    assert score_difference(u, v[:9], 10, 0) == {"points": 9, "mean_difference": None, "log10_p": None}
    found = score_difference(u, v, 10, 0)
    assert found["points"] == 20 and found["mean_difference"] == pytest.approx(float(u.mean() - v.mean()))
    assert found["log10_p"] < -2 < score_difference(v, u, 10, 0)["log10_p"]


# ---- a session ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A source as train.py leaves one, a copy of its weights, and a model that has seen nothing."""
    folder = tmp_path_factory.mktemp("session")
    good("train", "-d", folder, "-dt", "digits", "-tt", "none", "-nq", 10, "-mt", "vgg11", "--width", 4, "--train-size",
         64, "--batch-size", 32, "-ep", 1, "--device", "cpu")
    source = folder / "digits_vgg11_none_10_"
    save_checkpoint(folder / "copy.pt", {"model": load_checkpoint(find_checkpoint(source, None))["model"]})
    save_checkpoint(folder / "benign.pt", pack_checkpoint(models.build("vgg11", 10, width=4), "vgg11"))
    save_checkpoint(folder / "eleven.pt", pack_checkpoint(models.build("vgg11", 11, width=4), "vgg11"))
    return folder, source


@pytest.fixture
def memory(session, monkeypatch):
    """Distances as of models that know the source's images by heart where they hold its weights."""
    known = {image.numpy().tobytes() for image in load_data("digits", train_size=64).train.images}
    weights = load_checkpoint(find_checkpoint(session[1], None))["model"]["state_dict"]["1.linear.weight"]

    def distances(model, images, labels, kind, generator, svhn, bar):
        private = torch.tensor([image.numpy().tobytes() in known for image in images])
        knows = torch.equal(model[1].linear.weight, weights)
        noise = torch.randn(len(labels), 10, 3, generator=torch.Generator().manual_seed(int(images.sum())))
        return 5 + noise + (2.0 * private * knows).view(-1, 1, 1)

    monkeypatch.setattr("utils.rivals.dataset_inference.regressor.di_features", distances)


@pytest.mark.parametrize("layout", ["image", "official"])
def test_a_copy_is_claimed_and_a_benign_model_is_not(session, memory, layout, capsys, tmp_path):
    folder, source = session
    flags = ("--points", 64, "--layout", layout, "--device", "cpu", "--json", tmp_path / "di.json")
    status, out, _ = call(capsys, "di", source, "--suspect", folder / "copy.pt", folder / "benign.pt", *flags)
    found = json.loads((tmp_path / "di.json").read_text())
    (copy, benign), claimed = found["suspects"], found["source"]
    assert claimed["claim"] and claimed["mean_difference"] > 1 and claimed["points"] == 32
    assert {k: v for k, v in copy.items() if k != "model"} == {k: v for k, v in claimed.items() if k != "model"}
    assert not benign["claim"] and benign["log10_p"] > -2 and abs(benign["mean_difference"]) < 0.6
    assert (claimed["correct"] is None) == (layout == "official") and 0 <= claimed["unseen_accuracy"] <= 1
    assert status == 1 and "does not say that this model was stolen" in out and "inconclusive:" not in out
    rows = [line for line in out.splitlines() if "correct" not in line]
    assert "(source)" in rows[1] and [row.split()[-1] for row in rows[1:4]] == ["claim", "claim", "inconclusive"]
    assert call(capsys, "di", source, "--suspect", folder / "copy.pt", *flags)[0] == 0


def test_blind_session(session, capsys, monkeypatch):
    """With true distances: an untrained source leaves no trace, and the command says so."""
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.RESTARTS", 1)
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.CHECKS", 10)
    folder, source = session
    flags = ("--suspect", folder / "benign.pt", "--walk", "blind", "--points", 20, "--m", 4, "--device", "cpu")
    status, out, _ = call(capsys, "di", source, *flags)
    assert status == 1 and "Blind Walk" in out and "source itself is inconclusive" in out
    assert call(capsys, "di", source, *flags)[1] == out  # the same seed, the same figures


def test_mingd_session(session, capsys, monkeypatch):
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.STEPS", 4)
    _, source = session
    status, out, _ = call(capsys, "di", source, "--suspect", source, "--points", 8, "--m", 2, "--device", "cpu")
    rows = [line for line in out.splitlines() if str(source) in line]
    assert "MinGD" in out and "nan" not in out
    assert rows[0].replace(" (source)", 9 * " ") == rows[1] and status == 1 - rows[1].endswith("claim")


def test_the_measurement_of_false_claims(monkeypatch):
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.RESTARTS", 1)
    monkeypatch.setattr("utils.rivals.dataset_inference.distances.CHECKS", 3)
    monkeypatch.setattr("figures.false_claims.perceptrons.PERCEPTRON_EPOCHS", 2)
    found = perceptron_figures(0)
    assert perceptron_figures(0) == found != perceptron_figures(1)
    verdicts = di_verdicts([found | {"other": {"claim": True, "log10_p": -9.0}}])
    assert [v["shares"] for v in verdicts] == ["same", "other"] and verdicts[1]["claimed"]
    assert verdicts[0]["log10_p"] == found["same"]["log10_p"] != found["source"]["log10_p"]


@pytest.mark.parametrize("flags, words", [
    (("--points", 41), "even"), (("--points", 40, "--m", 21), "m from 2"), (("--points", 66), "64 training"),
    (("--points", 40, "--suspect", "{folder}/eleven.pt"), "11 classes and the source 10"),
    (("--points", 40, "--suspect", "{folder}/nothing"), "no run in"),
    (("--points", 40, "--json", "{folder}/nowhere/a.json"), "there is no folder"),
])
def test_refusals(session, capsys, flags, words):
    folder, source = session
    flags = [str(flag).format(folder=folder) for flag in flags]
    status, _, err = call(capsys, "di", source, "--suspect", source, "--device", "cpu", *flags)
    assert status == 2 and words in err


def test_a_source_without_its_data_is_refused(session, capsys, tmp_path):
    folder, source = session
    for run, words in ((folder / "benign.pt", "on which data"), (folder / "none", "no run in")):
        status, _, err = call(capsys, "di", run, "--suspect", source, "--points", 40)
        assert status == 2 and words in err
    checkpoint = load_checkpoint(find_checkpoint(source, None))
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"data_sha256": "0" * 64}}))
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints" / "checkpoint_nat_best.pt", checkpoint)
    status, _, err = call(capsys, "di", tmp_path, "--suspect", source, "--points", 40)
    assert status == 2 and "not the images" in err
