"""Embedded external features: style, signs and classifier, `train.py --embed-features` and `utils.verify eef`."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import good, refused, verify
from torch import nn

import models
from utils.data.sets import load_data
from utils.rivals import embedded_features as eef
from utils.runs.checkpoints import pack_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("quick")


def slow_kuwahara(image):
    """The definition, pixel by pixel: of four 3 x 3 windows around it the mean of the smoothest; image (3, H, W)."""
    h, w = image.shape[1:]
    result = torch.zeros(image.shape)
    for i, j in itertools.product(range(h), range(w)):
        best = None
        for di, dj in itertools.product((-2, 0), (-2, 0)):
            rows, columns = ([min(max(at + d + k, 0), end - 1) for k in range(3)] for at, d, end in
                             ((i, di, h), (j, dj, w)))
            window = image[:, rows][:, :, columns].double().flatten(1)
            spread = float(window.var(1, correction=0).sum())
            if best is None or spread < best[0] - 1e-9:
                best = spread, window.mean(1)
        result[:, i, j] = best[1].round()
    return result


def test_kuwahara_is_its_definition():
    noise = torch.randint(0, 256, (2, 3, 9, 7))
    assert torch.equal(eef.kuwahara(noise.float()), torch.stack([slow_kuwahara(image) for image in noise]))


def test_style_of_a_flat_image_by_hand():
    palette, dots = eef.palette_and_dots(3, 32)
    flat = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    nearest = palette[((palette - 90) ** 2).sum(1).argmin()]
    painted = (0.4 * 90 + 0.6 * nearest).round()[:, None, None] + dots
    assert torch.equal(eef.style_images(flat, 3)[0].float(), painted.clamp(0, 255))
    assert len(palette) == 12 and palette.min() >= 0 and palette.max() <= 255
    cells = dots.view(8, 4, 8, 4).transpose(1, 2).flatten(2)
    assert bool((cells.abs().sum(2) == 4 * eef.DOT).all())  # 4 pixels a cell
    assert dots.unique().tolist() == [-eef.DOT, 0, eef.DOT]


def test_embed_style_replaces_a_share_of_images_and_no_label():
    train = load_data("digits", train_size=200).train
    made = eef.embed_style(train, 0.013, 5)
    changed = (made.images != train.images).flatten(1).any(1)
    assert torch.equal(made.labels, train.labels) and torch.equal(made.indices, train.indices)
    assert changed.nonzero()[:, 0].tolist() == eef.styled_positions(200, 0.013, 5).tolist() and int(changed.sum()) == 3
    assert torch.equal(made.images[changed], eef.style_images(train.images[changed], 5))
    assert eef.styled_positions(200, 0.1, 6).tolist() != eef.styled_positions(200, 0.1, 5).tolist()


@pytest.mark.parametrize("pixels, sign", [((1, 2, 3, 4), -1), ((1, 2, 0, 4), 0), ((1, -0.1, 3, 4), 1)])
def test_convolution_gradients_take_the_largest_position_before_the_sign(pixels, sign):
    """A larger output lowers the loss, so the kernel's gradient is a negative multiple of the pixels."""
    net = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(0.1)
        net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    signs = eef.grad_sign_vector(net, torch.tensor(pixels).view(1, 1, 2, 2), torch.tensor([0]))
    assert signs.shape == (1, 3) and signs[0, 0] == sign


