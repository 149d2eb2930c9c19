"""Claims of ownership through `utils.verify`: what the owner, and what a stranger, may believe."""

import fcntl
import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from answering_server import answering, label_of
from commands import refused, verify
from owner_runs import BEACON, CLASSES, SETTINGS, M, answer, make_run, names_of
from scipy.optimize import linear_sum_assignment

from utils.ownership.commitment import read_owner
from utils.ownership.pvalues import label_randomisation
from utils.runs.checkpoints import load_checkpoint, save_checkpoint
from utils.system.files import check_output_file

pytestmark = pytest.mark.usefixtures("quick")


def evidence(folder):
    """The flags of a stranger who read the beacon and the published digest."""
    return "--beacon", BEACON, "--image-commitment", json.loads((folder / "commitment.json").read_text())["sha256"]


# ---- the owner for himself ----


def test_a_copy_is_claimed_and_an_independent_model_is_not(owner, bank, tmp_path):
    folder = owner[0]
    stolen = answer(owner, tmp_path, 0.6)
    status, out, _ = verify("claim", folder, "--predictions", stolen, "--trust-owner", "--benign", *bank,
                            "--json", tmp_path / "c.json")
    report = json.loads((tmp_path / "c.json").read_text())
    assert status == 0 and "The claim holds" in out and report["decision"]["rests_on"] == "T1"
    assert report["sequential"]["decision"] == "claim" and report["sequential"]["queries"] < M
    assert all(report["tests"][t]["log10_p"] is not None for t in ("T1", "T2", "T3", "T4"))
    trust = ("claim", folder, "--trust-owner")
    assert verify(*trust, "--predictions", answer(owner, tmp_path, 0.0))[0] == 1
    assert verify(*trust, "--suspect", bank[0])[0] == 1
    assert "the suspect itself" in refused("utils.verify", *trust, "--suspect", bank[0], "--benign", bank[0])
    refused("utils.verify", *trust, "--predictions", stolen, "--benign", folder)  # not independent


@pytest.mark.parametrize("change", [{"label_strategy": "highest"}, {"train_type": "ewe", "label_strategy": "single"}])
def test_without_uniform_labels_the_decision_rests_on_benign_models(change, bank, tmp_path):
    made = make_run(tmp_path / "run", SETTINGS | change)
    answers = ("--predictions", answer(made, tmp_path, 1.0))
    status, out, _ = verify("claim", made[0], *answers, "--trust-owner", "--benign", *bank)
    assert status == 0 and "rests on T2" in out and "T1           does not apply" in out
    assert verify("claim", made[0], "--suspect", made[0], "--trust-owner", "--benign", *bank)[0] == 1
    status, out, _ = verify("claim", made[0], *answers, "--trust-owner")
    assert status == 1 and "no test can decide" in out
    assert verify("claim", made[0], *answers, "--benign", *bank)[0] == 1  # T2 persuades no stranger
    # one benign model counts once under whatever name, as in another file of the same weights
    twin = shutil.copytree(bank[0], tmp_path / "twin")
    path = twin / "checkpoints" / "checkpoint_nat_best.pt"
    save_checkpoint(path, load_checkpoint(path) | {"epoch": 7})
    doubled = bank[0], bank[0], twin, bank[0], twin
    status, out, _ = verify("claim", made[0], *answers, "--trust-owner", "--benign", *doubled)
    assert status == 1 and "4 of the --benign models are another one again" in out and "--benign names 1" in out


# ---- a stranger ----


def test_a_stranger_believes_a_beacon_that_he_read_and_a_digest_that_he_saw(committed, tmp_path):
    folder, (_, value, _, digest) = committed[0], evidence(committed[0])
    stolen = ("claim", folder, "--predictions", answer(committed, tmp_path, 0.6))
    status, out, _ = verify(*stolen, *evidence(folder))
    assert status == 0 and "for a stranger, rests on T1" in out and "drawn by the beacon 'round 7'" in out
    assert "those that you exported from RUN yourself" in out  # the owner's folder may show other pixels
    innocent = answer(committed, tmp_path, 0.0, "innocent.csv")
    assert verify("claim", folder, "--predictions", innocent, *evidence(folder))[0] == 1
    # what the owner's own judge passes has to be right as well, and hexadecimal is read whatever its case
    assert verify(*stolen, "--trust-owner")[0] == 0
    assert verify(*stolen, "--trust-owner", "--beacon", "3d" * 32)[0] == 1
    loud = "--beacon", f" 0x{value.upper()}", "--image-commitment", f"{digest.upper()} "
    assert verify(*stolen, *loud)[0] == 0
    for bad in (digest[:-1], digest + "0", digest[:-1] + "\u0661", digest[:-5] + "\x1b[31m", ""):
        for flags in (("--image-commitment", bad), ("--beacon", bad[:31] + "\x1b")):
            assert "hexadecimal" in refused("utils.verify", *stolen, *flags)


