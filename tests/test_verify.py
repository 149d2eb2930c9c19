"""An owner's session: commitment, export, answers, decision; and claims that must not hold."""

import json
import os
import stat
import sys

import numpy as np
import pytest
import torch

import models
from utils.data.folder import decode_image
from utils.data.sets import load_data
from utils.ownership.answers import Answers, class_number
from utils.ownership.claim import _decide_sequentially
from utils.ownership.commitment import Commitment, check_commitment, commit_to, neutral_names, save_triggers
from utils.ownership.verdict import OwnershipCase
from utils.runs.checkpoints import pack_checkpoint, read_model, save_checkpoint
from utils.runs.folder import RunFolder
from utils.system.device import prepare_torch
from utils.system.files import write_atomically
from utils.system.refusals import Refusal
from utils.system.untrusted import read_bounded
from utils.training.metrics import predict
from utils.verify import main as verify_main
from utils.watermark.trigger_files import pack_triggers, read_triggers
from utils.watermark.triggers import TriggerSet, draw_triggers, redraw_labels

M, CLASSES = 40, [str(i) for i in range(10)]
SETTINGS = {"dataset": "digits", "train_type": "margin", "label_strategy": "random", "seed": 3, "num_query": M}


def replace(trigger, **parts):
    return TriggerSet(**(trigger._asdict() | parts))


def make_run(path, settings=SETTINGS, labels=None, committed=True):
    """A run folder as train.py leaves one, with an untrained model."""
    run = RunFolder(path, settings, "another -msg").open(torch.device("cpu"), overwrite=False)
    digits = load_data("digits")
    trigger, _ = draw_triggers(digits.held_out, M, 1, 10, settings["seed"])
    trigger = trigger if labels is None else replace(trigger, labels=labels)
    save_triggers(run, trigger, CLASSES)
    if committed:
        commit_to(run, trigger, CLASSES, len(digits.held_out.labels))
    prepare_torch(settings["seed"], False)
    model = models.build("vgg11", 10, digits.mean, digits.std, 4).eval()
    about = {"classes": CLASSES, "train_type": settings["train_type"]}
    run.save("nat_best", pack_checkpoint(model, "vgg11", epoch=0, figures={}, about=about, **pack_triggers(trigger)))
    run._lock.close()
    return path, trigger


