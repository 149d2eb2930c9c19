"""Claims of ownership through `utils.verify`: what the owner, and what a stranger, may believe."""

import csv
import json
import os
import random
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from answering_server import answering, label_of
from commands import verify
from owner_runs import BEACON, CLASSES, SETTINGS, M, answer, make_run, names_of, record_of
from scipy.optimize import linear_sum_assignment

from utils.answers.answers import Answers
from utils.ownership.claim import find_doubts
from utils.ownership.commitment import read_owner
from utils.ownership.pvalues import label_randomisation
from utils.ownership.verdict import OwnershipCase
from utils.runs.checkpoints import load_checkpoint, read_model, save_checkpoint
from utils.training.metrics import predict
from utils.watermark.prepared import labels_from_beacon

pytestmark = pytest.mark.usefixtures("quick")


def evidence(folder):
    """The flags of a stranger who read the beacon and the published digest."""
    return "--beacon", BEACON, "--image-commitment", json.loads((folder / "commitment.json").read_text())["sha256"]


# ---- the owner for himself ----


def test_a_copy_is_claimed_and_an_independent_model_is_not(owner, bank, tmp_path, capsys):
    folder, triggers = owner
    stolen = answer(owner, tmp_path, 0.6)
    status, out, _ = verify(capsys, "claim", folder, "--predictions", stolen, "--trust-owner", "--benign", *bank,
                            "--json", tmp_path / "c.json")
    report = json.loads((tmp_path / "c.json").read_text())
    assert status == 0 and "The claim holds" in out and report["decision"]["rests_on"] == "T1"
    assert report["sequential"]["decision"] == "claim" and report["sequential"]["queries"] < M
    assert all(report["tests"][t]["log10_p"] is not None for t in ("T1", "T2", "T3", "T4"))
    assert report["curve"]["sufficed_half"] <= report["curve"]["sufficed_95"] <= M
    trust = ("claim", folder, "--trust-owner")
    assert verify(capsys, *trust, "--predictions", answer(owner, tmp_path, 0.0))[0] == 1
    assert verify(capsys, *trust, "--suspect", bank[0])[0] == 1
    status, _, err = verify(capsys, *trust, "--suspect", bank[0], "--benign", bank[0])
    assert status == 2 and "the suspect itself" in err
    assert verify(capsys, *trust, "--predictions", stolen, "--benign", folder)[0] == 2  # not independent


@pytest.mark.parametrize("change", [{"label_strategy": "highest"}, {"train_type": "ewe", "label_strategy": "single"}])
def test_without_uniform_labels_the_decision_rests_on_benign_models(change, bank, tmp_path, capsys):
    made = make_run(tmp_path / "run", SETTINGS | change)
    answers = ("--predictions", answer(made, tmp_path, 1.0))
    status, out, _ = verify(capsys, "claim", made[0], *answers, "--trust-owner", "--benign", *bank)
    assert status == 0 and "rests on T2" in out and "T1           does not apply" in out
    assert verify(capsys, "claim", made[0], "--suspect", made[0], "--trust-owner", "--benign", *bank)[0] == 1
    status, out, _ = verify(capsys, "claim", made[0], *answers, "--trust-owner")
    assert status == 1 and "no test can decide" in out
    assert verify(capsys, "claim", made[0], *answers, "--benign", *bank)[0] == 1  # T2 persuades no stranger


def test_one_benign_model_counts_once_under_whatever_name(bank, tmp_path, capsys):
    made = make_run(tmp_path / "run", SETTINGS | {"label_strategy": "highest"})
    copies = [shutil.copytree(bank[0], tmp_path / f"copy{i}") for i in range(4)]
    path = copies[3] / "checkpoints" / "checkpoint_nat_best.pt"
    save_checkpoint(path, load_checkpoint(path) | {"epoch": 7})  # another file of the same weights
    claim = ("claim", made[0], "--predictions", answer(made, tmp_path, 1.0), "--trust-owner", "--benign")
    for doubled in ([bank[0]] * 5, [bank[0], *copies]):
        status, out, _ = verify(capsys, *claim, *doubled)
        assert status == 1 and "4 of the --benign models are another one again" in out
        assert "--benign names 1" in out
    assert verify(capsys, *claim, *bank)[0] == 0


