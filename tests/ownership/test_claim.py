"""Claims of ownership through `utils.verify`: those that hold, and those that must not."""

import json
import os
import shutil
import sys

import pytest
from commands import verify
from owner_runs import CLASSES, SETTINGS, M, answer, make_run, replace

from utils.data.sets import load_data
from utils.ownership.claim_log import log_claims
from utils.ownership.commitment import commit_to, neutral_names
from utils.runs.checkpoints import read_model, save_checkpoint
from utils.runs.folder import RunFolder
from utils.system.files import read_bounded
from utils.system.refusals import Refusal
from utils.training.metrics import predict
from utils.watermark.trigger_files import read_triggers
from utils.watermark.triggers import draw_triggers

pytestmark = pytest.mark.usefixtures("quick")


def test_a_copy_is_claimed_and_an_independent_model_is_not(owner, bank, tmp_path, capsys):
    folder, triggers = owner
    stolen = answer(owner, tmp_path, 0.6)
    status, out, _ = verify(capsys, "claim", folder, "--predictions", stolen, "--trust-owner", "--benign", *bank,
                            "--json", tmp_path / "c.json", "--plot", tmp_path / "c.png")
    report = json.loads((tmp_path / "c.json").read_text())
    assert status == 0 and "The claim holds" in out and report["decision"]["rests_on"] == "T1"
    assert report["sequential"]["decision"] == "claim" and report["sequential"]["queries"] < M
    assert all(report["tests"][t]["log10_p"] is not None for t in ("T1", "T2", "T3", "T4"))
    assert report["curve"]["sufficed_half"] <= report["curve"]["sufficed_95"] <= M
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    status, out, _ = verify(capsys, "claim", folder, "--predictions", answer(owner, tmp_path, 0.0))
    assert status == 1 and "The claim does not hold" in out
    assert verify(capsys, "claim", folder, "--suspect", bank[0])[0] == 1
    assert verify(capsys, "claim", folder, "--suspect", bank[0], "--benign", bank[0])[0] == 2  # in the bank
    assert verify(capsys, "claim", folder, "--predictions", stolen, "--benign", folder)[0] == 2  # not independent


def test_a_forged_trigger_set_is_refused_for_lack_of_a_commitment(bank, tmp_path, capsys):
    """A forger takes the labels from an independent model: every trigger hits, and that shows nothing."""

    victim = bank[0] / "checkpoints" / "checkpoint_nat_best.pt"
    digits = load_data("digits")
    triggers, _ = draw_triggers(digits.held_out, M, 1, 10, SETTINGS["seed"])
    labels = predict(read_model(victim), triggers.images).argmax(1)
    forged, triggers = make_run(tmp_path / "forged", labels=labels, committed=False)
    triggers = replace(triggers, true_labels=(labels[:, None] + 1) % 10)
    save_checkpoint(forged / "triggers.pt", triggers._asdict())
    status, out, _ = verify(capsys, "claim", forged, "--suspect", victim, "--benign", *bank[1:])
    assert status == 1 and f"{M} of {M}" in out and "commitment is none" in out and "T1           does not" in out
    # a commitment of the forger's own does not help: the committed seed does not draw these labels
    commit_to(RunFolder(forged, SETTINGS, "x"), triggers, CLASSES, 143)
    status, out, _ = verify(capsys, "claim", forged, "--suspect", victim)
    assert status == 1 and "commitment   match" in out and "the committed seed draws" in out
    # and the digest is not the one that was published
    status, out, _ = verify(capsys, "claim", forged, "--suspect", victim, "--commitment", "0" * 64)
    assert status == 1 and "commitment   mismatch" in out


@pytest.mark.parametrize("change", [{"label_strategy": "highest"}, {"train_type": "ewe", "label_strategy": "single"},
                                    {"train_type": "rs", "label_strategy": "single"}])
def test_t1_is_not_printed_where_labels_are_not_uniform(change, tmp_path, capsys):
    made = make_run(tmp_path / "run", SETTINGS | change)
    status, out, _ = verify(capsys, "claim", made[0], "--predictions", answer(made, tmp_path, 1.0))
    assert status == 1 and "not drawn uniformly" in out and "log10 p" not in out


def test_without_uniform_labels_the_decision_rests_on_benign_models(bank, tmp_path, capsys):
    made = make_run(tmp_path / "run", SETTINGS | {"label_strategy": "lowest"})
    flags = ("--trust-owner", "--benign", *bank)
    status, out, _ = verify(capsys, "claim", made[0], "--predictions", answer(made, tmp_path, 1.0), *flags)
    assert status == 0 and "rests on T2" in out
    assert verify(capsys, "claim", made[0], "--suspect", made[0], *flags)[0] == 1
    # whoever does not trust the owner is not persuaded: the labels may have been read off the suspect
    status, out, _ = verify(capsys, "claim", made[0], "--predictions", answer(made, tmp_path, 1.0), *flags[1:])
    assert status == 1 and "T1 does not apply" in out and "--trust-owner decides on T2" in out