@pytest.fixture(autouse=True, scope="module")
def quick():
    """The disk's promises, git's answer and the triggers' picture cost most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr("utils.runs.folder.describe_process", lambda device: {})
        patch.setattr("utils.ownership.commitment.draw_trigger_picture",
                      lambda trigger, classes, file: file.write(b"a picture"))
        yield


@pytest.fixture(scope="module")
def owner(quick, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("owner") / "run")


@pytest.fixture(scope="module")
def bank(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    none = SETTINGS | {"train_type": "none"}
    return [make_run(folder / f"b{i}", none | {"seed": 10 + i}, committed=False)[0] for i in range(5)]


def call(capsys, *flags):
    """(status, stdout, stderr) of `python -m utils.verify`, in this process."""
    try:
        status = verify_main([str(flag) for flag in flags])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    if status == 2:
        assert err.count("\n") == 1 and out == "", (out, err)
    return status, out, err


def answer(owner, tmp_path, share, name="answers.csv", seed=0):
    """A CSV file in which `share` of the answers are the assigned labels and the others the true ones."""
    folder, trigger = owner
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(M) < share, trigger.labels, trigger.true_labels[:, 0])
    path = tmp_path / name
    path.write_text("".join(f"{n},{y}\n" for n, y in zip(neutral_names(trigger, folder), labels)))
    return path


# ---- commitment ---------------------------------------------------------------------------------------------


def test_the_commitment_can_be_recomputed_by_hand(owner):
    import hashlib

    folder, trigger = owner
    key = json.loads((folder / "key.json").read_text())
    header = {"version": 1, "classes": CLASSES, "settings": key["settings"], "images": [M, 3, 32, 32], "labels": [M],
              "true_labels": [M, 1], "sources": [M, 1]}
    content = json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n" + bytes(
        trigger.images.flatten().tolist())
    for part in (trigger.labels, trigger.true_labels, trigger.sources):
        content += b"".join(int(v).to_bytes(8, "little", signed=True) for v in part.flatten())
    made = hashlib.sha256(bytes.fromhex(key["salt"]) + content).hexdigest()
    assert made == json.loads((folder / "commitment.json").read_text())["sha256"]
    assert key["salt"] not in (folder / "commitment.json").read_text()


def test_private_files_are_private(owner):
    folder, _ = owner
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # run.json and output.log name the seed
    for name in ("triggers.pt", "key.json", "trigger.png", "checkpoints/checkpoint_nat_best.pt"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


@pytest.mark.parametrize("part", ["images", "labels", "true_labels", "sources"])
def test_any_change_breaks_the_commitment(part, owner):
    folder, trigger = owner
    assert check_commitment(folder, trigger).state == "match"
    changed = getattr(trigger, part).clone()
    changed.view(-1)[7] = (changed.view(-1)[7] + 1) % 10
    assert check_commitment(folder, replace(trigger, **{part: changed})).state == "mismatch"


def test_a_continued_run_keeps_its_commitment(tmp_path):
    folder, trigger = make_run(tmp_path / "run")
    before = (folder / "commitment.json").read_bytes(), (folder / "key.json").read_bytes()
    run = RunFolder(folder, SETTINGS, "x")
    (folder / "commitment.json").unlink()  # killed between the two files
    digest = commit_to(run, trigger, CLASSES, 143)
    assert digest == json.loads(before[0])["sha256"] and (folder / "key.json").read_bytes() == before[1]


@pytest.mark.parametrize("there", [False, True])
def test_an_export_that_fails_leaves_nothing_and_can_be_repeated(there, owner, tmp_path, monkeypatch, capsys):
    to, real, count = tmp_path / "out", write_atomically, [0]
    if there:
        to.mkdir()

    def full(path, content):
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr("utils.ownership.export.write_atomically", full)
    with pytest.raises(SystemExit):
        verify_main(["export", str(owner[0]), "--to", str(to)])
    assert "the disk is full" in capsys.readouterr().err
    assert not any(to.iterdir()) if there else not to.exists()
    assert verify_main(["export", str(owner[0]), "--to", str(to)]) in (0, None)


@pytest.mark.parametrize("content", [None, "{}", '{"salt": 5}'])
def test_a_lost_or_damaged_key_is_named_and_not_replaced(content, tmp_path):
    folder, trigger = make_run(tmp_path / "run")
    key = folder / "key.json"
    key.unlink() if content is None else key.write_text(content)
    with pytest.raises(Refusal, match="key.json is " + ("gone" if content is None else "damaged")):
        commit_to(RunFolder(folder, SETTINGS, "x"), trigger, CLASSES, 143)
    assert key.exists() == (content is not None)


def test_numbers_are_not_read_as_names_of_other_classes():
    number = lambda text, classes: class_number(text, classes, "here")
    assert number(" 1", ["0", "1"]) == 1 and number("1", ["cat", "dog"]) == 1
    assert number("2", ["1", "2"]) == 1  # a name
    with pytest.raises(Refusal, match="'0' is no class.*answer by name"):
        number("0", ["1", "2"])


# ---- export -------------------------------------------------------------------------------------------------


def test_export_is_bit_equal_neutral_and_private(owner, tmp_path, capsys):
    folder, trigger = owner
    to = tmp_path / "out"
    assert call(capsys, "export", folder, "--to", to)[0] == 0
    key = json.loads((to / "key.json").read_text())
    assert stat.S_IMODE((to / "key.json").stat().st_mode) == 0o600
    files = sorted((to / "images").iterdir())
    assert [f.name for f in files] == sorted(key["images"]) and len(files) == M
    order = [key["images"][f.name]["index"] for f in files]
    assert order != sorted(order) and sorted(order) == list(range(M))
    for file in files:
        entry = key["images"][file.name]
        assert (decode_image(file.read_bytes()) == trigger.images[entry["index"]].numpy()).all()
        assert entry["label"] == trigger.labels[entry["index"]]
        assert len(file.stem) == 16 and set(file.stem) <= set("0123456789abcdef")
    assert call(capsys, "export", folder, "--to", to)[0] == 2  # not over another one


# ---- claims -------------------------------------------------------------------------------------------------


def test_a_copy_is_claimed_and_an_independent_model_is_not(owner, bank, tmp_path, capsys):
    folder, trigger = owner
    stolen = answer(owner, tmp_path, 0.6)
    status, out, _ = call(capsys, "claim", folder, "--predictions", stolen, "--benign", *bank, "--json",
                          tmp_path / "c.json", "--plot", tmp_path / "c.png")
    report = json.loads((tmp_path / "c.json").read_text())
    assert status == 0 and "The claim holds" in out and report["decision"]["rests_on"] == "T1"
    assert report["sequential"]["decision"] == "claim" and report["sequential"]["queries"] < M
    assert all(report["tests"][t]["log10_p"] is not None for t in ("T1", "T2", "T3", "T4"))
    assert report["curve"]["sufficed_half"] <= report["curve"]["sufficed_95"] <= M
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    status, out, _ = call(capsys, "claim", folder, "--predictions", answer(owner, tmp_path, 0.0))
    assert status == 1 and "The claim does not hold" in out
    assert call(capsys, "claim", folder, "--suspect", bank[0])[0] == 1
    assert call(capsys, "claim", folder, "--suspect", bank[0], "--benign", bank[0])[0] == 2  # suspect in the bank
    assert call(capsys, "claim", folder, "--predictions", stolen, "--benign", folder)[0] == 2  # not independent


def test_npy_answers(owner, tmp_path, capsys):
    folder, trigger = owner
    order = np.argsort(neutral_names(trigger, folder))
    sharp = np.eye(10)[trigger.labels.numpy()[order]]
    np.save(tmp_path / "p.npy", sharp)
    np.save(tmp_path / "y.npy", trigger.labels.numpy()[order])
    for name in ("p.npy", "y.npy"):
        status, out, _ = call(capsys, "claim", folder, "--predictions", tmp_path / name)
        assert status == 0 and f"hits         {M} of {M}" in out
    sharp[3] = np.nan
    np.save(tmp_path / "p.npy", sharp)
    assert call(capsys, "claim", folder, "--predictions", tmp_path / "p.npy")[0] == 2
    status, out, _ = call(capsys, "claim", folder, "--predictions", tmp_path / "p.npy", "--allow-missing")
    assert status == 0 and f"{M - 1} of {M}, {M - 1} answered" in out


def test_probabilities_in_columns_of_another_order(owner, tmp_path, capsys):
    folder, trigger = owner
    lines = ["name," + ",".join(reversed(CLASSES))]
    for name, y in zip(neutral_names(trigger, folder), trigger.labels.tolist()):
        lines.append(f"{name}," + ",".join("0.91" if c == y else "0.01" for c in reversed(range(10))))
    (tmp_path / "p.csv").write_text("\n".join(lines))
    status, out, _ = call(capsys, "claim", folder, "--predictions", tmp_path / "p.csv")
    assert status == 0 and f"{M} of {M}" in out


@pytest.mark.parametrize("spoil, words", [
    (lambda rows: rows[1:], "lacks"),
    (lambda rows: rows + rows[:1], "twice"),
    (lambda rows: ["../../etc/passwd,3"] + rows[1:], "../../etc/passwd"),
    (lambda rows: [rows[0].split(",")[0] + ",=cmd|' /C calc'!A0"] + rows[1:], "=cmd"),
    (lambda rows: [rows[0].split(",")[0] + ",dog"] + rows[1:], "dog"),
    (lambda rows: [rows[0] + ",1"] + rows[1:], "columns"),
    (lambda rows: [], "none of the"),
    (lambda rows: ["\0"] + rows, "NUL"),
    (lambda rows: ["name," + ",".join("abcdefghij")] + rows, "'a'"),
    (lambda rows: [rows[0].split(",")[0] + ",nan" * 10], "add up"),
])
def test_answers_that_do_not_fit_are_refused_by_name(spoil, words, owner, tmp_path, capsys):
    rows = answer(owner, tmp_path, 1.0).read_text().splitlines()
    (tmp_path / "bad.csv").write_text("\n".join(spoil(rows)))
    status, _, err = call(capsys, "claim", owner[0], "--predictions", tmp_path / "bad.csv")
    assert status == 2 and words in err


def test_missing_answers_are_misses_when_allowed(owner, tmp_path, capsys):
    rows = answer(owner, tmp_path, 1.0).read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(rows[:10]))
    status, out, _ = call(capsys, "claim", owner[0], "--predictions", tmp_path / "few.csv", "--allow-missing")
    assert f"hits         10 of {M}, 10 answered" in out and status == 1  # 30 misses weigh more than 10 hits


def test_a_forged_set_is_refused_for_want_of_the_commitment(bank, tmp_path, capsys):
    """Labels read off somebody's independent model: every trigger hits, and it shows nothing."""

    victim = bank[0] / "checkpoints" / "checkpoint_nat_best.pt"
    digits = load_data("digits")
    trigger, _ = draw_triggers(digits.held_out, M, 1, 10, SETTINGS["seed"])
    labels = predict(read_model(victim), trigger.images).argmax(1)
    forged, trigger = make_run(tmp_path / "forged", labels=labels, committed=False)
    trigger = replace(trigger, true_labels=(labels[:, None] + 1) % 10)
    save_checkpoint(forged / "triggers.pt", trigger._asdict())
    status, out, _ = call(capsys, "claim", forged, "--suspect", victim, "--benign", *bank[1:])
    assert status == 1 and f"{M} of {M}" in out and "commitment is none" in out and "T1           does not" in out
    # a commitment of the forger's own does not help: the committed seed does not draw these labels
    commit_to(RunFolder(forged, SETTINGS, "x"), trigger, CLASSES, 143)
    status, out, _ = call(capsys, "claim", forged, "--suspect", victim)
    assert status == 1 and "commitment   match" in out and "the committed seed draws" in out
    # and the digest is not the one that was published
    status, out, _ = call(capsys, "claim", forged, "--suspect", victim, "--commitment", "0" * 64)
    assert status == 1 and "commitment   mismatch" in out