def test_nobody_is_asked_for_a_claim_that_cannot_hold(committed, owner, tmp_path):
    """A suspect's answers cost queries, and show him the triggers: what is missing is said before."""
    (beacon, digest), asked = (evidence(committed[0])[i : i + 2] for i in (0, 2)), tmp_path / "asked"
    program = ("--command", f"sh -c 'echo >> {asked}; echo 3' {{png}}")
    with answering(lambda k, pixels: "3") as served:
        for folder, flags, words in (
            (committed[0], (), "pass --beacon"), (committed[0], beacon, "pass --image-commitment"),
            (committed[0], (*beacon, "--image-commitment", "0" * 64), "not those of the published --image-commitment"),
            (committed[0], ("--beacon", "3d" * 32, *digest), "is not the value of --beacon"),
            (owner[0], (*beacon, *digest), "nobody but the owner can say that he did not choose the labels"),
            (owner[0], (*beacon, "--trust-owner"), "nobody but the owner can say"),
            (owner[0], ("--trust-owner", "--alpha", "1e-99"), f"{M} triggers of 10 classes give p = 10^"),
            (owner[0], (*digest, "--trust-owner"), "nobody but the owner can say"),
            (committed[0], ("--image-commitment", "0" * 64, "--trust-owner"), "not those of the published"),
        ):
            for suspect in (program, ("--url", served.url)):
                status, out, _ = verify("claim", folder, *suspect, *flags, "--json", tmp_path / "c.json")
                assert status == 1 and "nobody was asked" in out and words in out
                assert json.loads((tmp_path / "c.json").read_text())["decision"]["holds"] is False
        assert served.images == [] and not asked.exists()
    status, out, _ = verify("claim", committed[0], *program, *beacon, *digest)
    assert "hits  " in out and asked.read_text().count("\n") == M
    assert "p holds if the beacon's name means one value" in out  # "round 7" may mean several
    assert "beacon's name" not in verify("claim", committed[0], *program, "--trust-owner")[1]


# ---- a dishonest owner ----


def test_public_values_give_nobody_images_or_labels(committed, tmp_path):
    """Digest, beacon, round and data are public; labels are keyed by the secret, and no seed draws the images."""
    assert set(json.loads((committed[0] / "commitment.json").read_text())) == {"sha256"}
    made = [load_checkpoint(tmp_path / name / "prepared.pt") for name in "ab" if verify(
        "prepare", tmp_path / name, "-dt", "digits", "-nq", 60, "--beacon-name", "x")[0] == 0]
    assert not torch.equal(made[0]["images"], made[1]["images"]) and "labels" not in made[0]
    shared = len(set(made[0]["sources"].flatten().tolist()) & set(made[1]["sources"].flatten().tolist()))
    assert shared < 55  # of 143 images


def test_asking_again_is_left_to_the_judges_own_file(committed, tmp_path):
    """Answers in the owner's run are not read; those in --keep-answers are asked once and kept."""
    folder, triggers = shutil.copytree(committed[0], tmp_path / "run"), committed[1]
    names, truth = names_of(folder), triggers.true_labels[:, 0]
    forged = "".join(json.dumps([n, int(y), None]) + "\n" for n, y in zip(names, triggers.labels))
    for name in (".half_asked_0123456789abcdef.jsonl", "answers.jsonl", "claims.jsonl"):
        (folder / name).write_text(forged)
    right = lambda k, pixels: str(int(truth[(triggers.images.numpy() == pixels).all((1, 2, 3)).argmax()]))
    with answering(right) as served:
        claim = ("claim", folder, "--url", served.url, "--rate", "1000", *evidence(folder))
        assert verify(*claim)[0] == 1 and len(served.images) == M
        (tmp_path / "link.jsonl").symlink_to(folder / "answers.jsonl")
        for inside in (folder / "answers.jsonl", tmp_path / "link.jsonl"):
            assert "--keep-answers" in (err := refused("utils.verify", *claim, "--keep-answers", inside))
            assert f"is {folder} or lies in it" in err
        assert len(served.images) == M
        kept = tmp_path / "kept.jsonl"
        assert verify(*claim, "--keep-answers", kept)[0] == 1 and len(served.images) == 2 * M
        status, out, _ = verify(*claim, "--keep-answers", kept)
        assert status == 1 and len(served.images) == 2 * M and f"{M} of {M} answers are those that" in out
        assert kept.stat().st_mode & 0o777 == 0o600
        for content in (b'["other"]\n', kept.read_bytes().replace(b'", ', b'", 1'), b"[" * 100_000 + b"\n"):
            (tmp_path / "bad.jsonl").write_bytes(content)
            refused("utils.verify", *claim, "--keep-answers", tmp_path / "bad.jsonl")
        assert len(served.images) == 2 * M