def test_a_program_answers_and_the_sequential_test_stops_early(owner, tmp_path, capsys):
    folder, triggers = owner
    key = dict(zip(neutral_names(triggers, folder), triggers.labels.tolist()))
    (tmp_path / "api.py").write_text(
        f"import sys, pathlib\nopen({str(tmp_path / 'asked')!r}, 'a').write('x')\n"
        f"print({key!r}[pathlib.Path(sys.argv[1]).name])\n")
    command = f"{sys.executable} -S {tmp_path / 'api.py'} {{png}}"
    status, out, _ = verify(capsys, "claim", folder, "--command", command, "--sequential", "--trust-owner")
    queries = len((tmp_path / "asked").read_text())
    assert status == 0 and queries < 10 and f"after {queries} queries" in out and "rests on SPRT" in out
    assert verify(capsys, "claim", folder, "--command", "false {png}")[0] == 2
    assert verify(capsys, "claim", folder, "--command", "false {png}", "--sequential", "--allow-missing")[0] == 2
    assert verify(capsys, "claim", folder, "--command", "echo dog {png}")[0] == 2
    assert verify(capsys, "claim", folder, "--command", "/nonexistent {png}")[0] == 2
    assert verify(capsys, "claim", folder, "--command", "echo 3")[0] == 2


def test_damaged_files_of_the_owner_are_refused(owner, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(owner[0], folder)
    (folder / "key.json").write_text('{"salt": 3}')
    assert verify(capsys, "claim", folder, "--suspect", folder)[0] == 2
    (folder / "key.json").write_text("[" * 100_000)
    assert verify(capsys, "claim", folder, "--suspect", folder)[0] == 2
    (folder / "triggers.pt").write_bytes(b"PK")
    assert verify(capsys, "claim", folder, "--suspect", folder)[0] == 2
    assert verify(capsys, "claim", tmp_path / "none", "--suspect", folder)[0] == 2
    assert verify(capsys, "claim", owner[0], "--predictions", "/dev/zero")[0] == 2
    assert verify(capsys, "claim", owner[0])[0] == 2
    os.mkfifo(tmp_path / "pipe.csv")
    assert verify(capsys, "claim", owner[0], "--predictions", tmp_path / "pipe.csv")[0] == 2
    assert read_triggers(owner[0] / "triggers.pt", 10).labels.tolist() == owner[1].labels.tolist()
    assert read_bounded(owner[0] / "key.json")[:1] == b"{"


@pytest.mark.parametrize("name", ["claims.jsonl", "commitment.json", "key.json", "triggers.pt", "commitment.tsr",
                                  "checkpoints", "checkpoints/checkpoint_nat_best.pt"])
def test_nothing_of_a_run_is_read_or_written_through_a_link(name, owner, tmp_path, capsys):
    folder, answers, other = tmp_path / "run", answer(owner, tmp_path, 0.6), tmp_path / "other"
    shutil.copytree(owner[0], folder)
    (folder / "claims.jsonl").unlink(missing_ok=True)
    if (folder / name).exists():
        (folder / name).rename(other)
    (folder / name).symlink_to(other)  # which holds what the run would, or nothing
    existed = other.exists()
    for command in (("claim", folder, "--predictions", answers), ("export", folder, "--to", tmp_path / "out"),
                    ("timestamp", folder, "--tsa", "http://127.0.0.1:9")):
        status, out, err = verify(capsys, *command)
        assert status == 2 and out == "" and err.count("\n") == 1
        assert f"{folder / name} is a symbolic link; in a run folder" in err and "remove it" in err
    assert other.exists() == existed and not (tmp_path / "out").exists()
    (folder / name).unlink()
    if existed:
        other.rename(folder / name)
    (tmp_path / "link").symlink_to(folder)  # the way to the folder may be a link
    assert verify(capsys, "claim", tmp_path / "link", "--trust-owner", "--predictions", answers)[0] == 0
    assert (folder / "claims.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_log_of_claims_is_not_continued_through_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "claims.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(Refusal, match="claims.jsonl is a symbolic link"):
        log_claims(tmp_path / "run", "0" * 64, ["--suspect x"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("digest", ["$(touch x)", "0" * 63, "0" * 64 + "\n", "g" * 64, None, 7])
def test_a_digest_that_is_none_is_neither_printed_nor_logged_nor_exported(digest, owner, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(owner[0], folder)
    (folder / "claims.jsonl").unlink(missing_ok=True)
    (folder / "commitment.json").write_text(json.dumps({"sha256": digest}))
    for command in (("claim", folder, "--predictions", answer(owner, tmp_path, 0.6)),
                    ("export", folder, "--to", tmp_path / "out"),
                    ("timestamp", folder, "--tsa", "http://127.0.0.1:9")):
        status, out, err = verify(capsys, *command)
        assert status == 2 and out == "" and err.count("\n") == 1 and "touch" not in err
        assert f"{folder / 'commitment.json'} is damaged: its sha256 is not 64 hexadecimal digits" in err
    assert not (folder / "claims.jsonl").exists() and not (tmp_path / "out" / "key.json").exists()