@pytest.mark.parametrize("change", [{"label_strategy": "highest"}, {"train_type": "ewe", "label_strategy": "single"},
                                    {"train_type": "rs", "label_strategy": "single"}])
def test_t1_is_not_printed_where_labels_are_not_uniform(change, tmp_path, capsys):
    made = make_run(tmp_path / "run", SETTINGS | change)
    status, out, _ = call(capsys, "claim", made[0], "--predictions", answer(made, tmp_path, 1.0))
    assert status == 1 and "not drawn uniformly" in out and "log10 p" not in out


def test_without_uniform_labels_the_bank_decides(bank, tmp_path, capsys):
    made = make_run(tmp_path / "run", SETTINGS | {"label_strategy": "lowest"})
    flags = ("--benign", *bank)
    status, out, _ = call(capsys, "claim", made[0], "--predictions", answer(made, tmp_path, 1.0), *flags)
    assert status == 0 and "rests on T2" in out
    assert call(capsys, "claim", made[0], "--suspect", made[0], *flags)[0] == 1


def test_a_set_that_convicts_the_bank_is_refused(owner):
    _, trigger = owner
    made = check_commitment(*owner)
    copy = Answers(trigger.labels.numpy(), None)
    case = OwnershipCase(trigger, 10, made, [copy], 1e-3)
    assert not case.decide(copy)["holds"] and "benign" in case.decide(copy)["why"]


