"""Changes without training, fine-tuning, and extraction around the margin (issue 4)."""

import copy

import pytest
import torch
from test_scripts import good, refused, summary, tree
from torch import nn

import models
from utils.attacks.losses import soft_loss
from utils.attacks.objectives import ExtractionObjective, FineTuningObjective
from utils.attacks.pruning import CRITERIA, channel_activations, keep_pruned, layer_weights, prune, pruning_masks
from utils.attacks.quantization import quantize
from utils.data.sets import load_data
from utils.runs.checkpoints import load_checkpoint

DATA = ("-dt", "digits", "-nq", 8, "--train-size", 128, "--batch-size", 64, "--width", 4, "--device", "cpu", "-ep", 1)
STEAL = (*DATA, "-tmt", "res18")
IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
X = IMAGES.float().div(255)


def small():
    torch.manual_seed(0)
    model = models.build("res18", 10, width=4).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.bias, 0.1, 0.5)
    return model


@pytest.mark.parametrize("criterion", CRITERIA)
def test_pruning_nothing_changes_nothing_and_everything_kills(criterion):
    model = small()
    measured = channel_activations(model, IMAGES)
    same = prune(copy.deepcopy(model), pruning_masks(model, 0.0, criterion, measured))
    assert torch.equal(same(X), model(X))
    dead = prune(copy.deepcopy(model), pruning_masks(model, 1.0, criterion, measured))
    assert torch.equal(dead(X), dead(X[:1]).expand(len(X), -1))  # the image no longer matters


def test_one_layer_pruned_whole_is_dead_and_half_takes_the_least_active():
    model = small()
    measured = channel_activations(model, IMAGES)
    one = {"1.bn1": measured["1.bn1"]}
    dead = prune(copy.deepcopy(model), pruning_masks(model, 1.0, "activation", one))
    assert dead[1].bn1(dead[1].conv1(dead[0](X))).abs().max() == 0
    kept = pruning_masks(model, 0.5, "activation", one)["1.bn1.weight"]
    assert kept.sum() == 2 and measured["1.bn1"][kept].min() >= measured["1.bn1"][~kept].max()


def test_activations_are_means_of_relu():
    model = small()
    out = model[1].bn1(model[1].conv1(model[0](X))).relu().mean(dim=(0, 2, 3))
    assert torch.allclose(channel_activations(model, IMAGES, batch_size=5)["1.bn1"].float(), out, atol=1e-5)


def test_magnitude_takes_the_smallest_weights_of_all_layers():
    model = small()
    kept = pruning_masks(model, 0.3, "magnitude")
    weights = {n: p.abs() for n, p in model.named_parameters()}
    total = sum(m.numel() for m in kept.values())
    assert sum(int((~m).sum()) for m in kept.values()) == round(0.3 * total)
    largest = max(weights[n][~m].max() for n, m in kept.items() if (~m).any())
    assert largest <= min(weights[n][m].min() for n, m in kept.items() if m.any())


def test_pruned_channels_stay_dead_while_the_model_trains():
    model = small()
    kept = pruning_masks(model, 0.5, "activation", channel_activations(model, IMAGES))
    prune(model, kept)
    keep_pruned(model, kept)
    step(model, FineTuningObjective(model, last=False))
    parameters = dict(model.named_parameters())
    assert all(bool((parameters[n][~m] == 0).all()) for n, m in kept.items())


@pytest.mark.parametrize("bits", (8, 4, 2))
def test_quantised_weights_are_on_their_grid(bits):
    before, after = small(), quantize(small(), bits)
    levels = 2 ** (bits - 1) - 1
    for (_, old), (_, new) in zip(layer_weights(before), layer_weights(after)):
        scale = old.abs().flatten(1).amax(1).view(-1, *[1] * (old.dim() - 1)) / levels
        units = new / scale
        assert torch.allclose(units, units.round(), atol=1e-3) and units.abs().max() <= levels + 1e-3
        assert ((new - old).abs() <= scale / 2 + 1e-7).all()


def step(model, objective):
    y = torch.arange(len(X)) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=1e-4)
    model.train()
    loss, _ = objective(model, X, y, None)
    loss.backward()
    optimizer.step()


def test_ftll_changes_only_the_last_layer():
    model = small()
    before = copy.deepcopy(model.state_dict())
    step(model, FineTuningObjective(model, last=True))
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"1.linear.weight", "1.linear.bias"}
    everything = small()
    step(everything, FineTuningObjective(everything, last=False))
    assert not torch.equal(everything.state_dict()["1.conv1.weight"], before["1.conv1.weight"])


def test_margin_extraction_without_a_ball_is_soft_and_with_one_lowers_the_source_certainty():
    source, surrogate = small().requires_grad_(False), small()
    plain, _ = ExtractionObjective(source, soft_loss, False)(surrogate, X, None, None)
    still = ExtractionObjective(source, soft_loss, False, steps=3, step_size=1 / 255, eps=0.0)
    assert torch.equal(still(surrogate, X, None, None)[0], plain)
    seen = []
    ball = ExtractionObjective(source, soft_loss, False, steps=3, step_size=2 / 255, eps=4 / 255)
    ball(lambda x: seen.append(x) or surrogate(x), X, None, None)
    (moved,) = seen
    assert 0 < (moved - X).abs().max() <= 4 / 255 + 1e-6
    answer = source(X).argmax(1)
    cost = lambda x: nn.functional.cross_entropy(source(x), answer)
    assert cost(moved) > cost(X)


# ---- through the scripts -------------------------------------------------------------------------------------------

