"""figures.survive: rows of runs, once each, and what it says and draws of them."""

import json

from commands import refused

from figures.survive import main, rows_of_run

SETTINGS = {"train_type": "margin", "bn_stats": "shared", "variable": 0.1, "reduction": "sum", "steps": 5, "eps": 5.0,
            "num_mixup": 1, "num_query": 50, "trigger_strategy": "uncertain", "label_strategy": "plausible",
            "label_choices": 2, "seed": 3, "model_type": "res18", "width": 16, "train_size": 16000, "epoch": 14}
NAME = "margin, shared, m 50, lambda 0.1, K 5, eps 5, uncertain images, 2 plausible labels"


COPY = {"role": "surrogate", "attack": "soft", "rows": []}


def found(accuracy, hits, p, **more):
    return {"test_accuracy": accuracy, "trigger_hits": hits, "trigger_size": 50, "log10_p": {"T1": p}, **more}


def write(folder, settings, summary):
    folder.mkdir(parents=True)
    run = {"settings": settings, "command": ["train.py", "-msg", "a b"], "device_name": "a GPU", "torch": "2.11"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_run_that_is_added_again_replaces_its_rows(tmp_path, capsys):
    """Of a source whose soft copy is claimed and whose VGG copy is not, with one benign model in its report."""
    source = tmp_path / "source"
    own = found(0.71, 50, -15.0, model="source margin")
    write(source, SETTINGS, own | {"clean": None, "rows": [own, found(0.72, 22, -0.2, model="benign b")]})
    for name, model, hits, p in (("extraction_soft", "res18", 40, -5.0), ("extraction_v", "vgg11", 30, -1.0)):
        write(source / name, SETTINGS, found(0.70, hits, p, model=model, teacher_bn="paper", **COPY))
    pruned = found(0.71, 50, -15.0, attack="prune", model="res18", role="edited", rows=[])  # of the model before
    write(source / "extraction_p", SETTINGS, pruned)
    write(tmp_path / "eval", SETTINGS | {"bn_stats": "eval"}, own | {"clean": found(0.73, 40, -9.0), "rows": []})
    write(tmp_path / "eval" / "soft", SETTINGS,
          found(0.70, 3, -0.2, model="res18", teacher_bn="clean", **COPY))
    assert rows_of_run(tmp_path / "eval")[-1]["source_accuracy"] == 0.73  # of the model that was copied
    file, benign = tmp_path / "survive.json", tmp_path / "benign"
    settings = SETTINGS | {"train_type": "none", "label_strategy": "random", "trigger_strategy": None}
    write(benign, settings, found(0.715, 3, -0.1, clean=None, rows=[]))
    main([str(source), str(benign), "--json", str(file), "--chosen", NAME])
    first = json.loads(file.read_text())
    main([str(source), "--json", str(file)])
    assert json.loads(file.read_text()) == first and len(first["rows"]) == 5
    assert first["benign_accuracy"] == 0.715 and first["chosen"] == NAME
    assert (tmp_path / "survive.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "is no finished run" in refused("figures.survive", tmp_path, "--json", file)
    assert f"{NAME}, shared statistics, source: source 71.00 %, hits 50 of 50" in said
    assert f"{NAME}, shared statistics, soft: source 71.00 %, copy 70.00 %, hits 40 of 50, claimed 1 of 1" in said
    assert "soft (vgg11): source 71.00 %, copy 70.00 %, hits 30 of 50, claimed 0 of 1 (seeds 3)" in said
    assert "benign: source 71.00 %, copy 72.00 %, hits 22 of 50, claimed 0 of 1" in said


def test_what_is_no_source_and_what_was_copied_from_another_training_is_left_out(tmp_path, capsys):
    source, file = tmp_path / "source", tmp_path / "survive.json"
    own, unknown = found(0.71, 50, -15.0), found(None, 3, -0.1, model="benign b")  # a benign model that a file named
    write(source, SETTINGS, own | {"clean": None, "rows": [own | {"model": "source margin"}, unknown]})
    write(source / "old", SETTINGS | {"attack": "soft"}, found(0.70, 9, -2.0, model="res18", source_sha256="0", **COPY))
    (source / "checkpoints").mkdir()
    for name in ("nat_best", "latest"):
        (source / "checkpoints" / f"checkpoint_{name}.pt").write_text("weights")
    main([str(source), "--json", str(file)])
    said = capsys.readouterr()
    assert "old is a copy of an earlier training" in said.err and "benign: source 71.00 %, copy unknown" in said.out
    assert len(json.loads(file.read_text())["rows"]) == 2
    assert "is no finished run of train.py" in refused("figures.survive", source / "old", "--json", file)
