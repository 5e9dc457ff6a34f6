"""`crossdistill diagnose` as it is meant to be used: arrays or an experiment in, a sentence, a file and a page out."""

import json
import pickle

import numpy as np
import pytest
from commands import call
from toy_experiment import EXPERIMENT


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: call(monkeypatch, capsys, "diagnose", *arguments)


@pytest.fixture
def arrays(toy, tmp_path):
    """Write the toy's training pairs as NPY files with five labels a class known."""
    train = toy.split("train")
    order = np.argsort(train.label, kind="stable")
    few = np.full(len(train), -1)
    for c in range(4):
        few[order[train.label[order] == c][:5]] = c
    for name in ("rich", "poor"):
        np.save(tmp_path / f"{name}.npy", toy.columns.arrays[name][train.rows])
    np.save(tmp_path / "few.npy", few)
    np.save(tmp_path / "shuffled.npy", toy.columns.arrays["rich"][np.roll(train.rows, 7)])
    return tmp_path


def test_arrays_give_a_sentence_a_file_and_a_page(says, arrays):
    said = says(
        *("--source", "photo=rich.npy", "--source", "shuffled.npy", "--target", "poor.npy"),
        *("--labels", "few.npy", "--out", "out", "--no-training"),
    )
    assert said.code == 0, said.err
    value = json.loads((arrays / "out/diagnosis.json").read_text())
    assert value["sentence"] in said.out
    assert {t["name"] for t in value["teachers"]} == {"photo", "shuffled"}
    assert value["about"]["target"] == "poor.npy"
    assert "look: 'shuffled': the pairing carries nothing" in said.out
    assert "page: out/diagnosis.html" in said.out
    page = (arrays / "out/diagnosis.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "photo" in page


def test_without_labels_the_gain_is_withheld(says, arrays):
    said = says("--source", "rich.npy", "--target", "poor.npy", "--out", "out", "--no-training")
    assert said.code == 0, said.err
    assert "withheld: gain: no row has a label" in said.out
    assert json.loads((arrays / "out/diagnosis.json").read_text())["verdict"] == "undecided"


def test_an_experiments_teacher_is_trained_and_found_by_a_later_run(says, toy_npz, tmp_path, monkeypatch, capsys):
    text = EXPERIMENT.replace("name: toy,", f"name: {toy_npz},").replace("seeds: 2", "seeds: 1")
    (tmp_path / "mine.yaml").write_text(text.replace("labels_per_class: 3", "labels_per_class: 5"))
    said = says("mine.yaml", "--out", "out", "--no-training")
    assert said.code == 0, said.err
    value = json.loads((tmp_path / "out/diagnosis.json").read_text())
    assert [t["name"] for t in value["teachers"]] == ["teacher"]
    assert value["settings"]["labelled"] == 20
    assert value["settings"]["pairs"] == 160
    stages = {path.name for path in (tmp_path / "out/stages").iterdir()}
    assert len(stages) == 1
    assert call(monkeypatch, capsys, "run", "mine.yaml", "--out", "out", "--jobs", 1).code == 0
    assert stages < {path.name for path in (tmp_path / "out/stages").iterdir()}


class Trap:
    """Would leave a file behind where it is unpickled."""

    def __reduce__(self):
        return (open, ("sprung", "w"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "missing: --source, --target"),
        (["--source", "rich.npy"], "missing: --target"),
        (["mine.yaml", "--source", "rich.npy"], "--source goes without an experiment file"),
        (["--source", "gone.npy", "--target", "poor.npy"], "gone.npy: there is no such file"),
        (["--source", "short.npy", "--target", "poor.npy"], "short.npy: 10 rows, and poor.npy has 160"),
        (["--source", "trap.npy", "--target", "poor.npy"], "trap.npy: not an array that can be read"),
        (["--source", "rich.npy", "--target", "nan.npy"], "nan.npy: row 3, column 1 is nan"),
        (["--source", "rich.npy", "--target", "poor.npy", "--labels", "rich.npy"], "one whole number or word a row"),
        (["--source", "rich.npy", "--target", "poor.npy", "--groups", "short.npy"], "one whole number or word a row"),
        (["--source", "a=rich.npy", "--source", "a=poor.npy", "--target", "poor.npy"], "two sources are called 'a'"),
        (["--source", "x=", "--target", "poor.npy"], "--source takes FILE or NAME=FILE; received 'x='"),
        (["--source", "=rich.npy", "--target", "poor.npy"], "--source takes FILE or NAME=FILE"),
        (["--source", "rich.npy", "--target", "poor.npy", "--labels", "few.npy", "--level", 0.5], "take one of 0.8"),
        (["gone.yaml"], "there is no experiment file 'gone.yaml'"),
        (["--source", "rich.npy", "--target", "poor.npy", "--pilot"], "--pilot trains a small student; leave out"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(says, arrays, arguments, told):
    np.save(arrays / "short.npy", np.ones((10, 3)))
    broken = np.load(arrays / "poor.npy")
    broken[3, 1] = np.nan
    np.save(arrays / "nan.npy", broken)
    (arrays / "trap.npy").write_bytes(pickle.dumps(Trap()))
    (arrays / "mine.yaml").write_text(EXPERIMENT)
    said = says(*arguments, "--no-training")
    assert said.code == 2
    assert told in said.err
    assert said.err.count("\n") <= 2
    assert not (arrays / "sprung").exists()
    assert not (arrays / "runs").exists()
