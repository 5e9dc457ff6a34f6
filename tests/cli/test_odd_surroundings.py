"""Commands in odd surroundings: streams that are closed or full, folders that vanish, folders of strangers."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call, environment
from safetensors.torch import load, save
from toy_experiment import LEAN

import crossdistill
from crossdistill.cli.app import _StandardError, of_the_disk
from crossdistill.errors import DataError, printable
from crossdistill.experiments import load_student, read_experiment, run_experiment


@pytest.fixture
def copy(done, tmp_path):
    return Path(shutil.copytree(done, tmp_path / "copy"))


def process(*arguments, **options):
    command = [sys.executable, "-m", "crossdistill", *map(str, arguments)]
    return subprocess.run(command, env=environment(), text=True, check=False, **options)


# Streams -------------------------------------------------------------------------------------------------------------


def test_a_command_whose_output_is_closed():
    ended = process("list", stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_error_where_all_streams_are_closed(tmp_path):
    ended = process("report", tmp_path, preexec_fn=lambda: os.closerange(0, 3))
    assert ended.returncode == 2


def test_a_command_whose_output_is_full():
    with Path("/dev/full").open("w") as full:
        ended = process("list", stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("gone", ["a pipe that nobody reads", "a full disk"])
def test_a_run_outlives_its_standard_error(gone):
    if gone == "a full disk":
        end = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, end = os.pipe()
        os.close(reader)
    stream = _StandardError(os.fdopen(end, "wb"), encoding="utf-8", line_buffering=True)
    for _ in range(3):
        assert stream.write("a line\n") == 7
    stream.flush()
    stream.close()


# Names and numbers of strangers --------------------------------------------------------------------------------------


def test_what_would_steer_a_terminal_is_escaped():
    assert printable("a\x1b[31mb\x9bc\x07\u202ed\ne\tf\x00 é") == "a\\x1b[31mb\\x9bc\\x07\\u202ed\ne\tf\\x00 é"


def test_a_file_whose_name_steers_a_terminal(done, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros(8, dtype="float32"))
    Path("x.npy").rename("a\x1b[31m\nb.npy")
    said = call(monkeypatch, capsys, "predict", done / "student", "a\x1b[31m\nb.npy", "gone\x1b.npy")
    assert said.out.startswith("a\\x1b[31m\\nb.npy\t")
    assert len(said.out.splitlines()) == 1
    assert "gone\\x1b.npy: there is no such file" in said.err


def test_results_nested_too_deep(tmp_path, monkeypatch, capsys):
    (tmp_path / "results.json").write_text("[" * 100_000)
    for command in ("report", "rerun"):
        said = call(monkeypatch, capsys, command, tmp_path)
        assert said.code == 2
        assert "internal error" not in said.err
        assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("threads", [1_000_000, 10**30])
def test_a_rerun_takes_no_absurd_number_of_threads_from_a_folder(threads, copy, monkeypatch):
    from crossdistill.cli.rerun import again

    results = json.loads((copy / "results.json").read_text())
    del results["sha256"]
    results["environment"].update(threads=threads, jobs=threads)
    (copy / "results.json").write_text(json.dumps(results))
    asked = []

    def run(*arguments):
        asked.append(arguments[2:])
        raise StopIteration

    monkeypatch.setattr("crossdistill.experiments.repeat.check_data_are_those", lambda kept: None)
    with pytest.raises(StopIteration):
        again(copy, None, None, run, run)
    assert asked == [(None, None)]


def test_a_number_of_threads_that_no_machine_has(monkeypatch, capsys):
    said = call(monkeypatch, capsys, "run", "mine.yaml", "--threads", 1_000_000)
    assert said.code == 2
    assert "--threads" in said.err


def test_a_seed_that_is_too_large(monkeypatch, capsys):
    said = call(monkeypatch, capsys, "diagnose", "--source", "a.npy", "--target", "b.npy", "--seed", 10**30)
    assert said.code == 2
    assert "--seed" in said.err


def test_a_source_whose_name_cannot_be_printed(tmp_path, monkeypatch, capsys):
    said = call(monkeypatch, capsys, "diagnose", "--source", "\x1b[31m=a.npy", "--target", "b.npy", "--out", tmp_path)
    assert said.code == 2
    assert "which cannot be printed" in said.err
    said = call(monkeypatch, capsys, "diagnose", "--source", "a\u202fb.npy", "--target", "b.npy", "--out", tmp_path)
    assert said.err == "error: b.npy: there is no such file\n"  # macOS gives such names to what it takes of the screen


def test_a_page_of_results_whose_names_no_xml_may_hold(copy, monkeypatch, capsys):
    text = (copy / "results.json").read_text().replace("raw_features", "raw\\u0007features")
    results = json.loads(text)
    del results["sha256"]
    (copy / "results.json").write_text(json.dumps(results))
    said = call(monkeypatch, capsys, "report", copy, "--chart", copy / "chart.svg")
    assert (said.code, said.err) == (0, "")
    assert "\x07" not in (copy / "chart.svg").read_text()


def test_probabilities_that_are_not_finite_are_no_prediction(copy, tmp_path):
    student = copy / "student"
    weights = {
        name: tensor * float("nan") for name, tensor in load((student / "model.safetensors").read_bytes()).items()
    }
    (student / "model.safetensors").write_bytes(save(weights))
    config = json.loads((student / "config.json").read_text())
    del config["sha256"]
    (student / "config.json").write_text(json.dumps(config))
    np.save(tmp_path / "x.npy", np.zeros(8, dtype="float32"))
    with pytest.raises(DataError, match=r"x\.npy: the student's probabilities are not finite"):
        load_student(student).predict([tmp_path / "x.npy"])


@pytest.mark.timeout(30)
@pytest.mark.parametrize("endless", ["a device", "a large file"])
def test_an_experiment_file_without_end(endless, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.yaml"
    if endless == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text(LEAN + "# " + "x" * (2 << 20))
    said = call(monkeypatch, capsys, "run", path)
    assert said.code == 2
    assert "is larger than 1 MiB, which no experiment file is" in said.err


# What vanishes, and what there is too little of ----------------------------------------------------------------------


def test_a_folder_removed_while_a_run_goes_on(tmp_path):
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "o" / "predictions" / "x.npz"))
    assert "was removed or moved while it was in use" in of_the_disk(error, tmp_path / "o")


def test_too_many_open_files(tmp_path):
    assert "ulimit -n" in of_the_disk(OSError(errno.EMFILE, "Too many open files"))


def test_a_current_folder_that_was_removed(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = call(monkeypatch, capsys, "run", "mine.yaml")
    assert said.code == 2
    assert "there is no experiment file 'mine.yaml'" in said.err
    assert "the current folder was removed" in of_the_disk(FileNotFoundError(errno.ENOENT, "No such file"))


@pytest.mark.parametrize("raised", [MemoryError("Unable to allocate 320. GiB"), RuntimeError("CUDA out of memory. x")])
def test_memory_that_is_not_there_is_no_bug(raised, monkeypatch, capsys):
    def full(what):
        raise raised

    monkeypatch.setattr("crossdistill.cli.listing.listing", full)
    said = call(monkeypatch, capsys, "list")
    assert said.code == 2
    assert said.err.startswith("error: not enough memory: ")


def test_predictions_cut_while_a_run_goes_on_are_told_of_and_made_again(toy_npz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(LEAN.replace("name: toy", f"name: {toy_npz.name}"))

    def cut(word, facts):
        if word == "closing":
            for path in Path("o/predictions").glob("*.npz"):
                path.write_bytes(b"")

    with pytest.raises(crossdistill.errors.TrainingError, match="was damaged while the run went on"):
        run_experiment(read_experiment(Path("mine.yaml")), "o", jobs=1, listen=cut)
    assert run_experiment(read_experiment(Path("mine.yaml")), "o", jobs=1)["rows"]


@pytest.mark.parametrize("name", ["results.json", "experiment.yaml", "student/model.safetensors"])
def test_a_chart_replaces_nothing_that_a_run_made(name, copy, monkeypatch, capsys):
    before = (copy / name).read_bytes()
    said = call(monkeypatch, capsys, "report", copy, "--chart", copy / name)
    assert said.code == 2
    assert "give a name that ends in .svg" in said.err
    assert (copy / name).read_bytes() == before


def test_a_suite_does_not_replace_the_results_of_a_run(copy, toy_npz, monkeypatch, capsys):
    before = (copy / "results.json").read_bytes()
    options = ["--data", toy_npz, "--source", "rich", "--target", "poor", "--methods", "similarity", "--seeds", 1]
    said = call(monkeypatch, capsys, "bench", *options, "--jobs", 1, "--out", copy)
    assert said.code == 2
    assert "holds a run's results, which a suite's would replace; choose another with --out" in said.err
    assert (copy / "results.json").read_bytes() == before


def test_a_run_does_not_replace_the_results_of_a_suite(toy_npz, tmp_path, monkeypatch, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text('{"kind": "bench", "rows": []}')
    (tmp_path / "mine.yaml").write_text(LEAN.replace("name: toy", f"name: {toy_npz}"))
    said = call(monkeypatch, capsys, "run", tmp_path / "mine.yaml", "--jobs", 1, "--out", tmp_path / "b")
    assert said.code == 2
    assert "holds a suite's results, which a run's would replace" in said.err
    assert (tmp_path / "b" / "results.json").read_text() == '{"kind": "bench", "rows": []}'
