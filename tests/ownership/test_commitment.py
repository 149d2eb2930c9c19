"""The commitment to a trigger set, and its files."""

import json
import stat

import pytest
from owner_runs import CLASSES, SETTINGS, M, make_run, replace

from utils.ownership.commitment import check_commitment, commit_to
from utils.runs.folder import RunFolder
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")


def test_the_commitment_can_be_recomputed_by_hand(owner):
    import hashlib

    folder, triggers = owner
    key = json.loads((folder / "key.json").read_text())
    header = {"version": 1, "classes": CLASSES, "settings": key["settings"], "images": [M, 3, 32, 32], "labels": [M],
              "true_labels": [M, 1], "sources": [M, 1]}
    content = json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n" + bytes(
        triggers.images.flatten().tolist())
    for part in (triggers.labels, triggers.true_labels, triggers.sources):
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
    folder, triggers = owner
    assert check_commitment(folder, triggers).state == "match"
    changed = getattr(triggers, part).clone()
    changed.view(-1)[7] = (changed.view(-1)[7] + 1) % 10
    assert check_commitment(folder, replace(triggers, **{part: changed})).state == "mismatch"


def test_a_resumed_run_keeps_its_commitment(tmp_path):
    folder, triggers = make_run(tmp_path / "run")
    before = (folder / "commitment.json").read_bytes(), (folder / "key.json").read_bytes()
    run = RunFolder(folder, SETTINGS, "x")
    (folder / "commitment.json").unlink()  # killed between the two files
    digest = commit_to(run, triggers, CLASSES, 143)
    assert digest == json.loads(before[0])["sha256"] and (folder / "key.json").read_bytes() == before[1]


@pytest.mark.parametrize("content", [None, "{}", '{"salt": 5}'])
def test_a_lost_or_damaged_key_is_named_and_not_replaced(content, tmp_path):
    folder, triggers = make_run(tmp_path / "run")
    key = folder / "key.json"
    key.unlink() if content is None else key.write_text(content)
    with pytest.raises(Refusal, match="key.json is " + ("gone" if content is None else "damaged")):
        commit_to(RunFolder(folder, SETTINGS, "x"), triggers, CLASSES, 143)
    assert key.exists() == (content is not None)