def test_a_claim_goes_on_after_an_interruption(owner, tmp_path):
    folder, triggers = owner
    kept, fails = tmp_path / "kept.jsonl", [True]
    reply = lambda k, pixels: (410, "gone", {}) if k == 13 and fails else str(label_of(triggers, pixels))
    with answering(reply) as served:
        claim = ("claim", folder, "--trust-owner", "--url", served.url, "--rate", "1000", "--keep-answers", kept)
        assert "goes on where it ended" in refused("utils.verify", *claim)
        assert kept.read_bytes().count(b"\n") == 14
        with open(kept, "ab") as cut:
            cut.write(b'["0000')  # the machine went down while it wrote
        with open(kept, "ab") as other:
            before = kept.read_bytes()
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert "kept.jsonl is in use by another claim" in refused("utils.verify", *claim)
        assert len(served.images) == 14 and kept.read_bytes() == before
        fails.clear()
        status, out, _ = verify(*claim)
    assert status == 0 and len(served.images) == 14 + M - 13 and f"13 of {M} answers are those that were kept" in out
    assert f"hits         {M} of {M}" in out
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join([*lines, *(line.replace(b'"label": ', b'"label": 1, "was": ') for line in lines[1:])]))
    assert f"hits         {M} of {M}" in verify(*claim)[1]  # of two answers the first counts


@pytest.mark.parametrize("there", [b"", b'["http:'])
def test_a_file_that_was_made_for_the_answers_is_begun(there, owner, tmp_path):
    """By mktemp, or by a machine that went down."""
    with answering(lambda k, pixels: str(label_of(owner[1], pixels))) as served:
        (kept := tmp_path / "kept").write_bytes(there.replace(b"http:", served.url[:9].encode()))
        kept.chmod(0o644)
        for _ in range(2):
            assert verify("claim", owner[0], "--trust-owner", "--url", served.url, "--keep-answers", kept)[0] == 0
        assert len(served.images) == M and kept.stat().st_mode & 0o777 == 0o600


# ---- a hostile folder ----


