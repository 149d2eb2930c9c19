"""Flags that change what is computed: where a training starts and stops, which triggers it gets, and which labels."""

import argparse
import json
import shutil

import pytest
import torch
from commands import call, good, refused, rows_of, summary
from comparing import same
from official_checkpoint import official
from small_runs import BASE, SOURCE, STEAL, TRAIN

from extraction import load_both
from utils.data.sets import load_data
from utils.runs.checkpoints import find_checkpoint, load_checkpoint, read_model
from utils.system.files import sha256_of_file
from utils.training.metrics import predict
from utils.watermark.trigger_files import read_triggers

pytestmark = pytest.mark.usefixtures("quick")
PLAUSIBLE = ("--trigger-strategy", "uncertain", "--label-strategy", "plausible", "--label-choices", 3)


def weights_of(file) -> dict:
    return load_checkpoint(file)["model"]["state_dict"]


def test_a_run_that_is_stopped_early_is_the_beginning_of_the_whole_run(tmp_path):
    """Two of four epochs: the rate of the third has fallen, which a run of -ep 2 does in its second."""
    flags = ("-d", tmp_path, "-tt", "margin", *TRAIN, "-ep", 4)
    good("train", *flags, "-msg", "whole")
    good("train", *flags, "-msg", "part", "--stop-after", 2)
    whole, part = (rows_of(tmp_path / f"{SOURCE}{name}") for name in ("whole", "part"))
    same(whole[:2], part)
    assert summary(tmp_path / f"{SOURCE}part")["epochs"] == 2 and whole[1]["lr"] > whole[2]["lr"]


def test_init_puts_the_watermark_into_a_trained_model(benign, tmp_path):
    file = shutil.copy(find_checkpoint(benign), tmp_path / "trained.pt")
    command = ("train", "-d", tmp_path, "-tt", "margin", *TRAIN, "--init", file, "--lr", 1e-9, "--weight-decay", 0,
               "--bn-stats", "clean")
    printed = good(*command)
    assert f"starting from the weights in {file}" in printed
    assert "test accuracy of these weights before the training: " in printed
    assert "WARNING: the source itself is not claimed (p = 10^" in printed  # a rate of 1e-9 embeds nothing
    run, before = tmp_path / SOURCE, weights_of(file)
    after, start = weights_of(find_checkpoint(run)), weights_of(run / "checkpoints" / "checkpoint_init.pt")
    same(start, before)  # the running statistics too are the old model's when training starts
    for name, weight in before.items():
        if "running" not in name and not name.endswith("tracked"):
            assert torch.allclose(after[name], weight, atol=1e-6), name
    moved = shutil.move(file, tmp_path / "moved.pt")  # the same weights under another name are the same
    assert "is finished" in good(*(moved if flag == file else flag for flag in command))
    said = refused(*command, "--init", run, "--overwrite")  # which would remove what it begins with
    assert f"--init {run} lies in the folder that this run writes: pass another -msg" in said
    shutil.move(moved, file)
    # other weights under the same name are other settings
    shutil.copy(benign / "checkpoints" / "checkpoint_init.pt", file)
    assert "when the file of --init had other contents: restore them" in refused(*command)


def test_one_folder_of_images_in_two_spellings_is_one_data_set():
    flags = argparse.Namespace(dataset="digits", dataset_source="digits", data_dir="data", data_dir_source="./data/",
                               train_size=None, skip_bad_images=False, image_size=None)
    own, home = load_both(flags, {"train_size": 100})
    assert own is home and len(own.train.labels) == 100  # as many as the source had


def test_mixup_and_the_name_of_the_folder(tmp_path):
    good("train", "-d", tmp_path, "-tt", "base", *TRAIN, "-nm", 2, "-qt", "stochastic", "-nq", 5, "-msg", "A")
    saved = load_checkpoint(tmp_path / "digits_vgg11_stochastic_base_5_2_A" / "triggers.pt")
    assert saved["true_labels"].shape == (5, 2) and not (saved["labels"][:, None] == saved["true_labels"]).any()


def test_an_official_checkpoint_can_be_stolen_from(tmp_path):
    folder = tmp_path / "digits_res18_margin_6_"
    (folder / "checkpoints").mkdir(parents=True)
    official(folder / "checkpoints" / "checkpoint_nat_best.pt")
    out = good("extraction", "-e", tmp_path, *STEAL, "-tmt", "res18", "--width", 4, "-nq", 6, "-at", "soft")
    assert "surrogate soft" in out and "/6" in out and "is not finished" not in out
    s = summary(folder / "extraction")
    assert s["trigger_size"] == 6 and s["log10_p"]["T1"] is not None
    (tmp_path / "columns").write_text("\n".join(map(str, range(10))))
    claim = ("claim", folder, "--suspect", folder / "extraction", "--trust-owner", "--columns", tmp_path / "columns")
    assert f"T1           log10 p = {s['log10_p']['T1']:.2f}" in call("utils.verify", *claim).out


