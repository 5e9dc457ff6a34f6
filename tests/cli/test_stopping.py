"""Stopped by Ctrl-C, killed, or out of space: the same command again goes on and ends as if nothing had happened."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import environment
from toy_experiment import EXPERIMENT

from crossdistill.experiments import parse_experiment, read_experiment, read_results, run_experiment

TEXT = (
    EXPERIMENT.replace("seeds: 2", "seeds: 1")
    .replace("compare: [l2]", "compare: []")
    .replace("fine_tune_steps: 5", "ways: [linear]")
    .replace("epochs: 2", "epochs: 12, checkpoint_every: 7", 1)
    .replace("    epochs: 2\n", "    epochs: 12\n    checkpoint_every: 7\n")
)
PROGRAM = """if True:
    import resource, sys
    limit = int(sys.argv.pop(1))
    if limit:
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    from crossdistill.cli import main
    main()
"""


def start(folder, *arguments, limit=0):
    command = [sys.executable, "-c", PROGRAM, str(limit), *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def file(toy_npz, tmp_path):
    return written(toy_npz, tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    np.savez(folder / "toy.npz", **toy.columns.arrays, label=toy.label, split=toy.columns.split)
    file = written(folder / "toy.npz", folder)
    return *whole(file, folder / "out"), folder / "out"


def written(data, folder):
    path = folder / "mine.yaml"
    path.write_text(TEXT.replace("name: toy", f"name: {data.name}"))
    return path


def whole(file, folder):
    torch.set_num_threads(1)
    with contextlib.chdir(file.parent):
        results = run_experiment(read_experiment(file), folder, jobs=1)
    return results, (folder / "student" / "model.safetensors").read_bytes()


def wait_until_training(process, out, number, names=("checkpoint.pt", "stage.json")):
    """Wait until the n-th stage has a checkpoint or a product, or another file: training is under way."""
    for _ in range(12000):
        stages = {path.parent for name in names for path in out.glob(f"stages/*/{name}")}
        if len(stages) >= number and (out / "experiment.yaml").exists():
            return
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise AssertionError(f"it ended before stage {number}: {process.communicate()}")


def end(process):
    try:
        out, err = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # else it would train on, beside all other tests
        raise
    return process.returncode, out, err


def group_of(process):
    """Give the command lines of the processes that it started and that still live."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == process.pid and fields[0] != "Z":
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def assert_all_have_left(process):
    for _ in range(100):  # they take a moment to leave
        if not group_of(process):
            break
        time.sleep(0.1)
    assert not group_of(process)


def test_workers_do_not_outlive_a_parent_that_was_killed(file, tmp_path):
    process = start(tmp_path, "run", file, "--out", "cut", "--jobs", 2)
    wait_until_training(process, tmp_path / "cut", 2)
    assert len(group_of(process)) > 2
    os.kill(process.pid, signal.SIGKILL)  # it alone: nobody is left to tell the others
    assert end(process)[0] == -signal.SIGKILL
    assert_all_have_left(process)


def end_of_a_session(process, by):
    os.killpg(process, by)  # all of them, as timeout does too
    os.killpg(process, signal.SIGHUP)


@pytest.mark.parametrize(
    ("jobs", "kill", "by"),
    [
        (1, end_of_a_session, signal.SIGTERM),
        (2, os.kill, signal.SIGTERM),
        (2, end_of_a_session, signal.SIGTERM),
        (2, os.killpg, signal.SIGHUP),  # and as a terminal that is closed
        (1, os.killpg, signal.SIGHUP),
    ],
)
def test_a_termination_is_a_stop_that_saves_and_says_how_to_go_on(jobs, kill, by, file, tmp_path):
    text = file.read_text().replace("checkpoint_every: 7", "checkpoint_every: 1000000")
    file.write_text(text.replace("epochs: 12", "epochs: 100000"))
    process = start(tmp_path, "run", file, "--out", "cut", "--jobs", jobs)
    wait_until_training(process, tmp_path / "cut", 1, ("metrics.jsonl",))
    kill(process.pid, by)
    code, out, err = end(process)
    assert code == 128 + by or (kill is end_of_a_session and code == 128 + signal.SIGHUP)  # whichever came first
    assert out == ""
    complaint = err.splitlines()[-1]
    assert complaint.startswith("error: stopped")
    assert "Traceback" not in err
    assert complaint.endswith("; start the same command again and it goes on where it was")
    assert list((tmp_path / "cut").glob("stages/*/checkpoint.pt"))  # by itself it writes none so soon
    assert_all_have_left(process)


def test_a_termination_within_code_that_is_being_made_keeps_its_exit_code(tmp_path):
    text = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    (tmp_path / "mine.py").write_text(f"exec({text!r})")
    command = [sys.executable, "-m", "crossdistill", "methods", "mine:Loss"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (143, "")
    assert ended.stderr.startswith("error: stopped")


@pytest.mark.parametrize("jobs", [1, 2])
def test_stopped_then_killed_then_started_again_it_ends_with_the_same_bits(jobs, file, tmp_path, uninterrupted):
    process = start(tmp_path, "run", file, "--out", "cut", "--jobs", jobs)
    wait_until_training(process, tmp_path / "cut", 1 if jobs == 1 else 0)  # 0: workers are still starting
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    code, out, err = end(process)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("error: stopped")
    assert "Traceback" not in err
    assert_all_have_left(process)
    assert not (tmp_path / "cut" / "results.json").exists()

    process = start(tmp_path, "run", file, "--out", "cut", "--jobs", jobs)
    wait_until_training(process, tmp_path / "cut", 4)
    os.killpg(process.pid, signal.SIGKILL)  # its own session: it and its workers, nobody else
    assert end(process)[0] == -signal.SIGKILL
    assert not (tmp_path / "cut" / "results.json").exists()

    results, student = whole(file, tmp_path / "cut")
    assert results["rows"] == uninterrupted[0]["rows"]
    assert student == uninterrupted[1]
    assert not list((tmp_path / "cut").rglob("checkpoint.pt"))


def test_a_full_disk_says_so_and_leaves_no_half_file(file, tmp_path, uninterrupted):
    process = start(tmp_path, "run", file, "--out", "full", "--jobs", 1, limit=4000)
    code, out, err = end(process)
    assert (code, out) == (2, "")
    complaint = err.splitlines()[-1]
    assert complaint.startswith("error: ")
    assert "Traceback" not in err
    assert "internal error" not in err
    assert "large" in complaint or "space" in complaint
    assert {path.name for path in (tmp_path / "full").rglob(".*") if path.is_file()} <= {".lock"}
    results, student = whole(file, tmp_path / "full")
    assert results["rows"] == uninterrupted[0]["rows"]
    assert student == uninterrupted[1]


def test_results_are_written_last(uninterrupted):
    results, _, out = uninterrupted
    made = (out / "results.json").stat().st_mtime_ns
    others = [path for path in out.rglob("*") if path.is_file() and path.name != "results.json"]
    assert all(path.stat().st_mtime_ns <= made for path in others)
    assert read_results(out) == results
    assert parse_experiment((out / "experiment.yaml").read_text()).seeds == (0,)