def test_a_program_answers_and_the_sequential_test_stops_early(owner, tmp_path, capsys):
    folder, triggers = owner
    key = dict(zip(names_of(folder), triggers.labels.tolist()))
    (tmp_path / "api.py").write_text(
        f"import sys, pathlib\nopen({str(tmp_path / 'asked')!r}, 'a').write('x')\n"
        f"print({key!r}[pathlib.Path(sys.argv[1]).name])\n")
    command = ("--command", f"{sys.executable} -S {tmp_path / 'api.py'} {{png}}", "--sequential", "--trust-owner")
    status, _, err = verify(capsys, "claim", folder, *command, "--test", "T1p")
    assert status == 2 and "leave out --test T1p" in err and not (tmp_path / "asked").exists()
    status, out, _ = verify(capsys, "claim", folder, *command)
    queries = len((tmp_path / "asked").read_text())
    assert status == 0 and queries < 10 and f"after {queries} queries" in out and "rests on SPRT" in out
    assert "asking a suspect again that answers at random is not corrected for" in out
    fails = ("--command", "false {png}", "--sequential", "--allow-missing")
    assert verify(capsys, "claim", folder, "--trust-owner", *fails)[0] == 2


# ---- a stranger ----


def test_a_stranger_believes_a_beacon_that_he_read_and_a_digest_that_he_saw(committed, tmp_path, capsys):
    folder = committed[0]
    stolen = ("claim", folder, "--predictions", answer(committed, tmp_path, 0.6))
    status, out, _ = verify(capsys, *stolen, *evidence(folder))
    assert status == 0 and "for a stranger, rests on T1" in out and "drawn by the beacon 'round 7'" in out
    assert verify(capsys, "claim", folder, "--predictions", answer(committed, tmp_path, 0.0, "innocent.csv"),
                  *evidence(folder))[0] == 1
    beacon, images = evidence(folder)[:2], evidence(folder)[2:]
    for flags, words in (((), "pass --beacon"), (beacon, "pass --image-commitment"), (images, "pass --beacon"),
                         (("--beacon", "3d" * 32, *images), "is not the value of --beacon"),
                         ((*beacon, "--image-commitment", "0" * 64), "not those of the published --image-commitment")):
        status, out, _ = verify(capsys, *stolen, *flags)
        assert status == 1 and words in out
    # what the owner's own judge passes has to be right as well
    assert verify(capsys, *stolen, "--trust-owner")[0] == 0
    assert verify(capsys, *stolen, "--trust-owner", "--beacon", "3d" * 32)[0] == 1


def test_nobody_is_asked_for_a_claim_that_cannot_hold(committed, owner, tmp_path, capsys):
    """A suspect's answers cost queries, and show him the triggers: what is missing is said before."""
    (beacon, digest), asked = (evidence(committed[0])[i : i + 2] for i in (0, 2)), tmp_path / "asked"
    program = ("--command", f"sh -c 'echo >> {asked}; echo 3' {{png}}")
    with answering(lambda k, pixels: "3") as served:
        for suspect in (program, ("--url", served.url)):
            for folder, flags, words in (
                (committed[0], digest, "pass --beacon"), (committed[0], beacon, "pass --image-commitment"),
                (committed[0], (*beacon, "--image-commitment", "0" * 64), "published --image-commitment"),
                (committed[0], ("--beacon", "3d" * 32, *digest), "not the value of --beacon"),
                (owner[0], (*beacon, *digest), "--trust-owner takes his word"),
            ):
                status, out, _ = verify(capsys, "claim", folder, *suspect, *flags, "--json", tmp_path / "c.json")
                assert status == 1 and "nobody was asked" in out and words in out
                assert json.loads((tmp_path / "c.json").read_text())["decision"]["holds"] is False
        assert served.images == [] and not asked.exists()
        status, out, _ = verify(capsys, "claim", committed[0], *program, *beacon, *digest)
        assert "hits  " in out and asked.read_text().count("\n") == M


def test_hexadecimal_is_compared_whatever_its_case_and_nothing_else_is_taken_for_it(committed, tmp_path, capsys):
    stolen = ("claim", committed[0], "--predictions", answer(committed, tmp_path, 0.6))
    (name, value), (other, digest) = (evidence(committed[0])[i : i + 2] for i in (0, 2))
    assert verify(capsys, *stolen, name, f" 0x{value.upper()}", other, digest.upper() + " ")[0] == 0
    for bad in (digest[:-1], digest + "0", digest[:-1] + "\u0661", digest[:-5] + "\x1b[31m", ""):
        for flags in ((name, value, other, bad), (name, bad[:31] + "\x1b", other, digest)):
            status, _, err = verify(capsys, *stolen, *flags)
            assert status == 2 and err.strip().isprintable() and "hexadecimal" in err