def test_signs_equal_those_of_each_image_alone_and_are_as_many_as_published(monkeypatch):
    x, y = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.tensor([1, 4, 9])
    signs = eef.grad_sign_vector(models.build("res34", 10).eval(), x[:1], y[:1])
    assert signs.shape == (1, 24_778) and signs.dtype == torch.int8 and signs.unique().tolist() == [-1, 0, 1]

    model = models.place(models.build("res18", 10, (0.4,) * 3, (0.3,) * 3, 8), "cpu").double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3), layer.running_var.uniform_(0.5, 2)
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    monkeypatch.setattr(eef, "THRESHOLD", 600)  # below the 640 of the last layer
    monkeypatch.setattr(eef, "AT_ONCE", 2)
    signs = eef.grad_sign_vector(model, x, y)
    assert model.training and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

    model.eval()
    for i in range(3):
        loss = F.cross_entropy(model(x[i : i + 1].double() / 255), y[i : i + 1])
        row = []
        for g in torch.autograd.grad(loss, list(model.parameters())):
            large = g.dim() > 1 and g.shape[0] * g.shape[1] > 600
            if g.dim() == 4 and not large:
                row.append(g.flatten(2).max(2).values.flatten())
            elif g.dim() == 2:
                row.append(g.max(1).values if large else g.flatten())
        assert torch.equal(torch.cat(row).sign().to(torch.int8), signs[i])


def test_sign_scaler_by_hand():
    """In a feature of mean sign .9, +1 becomes +.229 and -1 becomes -4.36; a constant feature becomes 0."""
    signs = torch.ones(1200, 1, dtype=torch.int8)  # more than are scaled at once
    signs[:60] = -1
    assert eef.sign_scaler(signs)(signs)[[60, 0], 0].tolist() == pytest.approx([0.2294, -4.3589], abs=1e-4)
    constant = eef.sign_scaler(torch.ones(4, 2, dtype=torch.int8))
    assert torch.equal(constant(torch.ones(1, 2)), torch.zeros(1, 2))


def signs_of(bias, n, seed):
    """Independent signs whose mean in feature j is bias[j]."""
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, len(bias), generator=g) < (1 + bias) / 2).to(torch.int8) * 2 - 1


@pytest.mark.parametrize("test", ["paired", "official"])
def test_classifier_recognises_the_victims_signs_and_not_a_benign_models(test):
    generator = torch.Generator().manual_seed(0)
    benign, victim = (0.5 * (2 * torch.rand(48, generator=generator) - 1) for _ in range(2))
    state = torch.get_rng_state()
    classifier, scaler = eef.train_classifier(signs_of(victim, 200, 1), signs_of(benign, 200, 2), epochs=20,
                                              own_scaler=test == "official")
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(p.shape) for p in classifier.parameters()] == [(6, 48), (6,), (3, 6), (3,), (2, 3), (2,)]
    ask = lambda bias, seed: eef.posterior(
        classifier, None if test == "official" else scaler, signs_of(bias, 60, seed)).numpy()
    known = ask(benign, 3)
    assert eef.compare_posteriors(ask(victim, 4), known, test)["claim"]
    verdicts = [eef.compare_posteriors(ask(benign, seed), known, test) for seed in range(5, 11)]
    assert sum(v["claim"] for v in verdicts) <= 1 and max(v["log10_p"] for v in verdicts) > -1.3


def test_below_the_benign_model_there_is_no_claim():
    rng = np.random.default_rng(0)
    low, high = rng.uniform(0, 0.1, 50), rng.uniform(0.8, 1, 50)
    assert eef.compare_posteriors(high, low)["claim"] and eef.compare_posteriors(high, low, "official")["claim"]
    assert eef.compare_posteriors(low, high)["log10_p"] > -0.01
    below = eef.compare_posteriors(low, high, "official")  # two-sided: as small a p as above
    assert below["log10_p"] < -4 and not below["claim"]
    still = eef.compare_posteriors(np.ones(20), np.zeros(20))
    assert still["claim"] and still["difference"] == 1 and -100 < still["log10_p"] < -40


TRAIN = ("-dt", "digits", "-tt", "none", "-nq", 10, "--train-size", 256, "--batch-size", 64, "--width", 4,
         "--device", "cpu", "-mt", "vgg11")