@pytest.mark.parametrize("strategy, sign", [("highest", 1), ("lowest", -1)])
def test_labels_that_are_not_drawn_at_random_have_no_t1(strategy, sign, benign, tmp_path):
    good("train", "-d", tmp_path, *TRAIN, "--label-strategy", strategy, "--label-model", benign)
    saved = load_checkpoint(tmp_path / SOURCE / "triggers.pt")
    logits = sign * predict(read_model(benign), saved["images"])
    wrong = logits.scatter(1, saved["true_labels"], -torch.inf)
    assert torch.equal(saved["labels"], wrong.argmax(dim=1))  # the likeliest or the least likely of the wrong classes
    assert summary(tmp_path / SOURCE)["log10_p"]["T1"] is None


def test_triggers_and_candidates_are_those_of_the_clean_model(benign, tmp_path):
    run, command = tmp_path / SOURCE, ("train", "-d", tmp_path, "-tt", "margin", *TRAIN, "--label-model", benign)
    good(*command, *PLAUSIBLE)
    triggers, clean = read_triggers(run / "triggers.pt", 10), read_model(benign)
    held_out = load_data("digits").held_out
    p = predict(clean, held_out.images).double().softmax(1)
    most = (-(p * p.log()).sum(1)).topk(10).indices.sort().values
    assert triggers.sources.flatten().tolist() == held_out.indices[most].tolist()
    assert triggers.candidates.tolist() == predict(clean, triggers.images).topk(3).indices.tolist()
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["label_model_sha256"] == sha256_of_file(find_checkpoint(benign))
    assert "is finished" in good(*command, *PLAUSIBLE)
    # the run keeps its triggers where another device rounds the clean model's answers otherwise: here other ten
    others = load_checkpoint(run / "triggers.pt")
    kept = [i for i in range(len(held_out.labels)) if i not in most][:10]
    others |= {"images": held_out.images[kept], "sources": held_out.indices[kept][:, None],
               "true_labels": held_out.labels[kept][:, None]}
    torch.save(others, run / "triggers.pt")
    good(*command, *PLAUSIBLE, "--benign", benign)
    hits = lambda model: int((predict(read_model(model), others["images"]).argmax(1) == others["labels"]).sum())
    rows = summary(run)["rows"]
    assert [rows[0]["trigger_hits"], rows[-1]["trigger_hits"]] == [hits(run), hits(benign)]
    for file in (run / "summary.json", *run.glob("checkpoints/*")):
        file.unlink()
    good(*command, *PLAUSIBLE)
    same(load_checkpoint(run / "triggers.pt"), others)
    left = held_out.pick([i for i in range(len(held_out.labels)) if i not in kept])
    found = (predict(read_model(run), left.images).argmax(1) == left.labels).double().mean()
    assert rows_of(run)[-1]["val_accuracy"] == pytest.approx(float(found))
    assert "trigger-strategy was 'uncertain', is None" in refused(*command, *PLAUSIBLE[2:])
    assert "label-choices was 3, is 2" in refused(*command, *PLAUSIBLE, "--label-choices", 2)


def test_carriers_are_trained_under_labels_of_triggers(benign, tmp_path):
    """The loss is that of relabelled images; triggers and labels stay, and plain weights of the clean model do too."""
    plain = tmp_path / "plain.pt"
    torch.save({name.removeprefix("1."): tensor for name, tensor in weights_of(find_checkpoint(benign)).items()
                if name.startswith("1.")}, plain)
    command, losses, sets = ("train", "-d", tmp_path, "-tt", "base", *TRAIN, *PLAUSIBLE), [], []
    for name, flags in (("off", ()), ("on", ("--carriers", 4)), ("plain", ("--carriers", 4, "--label-model", plain))):
        printed = good(*command, "-msg", name, "--label-model", benign, *flags)
        assert ("carriers: " in printed) == bool(flags)
        losses.append(rows_of(tmp_path / f"{BASE}{name}")[0]["loss_obj"])
        sets.append(load_checkpoint(tmp_path / f"{BASE}{name}" / "triggers.pt"))
    assert losses[0] != losses[1] == losses[2]
    same(sets[0], sets[1])
    same(sets[1], sets[2])
    assert "pass the -mt that" in refused(*command, "-mt", "res18", "--label-model", plain)