def test_labels_of_a_seed_persuade_no_stranger(owner, tmp_path, capsys):
    stolen = ("claim", owner[0], "--predictions", answer(owner, tmp_path, 1.0))
    for flags in ((), ("--beacon", BEACON, "--image-commitment", "0" * 64), ("--trust-owner", "--beacon", BEACON)):
        status, out, _ = verify(capsys, *stolen, *flags)
        assert status == 1 and "nobody but the owner can say that he did not choose the labels" in out


# ---- a dishonest owner ----


def test_a_forged_trigger_set_is_refused_for_lack_of_a_commitment(bank, tmp_path, capsys):
    """A forger takes the labels from an independent model: every trigger hits, and that shows a stranger nothing."""
    victim = bank[0] / "checkpoints" / "checkpoint_nat_best.pt"
    _, triggers = make_run(tmp_path / "own")
    forged, _ = make_run(tmp_path / "forged", labels=predict(read_model(victim), triggers.images).argmax(1))
    status, out, _ = verify(capsys, "claim", forged, "--suspect", victim)
    assert status == 1 and "he did not choose the labels" in out
    assert f"{M} of {M}" in verify(capsys, "claim", forged, "--suspect", victim, "--trust-owner")[1]
    # a commitment made afterwards, with labels that its beacon does not draw, is no commitment
    made, triggers = make_run(tmp_path / "made", record=record_of(),
                              labels=predict(read_model(victim), triggers.images).argmax(1))
    capsys.readouterr()
    assert verify(capsys, "claim", made, "--suspect", victim, *evidence(made))[0] == 2


def test_classes_renamed_after_the_answers_are_refused(committed, tmp_path, capsys):
    """He searches the order of class names under which an innocent model's answers hit most, at random."""
    folder = shutil.copytree(committed[0], tmp_path / "run")
    owner, rng = read_owner(folder), random.Random(0)
    said = dict(csv.reader(open(answer(committed, tmp_path, 0.0))))
    a, t = np.array([int(said[name]) for name in owner.names]), owner.triggers
    hits = lambda order: (np.array(order)[a] == t.labels.numpy()).sum()
    best = max((rng.sample(range(10), 10) for _ in range(2000)), key=hits)
    assert label_randomisation(np.array(best)[a], t.labels.numpy(), t.true_labels.numpy(), 10) < -1
    names = [CLASSES[best.index(i)] for i in range(10)]
    path = folder / "checkpoints" / "checkpoint_nat_best.pt"
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, checkpoint | {"about": checkpoint["about"] | {"classes": names}})
    status, _, err = verify(capsys, "claim", folder, "--predictions", tmp_path / "answers.csv", *evidence(folder))
    assert status == 2 and "class names and their order" in err


def test_no_number_of_classes_pixels_or_secret_can_be_chosen_after_the_beacon(committed, tmp_path):
    """One published digest leaves nothing to choose: whatever else is put into its record gives another digest."""
    owner = read_owner(committed[0])
    digest, changes = owner.record["sha256"], [{"classes": [str(i) for i in range(n)]} for n in (11, 70, 12_470)]
    changes += [{"mean": [0.9, 0.1, 0.5]}, {"secret": "00" * 32}, {"round": 9}, {"beacon_name": "another"}]
    from utils.watermark.prepared import commitment_digest

    for change in changes:
        forged = owner.record | change
        forged["sha256"] = commitment_digest(owner.triggers, forged)
        assert forged["sha256"] != digest
        doubts = find_doubts(owner._replace(record=forged), stranger=True, beacon=BEACON, image_commitment=digest)
        assert any("not those of the published" in doubt for doubt in doubts)


def test_public_values_give_nobody_images_or_labels(committed):
    """Digest, beacon, round and data are public; without the secret labels and names are others, and no seed draws the
    images (`prepare` shuffles by the operating system's randomness)."""
    owner = read_owner(committed[0])
    guess = owner.record | {"secret": "00" * 32}
    same = (labels_from_beacon(owner.triggers, guess, BEACON) == owner.triggers.labels).float().mean()
    assert same < 0.5
    published = json.loads((committed[0] / "commitment.json").read_text())
    assert set(published) == {"sha256"}


