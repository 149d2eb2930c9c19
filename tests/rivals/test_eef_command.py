"""Embedded external features: `train.py --embed-features` and `utils.verify eef`."""

import json

import pytest
import torch
from commands import call, good

import models
from utils.rivals.embedded_features.gradient_signs import grad_sign_vector
from utils.runs.checkpoints import load_checkpoint, pack_checkpoint, save_checkpoint
from utils.verify import main as verify_main

pytestmark = pytest.mark.usefixtures("quick")

TRAIN = ("-dt", "digits", "-tt", "none", "-nq", 10, "--train-size", 256, "--batch-size", 64, "--width", 4,
         "--device", "cpu", "-mt", "res18")


@pytest.fixture(scope="module")
def runs(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eef")
    for message, *more in (("victim", "--embed-features", 0.3, "-ep", 2), ("benign", "--seed", 1, "-ep", 2),
                           ("near", "--seed", 1, "-ep", 1), ("plain", "-ep", 1),
                           ("zero", "--embed-features", 0, "-ep", 1)):
        good("train", "-d", folder, *TRAIN, "-msg", message, *more)
    save_checkpoint(folder / "wide", pack_checkpoint(models.build("res18", 10, width=8), "res18"))
    return {path.name.rsplit("_", 1)[-1]: path for path in folder.iterdir()}


def weights(run):
    return load_checkpoint(run / "checkpoints" / "checkpoint_latest.pt")["model"]["state_dict"]


def run_eef(*flags):
    return verify_main(["eef", "--epochs", "3", "--device", "cpu", *map(str, flags)])


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as end:
        run_eef(*flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "error: " in error and error.count("\n") == 1
    return error


def test_embed_features_zero_is_plain_training_bit_for_bit(runs):
    plain, zero = weights(runs["plain"]), weights(runs["zero"])
    assert all(torch.equal(plain[n], zero[n]) for n in plain)
    settings = [json.loads((runs[n] / "run.json").read_text())["settings"] for n in ("plain", "zero", "victim")]
    assert [s["embed_features"] for s in settings] == [0, 0, 0.3]
    assert len({s["data_sha256"] for s in settings}) == 1  # of the images before any is styled


def test_a_styled_run_has_the_same_initial_weights_and_learns_others(runs, tmp_path):
    good("train", "-d", tmp_path, *TRAIN, "-ep", 1, "--embed-features", 0.3)
    folder = next(tmp_path.iterdir())
    first = lambda run: load_checkpoint(run / "checkpoints" / "checkpoint_init.pt")["model"]["state_dict"]
    a, b = first(folder), first(runs["plain"])
    assert all(torch.equal(a[n], b[n]) for n in a)
    a, b = weights(folder), weights(runs["plain"])
    assert not torch.equal(a["1.conv1.weight"], b["1.conv1.weight"])
    done = call("train", "-d", tmp_path, *TRAIN, "-ep", 1)
    assert done.status == 2 and "embed-features was 0.3" in done.err


@pytest.mark.parametrize("test", ["paired", "official"])
def test_the_command_tests_every_suspect_on_the_right_images(runs, capsys, monkeypatch, tmp_path, test):
    seen, honest = [], grad_sign_vector
    monkeypatch.setattr("utils.rivals.embedded_features.command.grad_sign_vector",
                        lambda model, x, y: seen.append(x) or honest(model, x, y))
    suspects = [runs["victim"], runs["benign"]]
    found = tmp_path / "eef.json"
    flags = ("--suspect", *suspects, "--test", test, "--json", found)
    status = run_eef(runs["victim"], "--benign", runs["benign"], *flags)
    lines = capsys.readouterr().out.splitlines()
    assert status == 1  # the benign model is compared with itself, and so never claimed
    assert lines[0].startswith("victim: ") and "of 77 styled images right" in lines[0]
    assert lines[-2].startswith(f"{runs['victim']}: difference ")
    assert lines[-1] == f"{runs['benign']}: difference +0.000, log10 p 0.0: inconclusive" or test == "official"
    assert lines[-1].endswith("inconclusive")
    written = json.loads(found.read_text())
    assert written["settings"] == {"test": test, "double_softmax": False, "points": None, "epochs": 3, "seed": 100,
                                   "benign": [str(runs["benign"])], "alpha": 0.01}
    for row, line in zip(written["suspects"], lines[-2:], strict=True):
        said = f"{row['model']}: difference {row['difference']:+.3f}, log10 p {row['log10_p']:.1f}: "
        assert line == said + ("claim" if row["claim"] else "inconclusive") and row["above"] == 0

    names = [{image.numpy().tobytes() for image in x} for x in seen]
    learned, asked = names[0], names[2]
    assert names[1] == learned and names[3] == names[4] == asked
    if test == "paired":
        assert len(seen[0]) == 62 and len(seen[2]) == 15 and not learned & asked
    else:
        assert len(seen[0]) == len(seen[2]) == 77


def test_the_command_is_deterministic_and_can_claim(runs, capsys, tmp_path):
    flags = (runs["victim"], "--benign", runs["benign"], "--points", 60, "--suspect", runs["victim"])
    assert run_eef(*flags, "--epochs", 10) == 0
    first = capsys.readouterr().out
    assert "of 60 styled images" in first and first.splitlines()[-1].endswith(": claim")
    # further benign models change no number, but a claim must lie above each of them; the first one here starts from
    # the weights of --benign, the second is the suspect itself, which is claimed without it
    found = tmp_path / "eef.json"
    assert run_eef(*flags, "--benign", runs["benign"], runs["near"], "--epochs", 10) == 0
    lines, before = capsys.readouterr().out.splitlines(), first.splitlines()
    assert lines[:2] == before[:2] and before[2].startswith(lines[2] + "; the only one")
    assert lines[3].startswith(before[3].removesuffix(": claim"))
    assert lines[3].endswith(", above 1 of 1 further benign models: claim")
    other = (*flags[:-1], runs["plain"], "--epochs", 10)
    assert run_eef(*other) == 0
    before = capsys.readouterr().out.splitlines()
    assert run_eef(*other, "--benign", runs["benign"], runs["plain"], "--json", found) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == before[3].replace(": claim", ", above 0 of 1 further benign models: inconclusive")
    rows = json.loads(found.read_text())["suspects"]
    assert [(row["above"], row["claim"]) for row in rows] == [(0, False)]


def test_eef_refuses_bad_flags(runs, capsys, tmp_path):
    victim, benign = runs["victim"], runs["benign"]
    assert "was not trained with --embed-features" in refused(
        capsys, benign, "--benign", runs["plain"], "--suspect", victim)
    assert f"--benign {victim} was trained with" in refused(capsys, victim, "--benign", victim, "--suspect", benign)
    told = refused(capsys, victim, "--benign", benign, "--suspect", benign, runs["wide"])
    assert f"--suspect {runs['wide']}" in told and "train a victim and a benign model" in told
    assert "--benign" in refused(capsys, victim, "--benign", runs["wide"], "--suspect", benign)
    assert "raise --points" in refused(capsys, victim, "--benign", benign, "--suspect", benign, "--points", 40)
    assert "there is no run in" in refused(capsys, victim, "--benign", benign, "--suspect", tmp_path / "none")
    assert f"there is no folder {tmp_path / 'none'}" in refused(
        capsys, victim, "--benign", benign, "--suspect", benign, "--json", tmp_path / "none/eef.json")
    told = call("train", "-d", tmp_path / "new", *TRAIN, "--embed-features", 1.5)
    assert told.status == 2 and "--embed-features" in told.err
    told = call("train", "-d", tmp_path / "new", *TRAIN, "--embed-features", 0.001)
    assert told.status == 2 and "that is none" in told.err and not (tmp_path / "new").exists()


def test_a_surrogate_is_no_benign_model_and_other_data_are_refused(runs, capsys, tmp_path):
    folder = runs["victim"].parent
    good("extraction", "-e", folder, "-dt", "digits", "-tt", "none", "-nq", 10, "--batch-size", 64, "--width", 4,
         "--device", "cpu", "-tmt", "res18", "-dmt", "res18", "-ep", 1, "-at", "soft", "-msg", "victim")
    stolen = runs["victim"] / "extraction"
    assert "no independent model" in refused(capsys, runs["victim"], "--benign", stolen, "--suspect", stolen)
    settings = json.loads((runs["victim"] / "run.json").read_text())
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    checkpoint = runs["victim"] / "checkpoints" / "checkpoint_nat_best.pt"
    (other / "checkpoints" / checkpoint.name).write_bytes(checkpoint.read_bytes())
    settings["settings"]["data_sha256"] = "0" * 64
    (other / "run.json").write_text(json.dumps(settings))
    assert "not the images" in refused(capsys, other, "--benign", runs["benign"], "--suspect", stolen)