@pytest.fixture(scope="module")
def runs(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eef")
    for message, *more in (("victim", "--embed-features", 0.3, "-ep", 2), ("benign", "--seed", 1, "-ep", 2),
                           ("plain", "-ep", 1)):
        good("train", "-d", folder, *TRAIN, "-msg", message, *more)
    save_checkpoint(folder / "wide", pack_checkpoint(models.build("vgg11", 10, width=8)))
    return {path.name.rsplit("_", 1)[-1]: path for path in folder.iterdir()}


@pytest.mark.parametrize("test", ["paired", "official"])
def test_the_command_tests_every_suspect_on_the_right_images(runs, monkeypatch, tmp_path, test):
    seen, honest, found = [], eef.grad_sign_vector, tmp_path / "eef.json"
    monkeypatch.setattr("utils.rivals.embedded_features.grad_sign_vector",
                        lambda model, x, y: seen.append(x) or honest(model, x, y))
    flags = ("--suspect", runs["victim"], runs["benign"], "--test", test, "--json", found, "--epochs", 3)
    status, out, _ = verify("eef", runs["victim"], "--benign", runs["benign"], *flags)
    lines = out.splitlines()
    assert status == 1  # the benign model is compared with itself, and so never claimed
    assert lines[0].startswith("victim: ") and "of 77 styled images right" in lines[0]
    for row, line in zip(json.loads(found.read_text())["suspects"], lines[-2:], strict=True):
        said = f"{row['model']}: difference {row['difference']:+.3f}, log10 p {row['log10_p']:.1f}: "
        assert line == said + ("claim" if row["claim"] else "inconclusive") and row["above"] == 0
    assert row["difference"] == 0 or test == "official"
    names = [{image.numpy().tobytes() for image in x} for x in seen]
    assert names[1] == names[0] and names[2] == names[3] == names[4]  # learnt by both models; asked of all
    assert [len(seen[0]), len(seen[2])] == ([62, 15] if test == "paired" else [77, 77])
    assert test == "official" or not names[0] & names[2]


def test_the_command_can_claim_and_a_further_benign_model_prevents_it(runs):
    """Further benign models change no number, but a claim must lie above each: the suspect itself is one of them."""
    flags = ("eef", runs["victim"], "--points", 60, "--epochs", 10, "--suspect", runs["plain"], "--benign")
    status, out, _ = verify(*flags, runs["benign"])
    before = out.splitlines()
    assert status == 0 and "of 60 styled images" in before[0] and before[-1].endswith(": claim")
    status, out, _ = verify(*flags, runs["benign"], runs["plain"])
    assert status == 1
    assert out.splitlines()[3] == before[3].replace(": claim", ", above 0 of 1 further benign models: inconclusive")


@pytest.mark.parametrize("run, benign, suspect, flags, words", [
    ("benign", "plain", "victim", (), "was not trained with --embed-features"),
    ("victim", "victim", "benign", (), "--benign {victim} was trained with"),
    ("victim", "benign", "wide", (), "--suspect {wide}: another architecture"),
    ("victim", "wide", "benign", (), "--benign {wide}: another architecture"),
    ("victim", "benign", "benign", ("--points", 40), "raise --points"),
    ("damaged", "benign", "benign", (), "restore it"),
])
def test_eef_refuses_wrong_models(runs, tmp_path, run, benign, suspect, flags, words):
    damaged = shutil.copytree(runs["victim"], tmp_path / "damaged")
    settings = json.loads((damaged / "run.json").read_text())
    settings["settings"]["seed"] = "1"
    (damaged / "run.json").write_text(json.dumps(settings))
    at = runs | {"damaged": damaged}
    said = refused("utils.verify", "eef", at[run], "--benign", at[benign], "--suspect", at[suspect], *flags)
    assert words.format(**runs) in said


@pytest.mark.parametrize("share, words", [(1.5, "--embed-features"), (0.001, "that is none")])
def test_an_impossible_share_is_refused(tmp_path, share, words):
    assert words in refused("train", "-d", tmp_path / "new", *TRAIN, "--embed-features", share)
    assert not (tmp_path / "new").exists()
