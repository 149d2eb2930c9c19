"""Suspects that are programs: one image a call or many, and how they may fail."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commands import ROOT, refused, verify
from owner_runs import CLASSES, M, names_of

from utils.answers import ask as program_module
from utils.answers.answers import Answer, Classes
from utils.answers.ask import program
from utils.system.outside import run_bounded
from utils.system.refusals import Refusal
from utils.verify import _stop

pytestmark = pytest.mark.usefixtures("quick")
PNGS = [Path(f"{i}.png") for i in (7, 3, 9)]  # answered by their own names below
ONE, MANY = "basename {png} .png", "sh -c 'for png; do basename $png .png; done' sh {pngs}"
HANGS = "sh -c 'exec sleep 60' "


def ask(command, pngs=PNGS[:1], allow_missing=False, seconds=60.0, classes=CLASSES):
    return program(command, seconds).ask(pngs, Classes(classes), allow_missing)


def refusal(command, pngs=PNGS[:1], **settings) -> str:
    with pytest.raises(Refusal) as caught:
        ask(command, pngs, **settings)
    sentence = str(caught.value)
    assert sentence.isprintable() and len(sentence) < 500
    return sentence


@pytest.fixture
def key_program(owner, tmp_path):
    """(command that answers all triggers as labelled, file of the images of each call); after FAIL not the first."""
    folder, triggers = owner
    key = dict(zip(names_of(folder), triggers.labels.tolist()))
    calls = tmp_path / "calls"
    (tmp_path / "program.py").write_text(
        f"import os, sys\nkey = {key!r}\nfail = sys.argv[1] == 'FAIL'\n"
        "names = [os.path.basename(path) for path in sys.argv[1 + fail:]]\n"
        f"open({str(calls)!r}, 'a').write(f'{{len(names)}} ')\n"
        "if fail and min(key) in names: sys.exit('out of order')\n"
        "print(*(key[name] for name in names), sep='\\n')\n")
    return f"{sys.executable} -S {tmp_path / 'program.py'}", calls


def test_many_images_a_call_give_the_verdict_of_one_image_a_call(key_program, owner, monkeypatch):
    command, calls = key_program
    monkeypatch.setattr(program_module, "IMAGES_PER_CALL", 15)
    status, many, _ = verify("claim", owner[0], "--trust-owner", "--command", f"{command} {{pngs}}")
    assert status == 0 and f"hits         {M} of {M}" in many and calls.read_text().split() == ["15", "15", "10"]
    calls.unlink()
    status, one, _ = verify("claim", owner[0], "--trust-owner", "--command", f"{command} {{png}}")
    assert status == 0 and calls.read_text().split() == ["1"] * M
    assert one == many.replace("{pngs}", "{png}")


def test_a_failed_call_is_refused_or_its_images_are_missing(key_program, owner, monkeypatch):
    claim = ("claim", owner[0], "--trust-owner", "--command")
    said = refused("utils.verify", *claim, f"{key_program[0]} FAIL {{png}}")
    assert "ended with status 1" in said and "out of order" in said
    monkeypatch.setattr(program_module, "IMAGES_PER_CALL", 15)
    status, out, _ = verify(*claim, f"{key_program[0]} FAIL {{pngs}}", "--allow-missing")
    assert f"hits         {M - 1} of {M}, {M - 1} answered" in out  # of 15 images that failed together 14 do alone
    assert "hits" in verify(*claim, "sh -c 'echo 3; rm {png}'")[1]  # nothing fails where it removes the image
    said = refused("utils.verify", *claim, "false {png}", "--allow-missing")
    assert f"answered none of the {M} triggers" in said


def test_a_reply_that_is_no_answer_is_not_kept(key_program, owner, tmp_path):
    broken = tmp_path / "broken"
    command = f"sh -c 'test -e {broken} && echo no || {key_program[0]} $0' {{png}}"
    claim = ("claim", owner[0], "--trust-owner", "--command", command, "--keep-answers", tmp_path / "kept",
             "--allow-missing")
    broken.touch()
    assert f"answered none of the {M} triggers" in refused("utils.verify", *claim)
    broken.unlink()  # now it answers
    assert f"hits         {M} of {M}" in verify(*claim)[1]


def test_the_sequential_test_stops_early(key_program, owner):
    command, calls = key_program
    claim = ("claim", owner[0], "--trust-owner", "--sequential", "--command", f"{command} {{png}}")
    assert "leave out --test T1p" in refused("utils.verify", *claim, "--test", "T1p") and not calls.exists()
    status, out, _ = verify(*claim)
    queries = len(calls.read_text().split())
    assert status == 0 and queries < 10 and f"after {queries} queries" in out and "rests on SPRT" in out
    assert "p does not allow for asking a random suspect again" in out


@pytest.mark.parametrize("name, status", [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_a_signal_leaves_no_triggers_behind_and_says_what_goes_on(name, status, owner, heard, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    command = f"sh -c 'kill -{name} $PPID; exec sleep 60' {{png}}"
    for flags, words in (((), "begins anew"), (("--keep-answers", tmp_path / "kept"), "kept holds")):
        done = verify("claim", owner[0], "--trust-owner", "--command", command, *flags)
        assert done.status == status and done.out == "" and not any((tmp_path / "temporary").iterdir())
        assert "interrupted; the same command" in done.err and words in done.err


def test_a_second_signal_does_not_break_off_the_removal_of_triggers(heard):
    """A terminal that closes sends SIGHUP, and so does its shell."""
    with pytest.raises(KeyboardInterrupt):
        _stop(signal.SIGHUP, None)
    os.kill(os.getpid(), signal.SIGHUP)  # which would end the tests


@pytest.mark.parametrize("flags, words", [
    (("--command", "echo 3"), "needs {png}"), (("--command", "program x={pngs}"), "{pngs}, an argument of its own"),
    (("--command", "echo {pngs} {png}"), "not both"), (("--command", "echo '3 {png}"), "No closing quotation"),
    (("--command", "/nonexistent/program {png}"), "there is no program '/nonexistent/program'"),
    (("--command", "echo {pngs}", "--sequential"), "--sequential stops after any image: it needs {png}"),
    (("--command", HANGS + "{png}", "--timeout", "0.05", "--trust-owner"), "--timeout allows more; or, of"),
])
def test_a_command_that_cannot_be_asked_is_refused(flags, words, owner):
    assert words in refused("utils.verify", "claim", owner[0], *flags)


def test_answers_are_in_the_order_of_the_images():
    assert ask(MANY, PNGS) == [Answer(7), Answer(3), Answer(9)] and ask(MANY) == ask(ONE) == [Answer(7)]
    assert ask("sh -c 'printf \" dog\\r\\n1\\r\\n\"' {pngs}", PNGS[:2], classes=["cat", "dog"]) == [Answer(1)] * 2


def test_the_path_may_be_a_part_of_an_argument_and_no_shell_reads_it(tmp_path):
    assert ask("sh -c 'basename ${1#--image=} .png' sh --image={png}") == [Answer(7)]
    odd = tmp_path / "a 'b; echo 5 #$(echo)" / "8.png"
    assert ask(ONE, [odd]) == ask("sh -c 'basename \"$1\" .png' sh {pngs}", [odd]) == [Answer(8)]
    assert "'3 ; echo 7.png' is no class" in refusal("echo 3 ; echo {png}")


@pytest.mark.parametrize("command, words", [
    ("sh -c 'echo one >&2; echo two >&2; exit 4' {png}", "status 4 ('one two'), for 7.png"),
    ("sh -c 'kill -9 $$' {png}", "status -9 (''), for 7.png"), (". {png}", "cannot be run"),
    ("printf '3\\n4\\n' {png}", "is no class"), ("printf '\\377\\033[31m' {png}", "is none of"),
])
def test_failures_and_nonsense_are_refused_in_one_printable_sentence(command, words):
    assert words in refusal(command)


def test_what_a_program_prints_is_bounded_and_a_line_is_an_image():
    assert "printed more than" in refusal("yes {png}")
    assert "gave no answer" in refusal("sh -c 'yes >&2; echo 3' {png}", seconds=1.0)  # of stderr only the end is kept
    for lines in (0, 4):
        four = f"sh -c 'yes 3 | head -{lines}' {{pngs}}"
        assert f"printed {lines} lines for 3 images" in refusal(four, PNGS)
        assert ask(four, PNGS, allow_missing=True) == [Answer()] * 3
    assert ask("sh -c 'echo unsure; echo 3' {pngs}", PNGS[:2], allow_missing=True) == [Answer(), Answer(3)]


def test_a_program_ends_with_its_call_and_with_its_parent(tmp_path):
    """What a call started in the background is ended with it; where the judge is killed, his program is."""
    ask(f"sh -c 'sleep 60 & echo $! > {tmp_path}/child; echo 3' {{png}}")
    assert gone(int((tmp_path / "child").read_text()))
    code = ("import os, sys; sys.path[:0] = sys.argv[1:2]; from utils.system.outside import run_bounded\n"
            f"run_bounded(['sh', '-c', 'echo $$ > {tmp_path}/worker; exec sleep 60'], 60, 10)")
    parent = subprocess.Popen([sys.executable, "-c", code, str(ROOT)])
    for _ in range(1200):  # a minute, in which it begins
        if (tmp_path / "worker").exists() and (tmp_path / "worker").read_text():
            break
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert gone(int((tmp_path / "worker").read_text()))


def gone(pid: int) -> bool:
    """Whether a process has ended, a zombie too, within ten seconds."""
    for _ in range(200):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_time_limit_is_for_each_image_of_a_call():
    assert "no answer in 0.05 s, for 7.png" in refusal(HANGS + "{png}", seconds=0.05)
    assert "no answer in 0.15 s, for 3 im" in refusal(HANGS + "{pngs}", PNGS, seconds=0.05)
    assert ask(HANGS + "{pngs}", PNGS, allow_missing=True, seconds=0.02) == [Answer()] * 3


def test_of_what_a_program_says_on_stderr_the_end_is_kept():
    status, out, err = run_bounded(["sh", "-c", "yes | head -c 1000000 >&2; echo end >&2"], 60, 10)
    assert (status, out, len(err)) == (0, b"", 4096) and err.endswith(b"y\nend\n")