def test_two_preparations_with_the_same_flags_have_other_images(tmp_path, capsys):
    made = [load_checkpoint(tmp_path / name / "prepared.pt") for name in "ab" if verify(
        capsys, "prepare", tmp_path / name, "-dt", "digits", "-nq", 60, "--seed", 0, "--beacon-name", "x")[0] == 0]
    assert not torch.equal(made[0]["images"], made[1]["images"]) and "labels" not in made[0]
    shared = len(set(made[0]["sources"].flatten().tolist()) & set(made[1]["sources"].flatten().tolist()))
    assert shared < 55  # of 143 images


def test_asking_again_is_left_to_the_judges_own_file(committed, tmp_path, capsys):
    """Answers in the owner's run are not read; those in --keep-answers are asked once and kept."""
    folder, triggers = shutil.copytree(committed[0], tmp_path / "run"), committed[1]
    names, truth = names_of(folder), triggers.true_labels[:, 0]
    forged = "".join(json.dumps([n, int(y), None]) + "\n" for n, y in zip(names, triggers.labels))
    for name in (".half_asked_0123456789abcdef.jsonl", "answers.jsonl", "claims.jsonl"):
        (folder / name).write_text(forged)
    right = lambda k, pixels: str(int(truth[(triggers.images.numpy() == pixels).all((1, 2, 3)).argmax()]))
    with answering(right) as served:
        claim = ("claim", folder, "--url", served.url, "--rate", "1000", *evidence(folder))
        assert verify(capsys, *claim)[0] == 1 and len(served.images) == M
        for inside in (folder / "answers.jsonl", tmp_path / "link.jsonl"):
            if inside.parent == tmp_path:
                inside.symlink_to(folder / "answers.jsonl")
            status, _, err = verify(capsys, *claim, "--keep-answers", inside)
            assert status == 2 and "--keep-answers" in err and "the owner's" in err
        assert len(served.images) == M
        kept = tmp_path / "kept.jsonl"
        assert verify(capsys, *claim, "--keep-answers", kept)[0] == 1 and len(served.images) == 2 * M
        status, out, _ = verify(capsys, *claim, "--keep-answers", kept)
        assert status == 1 and len(served.images) == 2 * M and f"{M} of {M} answers are those that" in out
        assert kept.stat().st_mode & 0o777 == 0o600
        for content in (b'["other"]\n', kept.read_bytes().replace(b'", ', b'", 1'), b"{\n", b"[" * 100_000 + b"\n"):
            (tmp_path / "bad.jsonl").write_bytes(content)
            assert verify(capsys, *claim, "--keep-answers", tmp_path / "bad.jsonl")[0] == 2
        assert len(served.images) == 2 * M


def test_a_claim_goes_on_after_an_interruption(owner, tmp_path, capsys):
    folder, triggers = owner
    kept, fails = tmp_path / "kept.jsonl", [True]
    reply = lambda k, pixels: (404, "gone", {}) if k == 13 and fails else str(label_of(triggers, pixels))
    with answering(reply) as served:
        claim = ("claim", folder, "--trust-owner", "--url", served.url, "--rate", "1000", "--keep-answers", kept)
        status, _, err = verify(capsys, *claim)
        assert status == 2 and "goes on where it ended" in err and kept.read_bytes().count(b"\n") == 14
        with open(kept, "ab") as cut:
            cut.write(b'["0000')  # the machine went down while it wrote
        fails.clear()
        status, out, _ = verify(capsys, *claim)
    assert status == 0 and len(served.images) == 14 + M - 13 and f"13 of {M} answers are those that were kept" in out
    assert f"hits         {M} of {M}" in out


# ---- a hostile folder ----


