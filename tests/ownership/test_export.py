"""The export of the trigger images to a suspect's API."""

import json
import stat

import pytest
from commands import verify
from owner_runs import M

from utils.data.files import decode_image
from utils.system.files import write_atomically
from utils.verify import main as verify_main

pytestmark = pytest.mark.usefixtures("quick")


def test_export_is_bit_equal_neutral_and_private(owner, tmp_path, capsys):
    folder, triggers = owner
    to = tmp_path / "out"
    assert verify(capsys, "export", folder, "--to", to)[0] == 0
    key = json.loads((to / "key.json").read_text())
    assert stat.S_IMODE((to / "key.json").stat().st_mode) == 0o600
    files = sorted((to / "images").iterdir())
    assert [f.name for f in files] == sorted(key["images"]) and len(files) == M
    order = [key["images"][f.name]["index"] for f in files]
    assert order != sorted(order) and sorted(order) == list(range(M))
    for file in files:
        entry = key["images"][file.name]
        assert (decode_image(file.read_bytes()) == triggers.images[entry["index"]].numpy()).all()
        assert entry["label"] == triggers.labels[entry["index"]]
        assert len(file.stem) == 16 and set(file.stem) <= set("0123456789abcdef")
    assert verify(capsys, "export", folder, "--to", to)[0] == 2  # not over another one


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

    monkeypatch.setattr("utils.data.files.write_atomically", full)
    with pytest.raises(SystemExit):
        verify_main(["export", str(owner[0]), "--to", str(to)])
    assert "the disk is full" in capsys.readouterr().err
    assert not any(to.iterdir()) if there else not to.exists()
    assert verify_main(["export", str(owner[0]), "--to", str(to)]) in (0, None)