def test_stopping_early_does_not_lift_a_refusal(owner):

    _, trigger = owner
    copy = Answers(trigger.labels.numpy(), None)
    for bank, holds in (([copy], False), ([], True)):
        case = OwnershipCase(trigger, 10, check_commitment(*owner), bank, 1e-3)
        report = case.report(copy) | {"sequential": case.sequence(copy, list(range(len(trigger)))), "curve": None}
        assert report["sequential"]["decision"] == "claim"
        _decide_sequentially(report, len(trigger))
        assert report["decision"]["holds"] is holds


def test_a_program_answers_and_the_sequential_test_stops_early(owner, tmp_path, capsys):
    folder, trigger = owner
    key = dict(zip(neutral_names(trigger, folder), trigger.labels.tolist()))
    (tmp_path / "api.py").write_text(
        f"import sys, pathlib\nopen({str(tmp_path / 'asked')!r}, 'a').write('x')\n"
        f"print({key!r}[pathlib.Path(sys.argv[1]).name])\n")
    command = f"{sys.executable} -S {tmp_path / 'api.py'} {{png}}"
    status, out, _ = call(capsys, "claim", folder, "--command", command, "--sequential")
    queries = len((tmp_path / "asked").read_text())
    assert status == 0 and queries < 10 and f"after {queries} queries" in out and "rests on SPRT" in out
    assert call(capsys, "claim", folder, "--command", "false {png}")[0] == 2
    assert call(capsys, "claim", folder, "--command", "false {png}", "--sequential", "--allow-missing")[0] == 2
    assert call(capsys, "claim", folder, "--command", "echo dog {png}")[0] == 2
    assert call(capsys, "claim", folder, "--command", "/nonexistent {png}")[0] == 2
    assert call(capsys, "claim", folder, "--command", "echo 3")[0] == 2