def test_what_is_no_run_and_no_file_of_answers_is_refused(owner, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for flags in ((tmp_path / "none", "--suspect", owner[0]), (owner[0],), (owner[0], "--predictions", "/dev/zero"),
                  (owner[0], "--predictions", tmp_path / "pipe.csv")):
        refused("utils.verify", "claim", *flags, "--trust-owner")


def test_the_judge_needs_three_files_of_a_run_and_runs_no_code_of_its_network(committed, tmp_path):
    folder = shutil.copytree(committed[0], tmp_path / "run")
    read = lambda: [*(owner := read_owner(folder))[1:], *(part.tolist() for part in vars(owner.triggers).values())]
    whole = read()
    for path in folder.iterdir():
        if path.name not in ("key.json", "commitment.json", "triggers.pt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert read() == whole


@pytest.mark.parametrize("name", ["commitment.json", "key.json", "triggers.pt", "checkpoints",
                                  "checkpoints/checkpoint_nat_best.pt", "claims.jsonl"])
def test_nothing_of_a_run_is_read_or_written_through_a_link(name, committed, tmp_path):
    folder, answers, other = tmp_path / "run", answer(committed, tmp_path, 0.6), tmp_path / "other"
    shutil.copytree(committed[0], folder)
    if existed := (folder / name).exists():
        (folder / name).rename(other)
    (folder / name).symlink_to(other)  # which holds what the run would, or nothing
    for command in (("claim", folder, "--predictions", answers), ("export", folder, "--to", tmp_path / "out")):
        said = refused("utils.verify", *command)
        assert f"{folder / name} is a symbolic link; in a run folder" in said and "remove it" in said
    assert other.exists() == existed and not (tmp_path / "out").exists()
    (folder / name).unlink()
    if existed:
        other.rename(folder / name)
    (tmp_path / "link").symlink_to(folder)  # the way to the folder may be a link
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert verify("claim", tmp_path / "link", "--trust-owner", "--predictions", answers)[0] == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}  # a claim writes nothing


def test_memory_is_bounded_whatever_a_suspect_gives(owner, tmp_path):
    for name in ("big.onnx", "big.pt"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 6 << 30)
    (tmp_path / "cells.csv").write_bytes(b"ab," * (20 << 20))
    tracemalloc.start()
    for kind, name in (("--suspect", "big.onnx"), ("--suspect", "big.pt"), ("--predictions", "cells.csv")):
        assert name in refused("utils.verify", "claim", owner[0], "--trust-owner", kind, tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 << 20


@pytest.mark.parametrize("error, words", [
    (KeyError("\x1b[31m\ud800"), "unexpected KeyError"), (torch.OutOfMemoryError("out of memory"), "lower --batch")])
def test_an_error_that_nobody_foresaw_is_status_2(error, words, owner, tmp_path, monkeypatch):
    def fails(*arguments, **more):
        raise error

    monkeypatch.setattr("utils.ownership.claim.find_doubts", fails)
    answers = answer(owner, tmp_path, 1.0)
    assert words in refused("utils.verify", "claim", owner[0], "--predictions", answers)


def test_no_output_replaces_what_another_flag_names_or_what_is_no_output(owner, tmp_path, monkeypatch):
    """Else --json RUN/key.json would destroy the owner's secret."""
    folder, answers = shutil.copytree(owner[0], tmp_path / "run"), answer(owner, tmp_path, 0.6)
    checkpoint, weights, kept = folder / "checkpoints/checkpoint_nat_best.pt", tmp_path / "w.pt", tmp_path / "k.json"
    shutil.copy(checkpoint, weights)
    (tmp_path / "link.json").symlink_to(tmp_path / "c.json")
    (tmp_path / "a.json").write_bytes(answers.read_bytes())
    kept_by_run, secret = "is a file in which a run keeps what it is", tmp_path / "secret" / "key.json"  # of prepare
    secret.parent.mkdir()
    secret.write_text("{\n}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ask = ("--command", f"touch {tmp_path / 'asked'} {{png}}", "--keep-answers")
    for command, words in (
        (("claim", folder, "--predictions", answers, "--json", folder / "key.json"), kept_by_run),
        (("claim", folder, "--predictions", answers, "--json", secret), kept_by_run),
        (("claim", folder, "--predictions", tmp_path / "a.json", "--json", tmp_path / "a.json"), "or lies in it"),
        (("claim", folder, *ask, kept, "--json", kept), "k.json or lies in it"),
        (("claim", folder, *ask, tmp_path / "link.json"), "is a symbolic link"),
        (("claim", folder, "--predictions", answers, "--json", tmp_path / "link.json"), "is a symbolic link"),
        (("claim", folder, "--predictions", answers, "--json", weights), "does not end in .json"),
        (("certify", folder, "--json", folder / "summary.json"), kept_by_run),
        (("di", folder, "--suspect", weights, "--plot", weights), "w.pt or lies in it"),
        (("di", folder, "--suspect", weights, "--plot", tmp_path / "a.json"), "does not end in .png"),
    ):
        assert words in refused("utils.verify", *command)
    for name in ("di.json", "eef.json"):  # where figures.make keeps them
        check_output_file(folder / name, "--json", ".json", [folder])
    (tmp_path / "empty").touch()
    for _ in range(2):  # a file of mktemp, and what was written there before
        assert verify("claim", folder, "--trust-owner", "--predictions", answers, "--json", tmp_path / "empty")[0] == 0
    (tmp_path / "empty").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for flags in (("--predictions", answers, "--json", tmp_path / "new.json"), (*ask, kept)):
        assert "you may not write in the folder" in refused("utils.verify", "claim", folder, *flags)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# ---- suspects with other classes or pixels ----


def test_a_suspect_that_names_its_classes_is_compared_by_name(owner, tmp_path):
    checkpoint = load_checkpoint(owner[0] / "checkpoints" / "checkpoint_nat_best.pt")
    weights, turned, other = checkpoint["model"]["state_dict"], tmp_path / "turned.pt", tmp_path / "other.pt"
    for name in ("1.linear.weight", "1.linear.bias"):
        weights[name] = weights[name].flip(0)
    save_checkpoint(turned, checkpoint | {"about": checkpoint["about"] | {"classes": CLASSES[::-1]}})
    save_checkpoint(other, checkpoint | {"about": {"classes": [f"c{i}" for i in range(10)]}})
    claim, tests = ("claim", owner[0], "--trust-owner", "--json", tmp_path / "c.json", "--suspect"), []
    for suspect in (turned, owner[0]):
        verify(*claim, suspect)
        tests.append(json.loads((tmp_path / "c.json").read_text())["tests"])
    assert tests[0] == tests[1]
    assert "'0', a class of the triggers, is not among its 10 classes" in verify(*claim, other)[2]
    (tmp_path / "names").write_text("\n".join(CLASSES))
    assert "for the owner, rests on T1" in verify(*claim, other, "--columns", tmp_path / "names")[1]
    said = refused("utils.verify", *claim, turned, "--columns", tmp_path / "names")
    assert "turned.pt names the classes in another order than --columns: leave --columns out" in said
    (tmp_path / "names").write_text("\n".join(CLASSES[::-1]))
    torch.save(weights, tmp_path / "weights.pt")
    plain = (*claim, tmp_path / "weights.pt", "-mt", "res18", "-mt", "vgg11")
    number = {name: i for i, name in enumerate(CLASSES[::-1])}
    for more, flags in (
        ({}, ("--columns", tmp_path / "names")), ({"class_to_idx": number}, ()), ({"class_names": CLASSES[::-1]}, ()),
        ({"classes": 10, "idx_to_class": {str(i): name for name, i in number.items()}}, ()),
        ({"idx_to_class": {i: name for name, i in number.items()}, "classes": CLASSES}, ()),  # as other programs do
    ):
        torch.save({"state_dict": weights} | more, tmp_path / "weights.pt")
        (tmp_path / "c.json").unlink()
        verify(*plain, *flags)
        assert json.loads((tmp_path / "c.json").read_text())["tests"] == tests[0]
    for more in ({"classes": CLASSES[:-1]}, {"classes": [*range(10)]}, {"class_to_idx": dict.fromkeys(CLASSES, 0)}):
        torch.save({"state_dict": weights} | more, tmp_path / "weights.pt")  # none is a name for each class
        verify(*plain, "--columns", tmp_path / "names")
        assert json.loads((tmp_path / "c.json").read_text())["tests"] == tests[0]


def test_an_order_of_classes_that_is_chosen_after_the_answers_claims_anybody(committed, tmp_path):
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
        assert ("what the suspect says of itself" in verify(*claim, *flags)[1]) == bool(flags)


def test_numbers_are_refused_where_classes_have_other_numbers_for_names(tmp_path):
    """Folders 1, 10, 2, ...: the number 3 of an .npy file may be the fourth class or the class of that name."""
    folder, triggers = make_run(tmp_path / "run")
    path, names = folder / "checkpoints" / "checkpoint_nat_best.pt", sorted(str(i) for i in range(1, 11))
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, checkpoint | {"about": checkpoint["about"] | {"classes": names}})
    labels = [int(names[y]) - 1 for y in triggers.labels[np.argsort(names_of(folder))]]
    np.save(tmp_path / "y.npy", labels)
    (tmp_path / "columns").write_text("\n".join(str(i) for i in range(1, 11)))
    claim = ("claim", folder, "--trust-owner", "--predictions", tmp_path / "y.npy")
    err = refused("utils.verify", *claim)
    assert "ambiguous" in err and "--columns FILE" in err
    status, out, _ = verify(*claim, "--columns", tmp_path / "columns")
    assert status == 0 and f"hits         {M} of {M}" in out and "sequential" not in out  # which nobody asked for
    # nobody can tell whether the text "3" is the class of that name or the third
    (tmp_path / "y.csv").write_text("".join(f"{n},{y}\n" for n, y in zip(sorted(names_of(folder)), labels)))
    said = refused("utils.verify", *claim[:-1], tmp_path / "y.csv", "--columns", tmp_path / "columns")
    assert "is the name of one class and the number of another" in said and ".npy file" in said
    (tmp_path / "columns").write_text("1\n2\n")
    refused("utils.verify", *claim, "--columns", tmp_path / "columns")


def test_answers_of_a_file_are_counted_in_the_order_of_the_names_that_the_beacon_drew(committed, tmp_path):
    """An order of the owner's would let him put the triggers first that the suspect happens to hit."""
    names, labels = names_of(committed[0]), committed[1].labels
    first = sorted(names)[:5]  # ln 1000 takes five hits, ln 4.5 each
    true = committed[1].true_labels[:, 0]
    wrong = [next(c for c in range(10) if c not in pair) for pair in zip(true.tolist(), labels.tolist())]
    rows = [f"{n},{int(y) if n in first else w}\n" for n, y, w in zip(names, labels, wrong)]
    (tmp_path / "answers.csv").write_text("".join(rows))
    verify("claim", committed[0], "--trust-owner", "--predictions", tmp_path / "answers.csv", "--json", tmp_path / "c")
    found = json.loads((tmp_path / "c").read_text())["sequential"]
    assert (found["decision"], found["queries"]) == ("claim", 5)
