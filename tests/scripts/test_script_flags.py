"""Flags of the three scripts that change what is computed."""

import json

import pytest
from commands import call, good, summary
from comparing import same
from official_checkpoint import official
from small_runs import BENIGN, SOURCE, STEAL, TRAIN

from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model
from utils.training.metrics import predict

pytestmark = pytest.mark.usefixtures("quick")


def test_a_run_that_is_stopped_early_is_the_beginning_of_the_whole_run(tmp_path):
    """Two of four epochs: the rate of the third has fallen, which a run of -ep 2 does in its second."""
    flags = ("-d", tmp_path, "-tt", "margin", *TRAIN, "-ep", 4)
    good("train", *flags, "-msg", "whole")
    good("train", *flags, "-msg", "part", "--stop-after", 2)
    whole, part = tmp_path / f"{SOURCE}whole", tmp_path / f"{SOURCE}part"
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, part)]
    same(rows[0][:2], rows[1])
    assert summary(part)["epochs"] == 2 and rows[0][1]["lr"] > rows[0][2]["lr"]


def test_label_strategy(tmp_path):
    good("train", "-d", tmp_path, *TRAIN, "-tt", "none")
    good("train", "-d", tmp_path, *TRAIN, "--label-strategy", "lowest", "--label-model", tmp_path / BENIGN)
    saved, model = load_checkpoint(tmp_path / SOURCE / "triggers.pt"), read_model(find_checkpoint(tmp_path / BENIGN))
    ranked = predict(model, saved["images"]).argsort(dim=1)
    for row, label, (true,) in zip(ranked.tolist(), saved["labels"].tolist(), saved["true_labels"].tolist()):
        assert label == [c for c in row if c != true][0]
    assert summary(tmp_path / SOURCE)["log10_p"]["T1"] is None  # labels were not drawn at random


def test_mixup_and_the_name_of_the_folder(tmp_path):
    good("train", "-d", tmp_path, "-tt", "base", *TRAIN, "-nm", 2, "-qt", "stochastic", "-nq", 5, "-msg", "A")
    folder = tmp_path / "digits_vgg11_stochastic_base_5_2_A"
    saved = load_checkpoint(folder / "triggers.pt")
    assert saved["true_labels"].shape == (5, 2) and not (saved["labels"][:, None] == saved["true_labels"]).any()
    assert summary(folder)["log10_p"]["T1"] is not None


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