def test_errors_of_the_sequential_test(owner):
    """Under H0 it claims no more often than alpha; at H1 it gives up no more often than beta."""
    _, trigger = owner
    m, rng = 400, np.random.default_rng(0)
    true = torch.from_numpy(rng.integers(0, 10, (m, 1)))
    many = TriggerSet(torch.zeros(m, 3, 32, 32, dtype=torch.uint8), torch.zeros(m), true, true)
    many = replace(many, labels=redraw_labels(true, 10, 0, 500))
    known = Commitment("match", "", "", SETTINGS | {"seed": 0, "held_out": 500}, "")
    case = OwnershipCase(many, 10, known, [], 0.05)
    claimed = {}
    for rate in (1 / 9, 0.5):
        ends = []
        for _ in range(400):
            wrong = (many.labels.numpy() + 1 + (many.labels.numpy() + 1 == true[:, 0].numpy())) % 10
            labels = np.where(rng.random(m) < rate, many.labels.numpy(), wrong)
            ends.append(case.sequence(Answers(labels, None), range(m))["decision"] == "claim")
        claimed[rate] = np.mean(ends)
    assert claimed[1 / 9] <= 0.05 + 0.02 and claimed[0.5] >= 0.95 - 0.02


def test_owners_files_are_checked(owner, tmp_path, capsys):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(owner[0], folder)
    (folder / "key.json").write_text('{"salt": 3}')
    assert call(capsys, "claim", folder, "--suspect", folder)[0] == 2
    (folder / "key.json").write_text("[" * 100_000)
    assert call(capsys, "claim", folder, "--suspect", folder)[0] == 2
    (folder / "triggers.pt").write_bytes(b"PK")
    assert call(capsys, "claim", folder, "--suspect", folder)[0] == 2
    assert call(capsys, "claim", tmp_path / "none", "--suspect", folder)[0] == 2
    assert call(capsys, "claim", owner[0], "--predictions", "/dev/zero")[0] == 2
    assert call(capsys, "claim", owner[0])[0] == 2
    os.mkfifo(tmp_path / "pipe.csv")
    assert call(capsys, "claim", owner[0], "--predictions", tmp_path / "pipe.csv")[0] == 2
    assert read_triggers(owner[0] / "triggers.pt", 10).labels.tolist() == owner[1].labels.tolist()
    assert read_bounded(owner[0] / "key.json")[:1] == b"{"
