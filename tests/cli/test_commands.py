"""The commands as they are meant to be used: what they print where, and what they leave."""

import io
import json
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from bench_folder import make_bench
from commands import call
from toy_experiment import EXPERIMENT

from crossdistill import __version__
from crossdistill.cli import main
from crossdistill.cli.progress import Progress, show_results
from crossdistill.data import available_sets, available_transforms
from crossdistill.experiments import load_student, read_results
from crossdistill.registry import discover

LEAN = EXPERIMENT.replace("seeds: 2", "seeds: 1").replace("fine_tune_steps: 5", "ways: [linear]")


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def test_the_version(says):
    said = says("--version")
    assert (said.code, said.out.strip(), said.err) == (0, f"crossdistill {__version__}", "")


def test_help_names_every_command_and_every_command_has_help(says):
    said = says("--help")
    assert said.code == 0
    for command in ("demo", "run", "rerun", "init", "report", "predict", "methods", "list"):
        assert command in said.out
        own = says(command, "-h")
        assert own.code == 0
        assert own.err == ""
        assert command in own.out
    assert "--dry-run" in says("run", "--help").out


def test_nothing_said_shows_the_help(says):
    said = says()
    assert "Commands" in said.out + said.err


def test_help_imports_no_torch():
    code = """if True:
        import sys
        from crossdistill.cli import main
        sys.argv = ["crossdistill", "--help"]
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 0, stop.code
        heavy = {"torch", "numpy", "sklearn", "matplotlib", "lightning_fabric", "pydantic"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_lists_hold_what_the_registry_knows(says):
    for what in ("objectives", "methods", "networks"):
        said = says("list", what)
        known = discover(f"crossdistill.{what}")
        assert [line.split()[0] for line in said.out.splitlines()] == list(known)
        assert all(cls.facts.paper in said.out for cls in known.values())
    assert {t.name for t in available_transforms()} == {
        line.split()[0] for line in says("list", "transforms").out.splitlines()
    }
    assert {s.name for s in available_sets()} == {line.split()[0] for line in says("list", "data").out.splitlines()}
    assert says("list").out == says("list", "objectives").out


def test_init_writes_a_file_that_plans(says, tmp_path):
    said = says("init")
    assert said.code == 0
    assert "crossdistill run experiment.yaml" in said.out
    plan = says("run", "experiment.yaml", "--dry-run")
    assert plan.code == 0
    assert plan.out.startswith("omniglot-small: image -> pen")
    assert "nothing was trained" in plan.out
    assert not (tmp_path / "runs").exists()
    again = says("init", "--force")
    assert again.code == 0


@pytest.fixture
def file(toy_npz, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(LEAN.replace("name: toy", f"name: {toy_npz.name}"))
    return path


def test_a_plan_counts_the_steps_of_everything(says, file, tmp_path):
    said = says("run", file, "stages.teacher.epochs=3", "--dry-run", "--out", "out")
    lines = said.out.splitlines()
    steps = {tuple(line.split()[1:3]): int(line.split()[3]) for line in lines[1:-1] if "training" in line}
    assert steps == {("0", "teacher"): 15}
    counted = [int(line.split()[3]) for line in lines[1:-1]]
    assert lines[-1].startswith(f"{len(counted)} tasks, {sum(counted)} optimiser steps")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")  # matplotlib's own
def test_report_of_a_suite(says, tmp_path):
    make_bench(tmp_path, seeds=2, labels=(None,), evaluations=("linear",), items=40)
    said = says("report", ".")
    assert (said.code, said.out.strip(), said.err) == (0, "wrote report.html", "")
    assert "toy suite" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "pictures" / "gains-linear-all.svg").is_file()
    said = says("report", ".", "--chart", "x.svg")
    assert said.code == 2
    assert "pictures are in 'pictures'" in said.err


def test_run_report_and_predict(says, file, tmp_path, toy):
    said = says("run", file, "stages.student.epochs=3", "--out", "out", "--jobs", 1)
    assert said.code == 0
    results = read_results(tmp_path / "out")
    assert results["sentence"] in said.out
    assert "page: out/report.html" in said.out
    assert all(name in said.out for name in results["methods"])
    assert "seed 0  similarity" in said.err  # progress is not the result
    assert "epochs: 3" in (tmp_path / "out" / "experiment.yaml").read_text()
    typed = ["crossdistill", "run", str(file), "stages.student.epochs=3", "--out", "out", "--jobs", "1"]
    assert shlex.split(results["environment"]["command"]) == typed

    page = (tmp_path / "out" / "report.html").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    said = says("report", "out")
    assert (said.code, said.out.strip(), said.err) == (0, "wrote out/report.html", "")
    assert (tmp_path / "out" / "report.html").read_bytes() == page

    raw, names = toy.split("test").raw("poor", np.arange(3)), ["a.npy", "b.npy", "c.npy"]
    for name, sample in zip(names, raw, strict=True):
        np.save(tmp_path / name, sample)
    expected = load_student(tmp_path / "out" / "student").predict(names)
    said = says("predict", "out/student", *names)
    assert said.out.splitlines() == [f"{p.file}\t{p.label}\t{p.probability:.3f}" for p in expected]
    said = says("predict", "out/student", *names, "--json")
    spoken = [json.loads(line) for line in said.out.splitlines()]
    assert [one["label"] for one in spoken] == [p.label for p in expected]
    assert all(set(one) == {"file", "label", "probability", "probabilities"} for one in spoken)


def test_progress_counts_what_is_resumed_and_what_is_found():
    progress = Progress()
    progress.listen("planned", {"tasks": 2, "steps": 30, "data": "toy"})
    whole = progress.bars.tasks[0]
    progress.listen("started", {"row": "a", "seed": 0, "stage": "student", "total": 20, "step": 5})
    assert whole.completed == 5
    facts = {"row": "a", "seed": 0, "step": 12, "rate": 10.0, "loss": 0.5, "data_wait": 0.1}
    progress.listen("stepped", facts)
    assert whole.completed == 12
    progress.listen("finished", {"row": "a", "seed": 0})
    assert whole.completed == 20
    progress.listen("finished", {"row": "never started", "seed": 0})
    progress.listen("a word of tomorrow", {})
    assert whole.completed == 20


def test_what_is_odd_about_the_data_is_shown_up_to_ten_lines(capsys):
    progress = Progress()
    facts = {"tasks": 2, "steps": 30, "data": "toy"}
    progress.listen("planned", {**facts, "warnings": [f"clip [{i}] is silent" for i in range(12)]})
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [*(f"odd: clip [{i}] is silent" for i in range(10)), "odd: and 2 more such findings"]


def test_a_plan_shows_what_is_odd_about_the_data(says, file, toy, tmp_path):
    arrays = {name: array.copy() for name, array in toy.columns.arrays.items()}
    arrays["poor"][5] = 0.0
    np.savez(tmp_path / "toy.npz", **arrays, label=toy.label, split=toy.columns.split)
    said = says("run", file, "--dry-run")
    assert said.code == 0
    assert "odd: 'poor': 1 of 300 samples are constant" in said.out


def test_a_module_beside_the_file_is_found_and_the_path_is_that_of_before(says, file, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "beside_the_file.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(12, 3))\n"
    )
    said = says("run", file, "stages.teacher={module: 'beside_the_file:net'}", "--dry-run")
    assert said.code == 0, said
    assert sys.path[-1] == str(tmp_path)
    sys.modules.pop("beside_the_file")


def test_letters_that_the_terminal_has_not_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["crossdistill", "list", "data"])
    monkeypatch.setattr("crossdistill.cli.listing.listing", lambda _: print("\u03b1") or "")
    term = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        main()
    signal.signal(signal.SIGTERM, term)
    assert stop.value.code == 0
    assert b"\\u03b1\n" in raw.getvalue()


def test_a_difference_without_bounds_is_shown_without(capsys, tmp_path):
    results = {
        "headline": {"method": "m", "against": "c", "evaluation": "linear", "metric": "accuracy"},
        "methods": {"m": {"role": "method"}, "c": {"role": "control"}},
        "rows": [
            {"method": name, "evaluation": "linear", "metric": "accuracy", "value": value}
            for name, value in (("m", 0.5), ("c", 0.25))
        ],
        "comparisons": [
            {"method": "m", "against": "c", "evaluation": "linear", "difference": 0.25, "low": None, "high": None}
        ],
        "verdict": "undecided",
        "sentence": "Undecided.",
    }
    show_results(results, tmp_path / "report.html")
    out = capsys.readouterr().out
    assert "+25.0" in out
    assert "None" not in out
    assert "Undecided." in out