TAKEN = "digits_res18_margin_8_"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A source, its soft extraction, and a model that knows no watermark."""
    folder = tmp_path_factory.mktemp("edit")
    good("train", "-d", folder, *DATA, "-mt", "res18", "--trigger-batch", 4, "--steps", 1)
    good("train", "-d", folder, *DATA, "-mt", "res18", "-tt", "none")
    good("extraction", "-d", folder, *STEAL, "-dmt", "res18", "-at", "soft")
    return folder


def weights(world, attack="", name="latest"):
    return load_checkpoint(world / TAKEN / attack / f"checkpoints/checkpoint_{name}.pt")["model"]["state_dict"]


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


def test_finetune_ftll_changes_the_last_layer_of_the_stolen_checkpoint_alone(world):
    good("extraction", "-d", world, *STEAL, "-at", "finetune", "--finetune", "ftll", "-admsg", "_ftll")
    before, after = weights(world, name="nat_best"), weights(world, "extraction_ftll")
    assert {n for n, t in after.items() if not torch.equal(t, before[n])} == {"1.linear.weight", "1.linear.bias"}
    s = summary(world / TAKEN / "extraction_ftll")
    assert (s["role"], s["attack"], s["model"], s["width"]) == ("surrogate", "finetune ftll", "res18", 4)
    good("extraction", "-d", world, *STEAL, "-at", "finetune", "--on", "extraction", "-admsg", "_ftal")
    start, after = weights(world, "extraction", "nat_best"), weights(world, "extraction_ftal")
    assert equal(weights(world, "extraction_ftal", "init"), start) and not equal(after, start)
    assert not torch.equal(after["1.conv1.weight"], start["1.conv1.weight"])


def test_margin_without_a_ball_and_distillation_by_answers_alone_are_soft_extraction(world):
    steal = ("-d", world, *STEAL, "-dmt", "res18")
    soft_weights = weights(world, "extraction")
    good("extraction", *steal, "-at", "margin", "--eps", 0, "-admsg", "_still")
    assert equal(weights(world, "extraction_still"), soft_weights)
    good("distill", *steal, "-a", 1)
    assert equal(weights(world, "distillation"), soft_weights)
    good("extraction", *steal, "-at", "margin", "--steps", 2, "-admsg", "_ball")
    assert not equal(weights(world, "extraction_ball"), soft_weights)


def test_prune_and_quantize_report_a_row_for_each_strength(world):
    flags = ("-d", world, *STEAL, "--benign", world / "digits_res18_none_8_")
    good("extraction", *flags, "-at", "prune", "--ratios", 1, 0, 0.5, "-admsg", "_prune")
    s = summary(world / TAKEN / "extraction_prune")
    assert s["role"] == "edited" and [r["ratio"] for r in s["rows"][:3]] == [1, 0, 0.5]
    dead, same, _, before, benign = s["rows"]
    figures = ("test_accuracy", "trigger_hits", "log10_p")
    assert all(same[k] == before[k] == s[k] for k in figures) and before["model"] == "source"
    assert benign["model"].startswith("benign")
    # a dead network gives every image one label: its accuracy is that class's share of the test images
    share = load_data("digits").test.labels.bincount().double() / 359
    assert min(abs(share - dead["test_accuracy"])) < 1e-9
    good("extraction", *flags[:-2], "-at", "quantize", "--bits", 16, 2, "--on", "extraction", "-admsg", "_bits")
    s = summary(world / TAKEN / "extraction_bits")
    assert [r.get("bits") for r in s["rows"]] == [16, 2, None] and s["on"] == "extraction"
    surrogate = summary(world / TAKEN / "extraction")
    assert s["test_accuracy"] == surrogate["test_accuracy"] and s["trigger_hits"] == surrogate["trigger_hits"]
    assert not list((world / TAKEN / "extraction_bits/checkpoints").iterdir())  # nothing was trained


def test_fineprune_trains_what_pruning_left(world):
    flags = ("-at", "fineprune", "--ratio", 0.5, "--criterion", "magnitude", "-admsg", "_fp")
    good("extraction", "-d", world, *STEAL, *flags)
    start, after = weights(world, "extraction_fp", "init"), weights(world, "extraction_fp")
    pruned = {n: t == 0 for n, t in start.items() if n.endswith("weight") and t.dim() > 1}
    share = sum(int(m.sum()) for m in pruned.values()) / sum(m.numel() for m in pruned.values())
    assert share == pytest.approx(0.5, abs=1e-3)
    assert all(bool((after[n][m] == 0).all()) for n, m in pruned.items())
    assert not torch.equal(after["1.conv1.weight"], start["1.conv1.weight"])


@pytest.mark.parametrize("flags, words", [
    (("-at", "soft", "-dmt", "res18", "--on", "extraction"), ["--on extraction", "-at soft"]),
    (("-at", "prune", "--on", "gone"), ["gone"]),
    (("-at", "prune", "--on", "../x"), ["--on", "'/'"]),
    (("-at", "prune", "--ratios", 0.5, 1.5), ["--ratios", "at most 1"]),
    (("-at", "quantize", "--bits", 1), ["--bits", "at least 2"]),
    (("-at", "finetune", "-dmt", "vgg11"), ["-dmt vgg11", "leave -dmt out"]),
    (("-at", "finetune", "--finetune", "all"), ["--finetune", "ftll"]),
    (("-at", "fineprune", "--criterion", "random"), ["--criterion", "magnitude"]),
    (("-at", "finetune", "-dsrc", "folder"), ["--data-dir"]),
])
def test_editing_that_makes_no_sense_is_refused(world, flags, words):
    before = tree(world)
    said = refused("extraction", "-d", world, *STEAL, "-admsg", "_no", *flags)
    assert all(word in said for word in words), said
    assert tree(world) == before