def test_damaged_files_of_the_owner_are_refused(owner, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(owner[0], folder)
    (folder / "triggers.pt").write_bytes(b"PK")
    assert verify(capsys, "claim", folder, "--suspect", folder)[0] == 2
    assert verify(capsys, "claim", tmp_path / "none", "--suspect", folder)[0] == 2
    assert verify(capsys, "claim", owner[0], "--trust-owner", "--predictions", "/dev/zero")[0] == 2
    assert verify(capsys, "claim", owner[0])[0] == 2
    os.mkfifo(tmp_path / "pipe.csv")
    assert verify(capsys, "claim", owner[0], "--trust-owner", "--predictions", tmp_path / "pipe.csv")[0] == 2


def test_mutations_of_a_runs_files_are_refused_or_change_nothing(committed, tmp_path, capsys):
    """200 mutations of each file: status 2 in one sentence, or the very verdict of the whole run."""
    folder, rng = shutil.copytree(committed[0], tmp_path / "run"), random.Random(0)
    claim = ("claim", folder, "--predictions", answer(committed, tmp_path, 0.6), *evidence(folder))
    whole = verify(capsys, *claim)
    assert whole[0] == 0
    names = ["key.json", "commitment.json", "triggers.pt", "run.json", "checkpoints/checkpoint_nat_best.pt"]
    refused = dict.fromkeys(names, 0)
    for name in names:
        path = folder / name
        good = path.read_bytes()
        for turn in range(200):
            content, at = bytearray(good), rng.randrange(len(good))
            match turn % 4:
                case 0:
                    content[at] ^= 1 << rng.randrange(8)
                case 1:
                    content[at : at + rng.randrange(1, 40)] = b""
                case 2:
                    content[at:at] = rng.choice([b"\0", b'"', b"[", b"9" * 30, b"\\ud800", b"\xff", b"-", b"e99"])
                case 3:
                    content = content[:at]
            path.write_bytes(content)
            found = verify(capsys, *claim)
            refused[name] += found[0] == 2
            assert found[0] == 2 or found == whole, (name, turn, found)
        path.write_bytes(good)
    assert min(refused[name] for name in names if name != "run.json") > 150


@pytest.mark.parametrize("name", ["commitment.json", "key.json", "triggers.pt", "checkpoints",
                                  "checkpoints/checkpoint_nat_best.pt", "claims.jsonl"])
def test_nothing_of_a_run_is_read_or_written_through_a_link(name, committed, tmp_path, capsys):
    folder, answers, other = tmp_path / "run", answer(committed, tmp_path, 0.6), tmp_path / "other"
    shutil.copytree(committed[0], folder)
    if (folder / name).exists():
        (folder / name).rename(other)
    (folder / name).symlink_to(other)  # which holds what the run would, or nothing
    existed = other.exists()
    for command in (("claim", folder, "--predictions", answers), ("export", folder, "--to", tmp_path / "out")):
        status, out, err = verify(capsys, *command)
        assert status == 2 and out == "" and err.count("\n") == 1
        assert f"{folder / name} is a symbolic link; in a run folder" in err and "remove it" in err
    assert other.exists() == existed and not (tmp_path / "out").exists()
    (folder / name).unlink()
    if existed:
        other.rename(folder / name)
    (tmp_path / "link").symlink_to(folder)  # the way to the folder may be a link
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert verify(capsys, "claim", tmp_path / "link", "--trust-owner", "--predictions", answers)[0] == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}  # a claim writes nothing


def test_memory_is_bounded_whatever_a_suspect_gives(owner, tmp_path, capsys):
    with open(tmp_path / "big.onnx", "wb") as sparse, open(tmp_path / "big.pt", "wb") as other:
        sparse.truncate(6 << 30)
        other.truncate(6 << 30)
    (tmp_path / "lines.csv").write_bytes(b"\n" * (20 << 20))
    (tmp_path / "cells.csv").write_bytes(b"ab," * (20 << 20))
    tracemalloc.start()
    for kind, name in (("--suspect", "big.onnx"), ("--suspect", "big.pt"), ("--predictions", "lines.csv"),
                       ("--predictions", "cells.csv")):
        status, _, err = verify(capsys, "claim", owner[0], "--trust-owner", kind, tmp_path / name)
        assert status == 2 and name in err
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20


def test_an_error_that_nobody_foresaw_is_status_2(owner, tmp_path, capsys, monkeypatch):
    def fails(*arguments):
        raise KeyError("\x1b[31m\ud800")

    monkeypatch.setattr("utils.ownership.claim.find_doubts", lambda *arguments, **more: fails())
    status, _, err = verify(capsys, "claim", owner[0], "--predictions", answer(owner, tmp_path, 1.0))
    assert status == 2 and "unexpected KeyError" in err and err.strip().isprintable()


# ---- suspects with other classes or pixels ----


