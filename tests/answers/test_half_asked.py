"""A list of images that a server has answered in part."""

import shutil

import pytest
from answering_server import answering, label_of
from commands import verify
from owner_runs import M

from utils.answers import server as server_module
from utils.answers.answers import Answer
from utils.answers.half_asked import HalfAsked
from utils.system.refusals import Refusal

pytestmark = pytest.mark.usefixtures("quick")
NAMES = [f"{i:016x}.png" for i in range(5)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "half.jsonl"


def half_asked_file(folder):
    (path,) = folder.glob(".half_asked*")
    return path


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_claim_goes_on_after_an_interruption_and_ends_as_an_unbroken_one(probabilities, owner, capsys, monkeypatch):
    folder, triggers = owner
    monkeypatch.setattr(server_module.time, "sleep", lambda seconds: None)
    fails_at = {13}

    def reply(k, pixels):
        if k in fails_at:
            return 404, "gone", {}
        y = label_of(triggers, pixels)
        return str([0.6 if i == y else 0.4 / 9 for i in range(10)]) if probabilities else str(y)

    with answering(reply) as served:
        claim = ("claim", folder, "--trust-owner", "--url", served.url)
        status, _, err = verify(capsys, *claim)
        path = half_asked_file(folder)
        assert status == 2 and "the same command goes on" in err and path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes().count(b"\n") == 13
        with open(path, "ab") as cut:
            cut.write(b'["0000')  # the machine went down while it wrote
        resumed = verify(capsys, *claim)
        assert len(served.images) == 14 + M - 13 and not path.exists()
        fails_at.clear()
        unbroken = verify(capsys, *claim)
    assert resumed[0] == unbroken[0] == 0 and f"13 of {M} answers are from before an interruption" in resumed[1]
    figures = lambda out: [line for line in out.splitlines() if line.startswith(("hits", "T1", "T3", "The claim"))]
    assert figures(resumed[1]) == figures(unbroken[1]) and len(figures(unbroken[1])) > 2


def test_answers_of_another_server_or_of_other_triggers_are_not_taken(owner, capsys, monkeypatch):
    folder, triggers = owner
    monkeypatch.setattr(server_module.time, "sleep", lambda seconds: None)
    with answering(lambda k, pixels: "1" if k < 3 else (404, "", {})) as served:
        assert verify(capsys, "claim", folder, "--url", served.url)[0] == 2
        kept = half_asked_file(folder)
        with answering(lambda k, pixels: str(label_of(triggers, pixels))) as other:
            status, out, _ = verify(capsys, "claim", folder, "--trust-owner", "--url", other.url)
    assert status == 0 and len(other.images) == M and "interruption" not in out and kept.exists()
    kept.unlink()


def test_what_is_kept_is_read_again_and_a_line_that_was_cut_off_is_written_over(file):
    first = HalfAsked(file, NAMES, 3)
    first.add(NAMES[2], Answer(1, [0.25, 0.5, 0.25]))
    first.add(NAMES[0], Answer())  # no answer: ask again
    with open(file, "ab") as cut:
        cut.write(b'["half')
    second = HalfAsked(file, NAMES, 3)
    second.add(NAMES[4], Answer(2))
    assert HalfAsked(file, NAMES, 3).answers == {NAMES[2]: Answer(1, [0.25, 0.5, 0.25]), NAMES[4]: Answer(2, None)}
    assert file.stat().st_mode & 0o777 == 0o600
    second.remove()
    second.remove()
    assert not file.exists() and HalfAsked(file, NAMES, 3).sentence is None


@pytest.mark.parametrize("line", [
    b"nonsense", b"\xff\xfe", b"[]", b"3", b'["other.png", 1, null]', b'["NAME", 3, null]', b'["NAME", -1, null]',
    b'["NAME", true, null]', b'["NAME", 1, [0.5]]', b'["NAME", 1, ["x", 0, 0]]', b'["NAME", 1, 7]', b"[" * 100_000])
def test_a_damaged_file_is_refused(line, file):
    file.write_bytes(line.replace(b"NAME", NAMES[1].encode()) + b"\n")
    with pytest.raises(Refusal, match="half.jsonl is damaged: remove it"):
        HalfAsked(file, NAMES, 3)


def test_without_a_folder_nothing_is_kept(tmp_path):
    none = HalfAsked(None, NAMES, 3)
    none.add(NAMES[0], Answer(1))
    none.remove()
    assert none.answers == {} and not list(tmp_path.iterdir())


def test_answers_are_kept_through_no_link(file, tmp_path):
    for content in (None, b"", b"mine\n"):
        other = tmp_path / "other"
        if content is not None:
            other.write_bytes(content)
        file.symlink_to(other)
        with pytest.raises(Refusal, match="half.jsonl is"):
            HalfAsked(file, NAMES, 3).add(NAMES[0], Answer(1))
        assert (other.read_bytes() if other.exists() else None) == content
        file.unlink()


def test_no_server_is_asked_where_a_link_stands_in_place_of_its_answers(owner, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(owner[0], tmp_path / "run")
    monkeypatch.setattr(server_module.time, "sleep", lambda seconds: None)
    with answering(lambda k, pixels: "1" if k < 3 else (404, "", {})) as served:
        claim = ("claim", folder, "--trust-owner", "--url", served.url)
        assert verify(capsys, *claim)[0] == 2
        path, asked = half_asked_file(folder), len(served.images)
        path.unlink()
        path.symlink_to(tmp_path / "other")
        status, _, err = verify(capsys, *claim)
        assert status == 2 and err.count("\n") == 1 and f"{path.name} is a symbolic link" in err
        assert len(served.images) == asked and not (tmp_path / "other").exists()
