"""Flags of the three scripts that change what is computed."""

import json

import pytest
import torch
from commands import call, good, summary
from comparing import same
from official_checkpoint import official
from small_runs import BENIGN, SOURCE, STEAL, TRAIN

from utils.runs.checkpoints import load_checkpoint
from utils.watermark.trigger_files import unpack_source


def test_paper_and_clean_give_the_same_weights_through_the_command(world):
    good("train", "-d", world, "-tt", "margin", *TRAIN, "-ep", 2, "--bn-stats", "clean", "-msg", "clean")
    paper, twin, clean = (load_checkpoint(world / name)["model"]["state_dict"] for name in (
        f"{SOURCE}/checkpoints/checkpoint_latest.pt", f"{SOURCE}/checkpoints/checkpoint_latest_clean.pt",
        f"{SOURCE}clean/checkpoints/checkpoint_latest.pt"))
    for name in paper:
        if "running" in name:
            assert not torch.equal(paper[name], clean[name])
            assert torch.allclose(twin[name], clean[name], rtol=1e-4, atol=1e-6)
        elif "num_batches" not in name:
            assert torch.equal(paper[name], clean[name]) and torch.equal(twin[name], clean[name])


def test_a_run_that_is_stopped_early_is_the_beginning_of_the_whole_run(tmp_path):
    """Two of four epochs: the rate of the third has fallen, which a run of -ep 2 does in its second."""
    flags = ("-d", tmp_path, "-tt", "margin", *TRAIN, "-ep", 4)
    good("train", *flags, "-msg", "whole")
    good("train", *flags, "-msg", "part", "--stop-after", 2)
    whole, part = tmp_path / f"{SOURCE}whole", tmp_path / f"{SOURCE}part"
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, part)]
    same(rows[0][:2], rows[1])
    assert summary(part)["epochs"] == 2 and rows[0][1]["lr"] > rows[0][2]["lr"]
    good("train", *flags, "-msg", "second", "--stop-after", 3)
    ends = [load_checkpoint(run / "checkpoints/checkpoint_latest.pt")["model"]["state_dict"]
            for run in (tmp_path / f"{SOURCE}second", whole)]
    good("train", *flags, "-msg", "all", "--stop-after", 4)
    ends.append(load_checkpoint(tmp_path / f"{SOURCE}all/checkpoints/checkpoint_latest.pt")["model"]["state_dict"])
    assert all(torch.equal(ends[1][name], ends[2][name]) for name in ends[1])
    assert not torch.equal(ends[0]["1.layers.0.weight"], ends[1]["1.layers.0.weight"])


@pytest.mark.parametrize("strategy", ["highest", "lowest"])
def test_label_strategy(world, strategy):
    flags = ("-tt", "margin", "--label-strategy", strategy, "--label-model", world / BENIGN, "-msg", strategy)
    good("train", "-d", world, *TRAIN, *flags)
    saved = load_checkpoint(world / f"{SOURCE}{strategy}" / "triggers.pt")
    path = world / BENIGN / "checkpoints" / "checkpoint_nat_best.pt"
    model, _ = unpack_source(load_checkpoint(path), path)
    ranked = model(saved["images"].float() / 255).argsort(dim=1, descending=strategy == "highest")
    for row, label, (true,) in zip(ranked.tolist(), saved["labels"].tolist(), saved["true_labels"].tolist()):
        assert label == [c for c in row if c != true][0]
    assert summary(world / f"{SOURCE}{strategy}")["log10_p"]["T1"] is None  # labels were not drawn at random


def test_mixup_and_the_name_of_the_folder(world):
    good("train", "-d", world, "-tt", "base", *TRAIN, "-nm", 2, "-qt", "stochastic", "-nq", 5, "-msg", "A")
    folder = world / "digits_vgg11_stochastic_base_5_2_A"
    saved = load_checkpoint(folder / "triggers.pt")
    assert saved["true_labels"].shape == (5, 2) and not (saved["labels"][:, None] == saved["true_labels"]).any()
    assert summary(folder)["log10_p"]["T1"] is not None


def test_select_last_reports_the_last_epoch(world):
    out = good("extraction", "-e", world, *STEAL, "-at", "soft", "-admsg", "_last", "--select", "last")
    assert "surrogate soft" in out
    assert summary(world / SOURCE / "extraction_last")["chosen_epoch"] == 1


def test_an_official_checkpoint_can_be_stolen_from(tmp_path):
    folder = tmp_path / "digits_res18_margin_6_"
    (folder / "checkpoints").mkdir(parents=True)
    official(folder / "checkpoints" / "checkpoint_nat_best.pt")
    out = good("extraction", "-e", tmp_path, *STEAL, "-tmt", "res18", "--width", 4, "-nq", 6, "-at", "soft")
    assert "surrogate soft" in out and "/6" in out
    s = summary(folder / "extraction")
    assert s["trigger_size"] == 6 and s["log10_p"]["T1"] is not None


def test_help_names_every_documented_flag():
    for script, flags in (
        ("train", "-d --dir -dt --dataset -tt --train-type -mt --model-type -nq --num-query -nm --num-mixup -qt "
         "--query-type -msg --message -ep --epoch -v --variable --device --seed"),
        ("distill", "-e --exp-name -d --dir -dt -dmt --model-type -tmt --teacher-model-type -tt -nq -nm -qt -msg "
         "-admsg --additional-message -a --alpha -t --temp -ep --device --seed"),
        ("extraction", "-e --exp-name -d --dir -dt -dsrc --dataset-source -at --attack -dmt -tmt -tt -nq -nm -qt -msg "
         "-admsg -a --alpha -ep --device --seed"),
    ):
        done = call(script, "--help")
        words = set(done.out.replace(",", " ").split())
        assert done.status == 0 and set(flags.split()) <= words, set(flags.split()) - words


def test_a_copy_takes_the_width_of_its_source_and_a_missing_run_is_looked_for(world):
    narrow = [flag for flag in STEAL if flag not in ("--width", 2)]
    done = call("extraction", "-d", world, *narrow, "-at", "soft", "-admsg", "_width", "--no-flip")
    assert done.status == 0 and summary(world / SOURCE / "extraction_width")["width"] == 2
    refusal = call("extraction", "-d", world, *STEAL, "-tt", "base", "-nq", 11)
    assert refusal.status == 2 and "there are digits_vgg11_base_10_" in refusal.err
    (world / f"{SOURCE}seed7").mkdir()
    (world / f"{SOURCE}seed7" / "run.json").write_text("{}")
    (world / SOURCE).rename(world / "away")
    try:
        refusal = call("extraction", "-d", world, *STEAL)
    finally:
        (world / "away").rename(world / SOURCE)
    assert refusal.status == 2 and "pass -msg " in refusal.err and "seed7" in refusal.err