def test_a_suspect_that_names_its_classes_is_compared_by_name(owner, tmp_path, capsys):
    path = owner[0] / "checkpoints" / "checkpoint_nat_best.pt"
    checkpoint = load_checkpoint(path)
    weights = checkpoint["model"]["state_dict"]
    for name in ("1.linear.weight", "1.linear.bias"):
        weights[name] = weights[name].flip(0)
    turned = checkpoint | {"about": checkpoint["about"] | {"classes": CLASSES[::-1]}}
    save_checkpoint(tmp_path / "turned.pt", turned)
    save_checkpoint(tmp_path / "other.pt", checkpoint | {"about": {"classes": [f"c{i}" for i in range(10)]}})

    def figures(suspect):
        status, _, err = verify(capsys, "claim", owner[0], "--trust-owner", "--suspect", suspect, "--json",
                                tmp_path / "c.json")
        return err if status == 2 else json.loads((tmp_path / "c.json").read_text())["tests"]

    assert figures(tmp_path / "turned.pt") == figures(owner[0])
    assert "not the 10 of the triggers; 'c0' is none of them" in figures(tmp_path / "other.pt")


def test_an_order_of_classes_that_is_chosen_after_the_answers_claims_anybody(committed, tmp_path, capsys):
    """So `claim` says that --columns has to come from the suspect: no test can tell who chose the order."""
    rng, claimed = np.random.default_rng(0), 0
    for _ in range(100):
        true, table, order = rng.integers(0, 10, 100), np.zeros((10, 10)), np.zeros(10, int)
        assigned = (true + rng.integers(1, 10, 100)) % 10
        np.add.at(table, (true, assigned), 1)  # an innocent suspect gives the true labels
        rows, columns = linear_sum_assignment(-table)
        order[rows] = columns
        claimed += label_randomisation(order[true], assigned, true[:, None], 10) <= -3
    assert claimed > 90
    (tmp_path / "columns").write_text("\n".join(CLASSES))
    claim = ("claim", committed[0], "--predictions", answer(committed, tmp_path, 0.0), *evidence(committed[0]))
    for flags in ((), ("--columns", tmp_path / "columns")):
        assert ("what the suspect says of itself" in verify(capsys, *claim, *flags)[1]) == bool(flags)


def test_a_hint_says_when_a_suspect_seems_to_be_asked_wrongly(owner):
    made = read_owner(owner[0])
    case, true = OwnershipCase(made, [], 1e-3), made.triggers.true_labels[:, 0].numpy()
    hint = lambda labels: case.hint(Answers(labels, None))
    assert hint(true) is None and hint(made.triggers.labels.numpy()) is None
    assert f"the same answer to {M} of {M}" in hint(np.full(M, 3)) and "--mean" in hint(np.full(M, 3))
    pairs = zip(true, made.triggers.labels.tolist())
    wrong = np.array([next(c for c in range(10) if c not in pair) for pair in pairs])
    assert "a true or assigned label to 0" in hint(wrong)


def test_numbers_are_refused_where_classes_have_other_numbers_for_names(tmp_path, capsys):
    """Folders 1, 10, 2, ...: the number 3 of an .npy file may be the fourth class or the class of that name."""
    folder, triggers = make_run(tmp_path / "run")
    path, names = folder / "checkpoints" / "checkpoint_nat_best.pt", sorted(str(i) for i in range(1, 11))
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, checkpoint | {"about": checkpoint["about"] | {"classes": names}})
    order = np.argsort(names_of(folder))
    labels = [names[y] for y in triggers.labels[order]]
    np.save(tmp_path / "y.npy", np.array([int(label) - 1 for label in labels]))
    (tmp_path / "y.csv").write_text("".join(f"{n},{y}\n" for n, y in zip(sorted(names_of(folder)), labels)))
    (tmp_path / "columns").write_text("\n".join(str(i) for i in range(1, 11)))
    claim = ("claim", folder, "--trust-owner", "--predictions")
    assert verify(capsys, *claim, tmp_path / "y.csv")[0] == 0
    status, _, err = verify(capsys, *claim, tmp_path / "y.npy")
    assert status == 2 and "ambiguous" in err and "--columns FILE" in err
    status, out, _ = verify(capsys, *claim, tmp_path / "y.npy", "--columns", tmp_path / "columns")
    assert status == 0 and f"hits         {M} of {M}" in out
    (tmp_path / "columns").write_text("1\n2\n")
    assert verify(capsys, *claim, tmp_path / "y.npy", "--columns", tmp_path / "columns")[0] == 2
