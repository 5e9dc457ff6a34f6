"""`crossdistill bench` as it is meant to be used: a suite file or one's own pairs in, a table and a page out."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from commands import call

from crossdistill.cli.bench import suite_of
from crossdistill.errors import TrainingError
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.methods import Distillation


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


@pytest.fixture
def suite(toy_npz, tmp_path):
    path = tmp_path / "suite.yaml"
    described = {
        "title": "toy",
        "methods": ["similarity", "l2", "kd"],
        "budget": {"steps": 4, "teacher_steps": 4, "batch_size": 32},
        "base": {"evaluate": {"ways": ["linear"]}},
        "experiments": {"toy": {"data": {"name": str(toy_npz), "source": "rich", "target": "poor"}}},
        "labels_per_class": [1, None],
        "seeds": 2,
    }
    path.write_text(yaml.safe_dump(described))
    return path


def test_a_suite_prints_its_table_and_leaves_a_page(says, suite, tmp_path):
    said = says("bench", suite, "--out", "out", "--jobs", 1)
    assert said.code == 0, said.err
    assert "left out: kd: needs a teacher with logits" in said.err
    assert re.search(r"\| similarity \| \d+\.\d %", said.out)
    assert "page: out/report.html" in said.out
    page = (tmp_path / "out/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["complete"]
    assert results["environment"]["command"].startswith("crossdistill bench")
    again = says("bench", suite, "--out", "out", "--jobs", 1)
    assert again.code == 0
    assert "0 to do" in again.err
    assert json.loads((tmp_path / "out/results.json").read_text())["rows"] == results["rows"]
    assert says("report", "out").code == 0


def test_pairs_that_were_matched_by_label_are_called_so(says, toy_npz, tmp_path):
    (tmp_path / "s.yaml").write_text("title: t")
    assert "--pairing goes without a suite file" in says("bench", "s.yaml", "--pairing", "class").err
    for named in ("mfeat", "synthetic:shared_latent"):
        said = says("bench", "--data", named, "--source", "a", "--target", "b", "--pairing", "class")
        assert f"--pairing is for your own files; '{named}' knows what it holds" in said.err
    shelf = Shelf()
    for pairing, expected in (("", "natural"), ("class", "class")):
        document = suite_of(None, str(toy_npz), "rich", "poor", "l2", "label-free", pairing, None, 0)
        data = expand(document, shelf).entries[0].experiment.data
        assert shelf.get(data.name, data.options).pairing == expected


@pytest.mark.parametrize(
    ("hook", "error"),
    [("training_step", TrainingError), ("before_stage", IndexError), ("training_step", AssertionError)],
)
def test_a_suite_of_which_every_method_fails_has_its_controls(says, suite, tmp_path, monkeypatch, hook, error):
    described = yaml.safe_load(suite.read_text())
    suite.write_text(yaml.safe_dump({**described, "methods": ["l2"], "seeds": 1}))

    def fails(*_):
        raise error("it cannot go on")

    monkeypatch.setattr(Distillation, hook, fails)
    said = says("bench", suite, "--out", "out", "--jobs", 1)
    assert said.code == 0, said.err
    assert "it cannot go on" in said.err
    assert "no table: out has no league, as no method has a result" in said.out
    assert "page: out/report.html" in said.out
    runs = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    assert {"scratch", "target_ssl"} <= {run["method"] for run in runs if run["status"] == "done"}


def test_a_dry_run_shows_the_plan_and_trains_nothing(says, toy_npz, tmp_path):
    said = says("bench", "--data", toy_npz, "--source", "rich", "--target", "poor", "--seeds", 1, "--dry-run")
    assert said.code == 0, said.err
    assert "label-free" in said.out
    assert "nothing was kept" in said.out
    assert "mla" in said.out
    assert not (tmp_path / "runs").exists()
    said = says("bench", "--data", toy_npz, "--source", "rich", "--target", "poor", "--track", "labelled", "--dry-run")
    assert "mla" in said.out.split("left out")[0]


def test_the_plan_shows_how_each_array_was_read(says, toy, tmp_path):
    rich, poor = toy.columns.arrays["rich"], toy.columns.arrays["poor"]
    series = np.stack([poor, poor + 1.0], axis=2)
    np.savez(tmp_path / "axes.npz", rich=rich, poor=series, label=toy.label, split=toy.columns.split)
    arguments = ["bench", "--data", "axes.npz", "--source", "rich", "--target", "poor", "--methods", "l2", "--dry-run"]
    width = poor.shape[1]
    said = says(*arguments)
    assert f"axes: 300 natural pairs of rich vector {rich.shape[1:]}, poor sequence ({width}, 2); " in said.out
    assert f"odd: 'poor' is read as sequences, channels by steps {width} x 2: swap its last two axes if" in said.out
    said = says(*arguments, "--kind", "poor=image")
    assert f"poor image (1, {width}, 2)" in said.out
    assert "odd:" not in said.out


def test_test_rows_that_cannot_be_judged_are_told(says, toy, tmp_path):
    here = np.arange(len(toy)) % 4 > 0
    arrays = {**toy.columns.arrays, "poor": np.where(here[:, None], toy.columns.arrays["poor"], np.nan)}
    np.savez(tmp_path / "d.npz", **arrays, present_poor=here, label=toy.label, split=toy.columns.split)
    test = toy.split("test").rows
    arguments = ["bench", "--data", "d.npz", "--source", "rich", "--target", "poor", "--methods", "l2", "--dry-run"]
    said = says(*arguments)
    left = f"evaluation leaves out {(~here[test]).sum()} of {len(test)} test rows, which lack 'poor'"
    assert said.out.count(left) == 1


def test_a_dry_run_counts_trials_and_times_steps_with_the_threads_of_the_runs(says, toy_npz, monkeypatch):
    threads = []
    learn = Distillation.training_step

    def step(method, batch):
        threads.append(torch.get_num_threads())
        return learn(method, batch)

    monkeypatch.setattr(Distillation, "training_step", step)
    arguments = ["bench", "--data", toy_npz, "--source", "rich", "--target", "poor", "--methods", "similarity"]
    said = says(*arguments, "--tune", 2, "--threads", 3, "--jobs", 1, "--dry-run")
    assert set(threads) == {3}
    assert ", 8 of them trials" in said.out  # of similarity, scratch and two controls that have settings of their own


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give a suite file, or --data, --source and --target; missing: --data, --source, --target"),
        (["--data", "toy.npz", "--source", "rich"], "missing: --target"),
        (["suite.yaml", "--data", "toy.npz"], "--data goes without a suite file"),
        (["suite.yaml", "--tune", 3], "--tune goes without a suite file; write it into 'suite.yaml'"),
        (["nothing.yaml"], "there is no suite file 'nothing.yaml'; give --data, --source and --target"),
        (["toy.npz"], "'toy.npz' is data, not a suite file; write --data toy.npz --source A --target B"),
        (["--data", "toy.npz", "--source", "rich", "--target", "poor", "--kind", "rich"], "write NAME=KIND, as in"),
        (
            ["--data", "toy.npz", "--source", "rich", "--target", "poor", "--kind", "rich=imag"],
            "audio; received 'imag'",
        ),
        (["suite.yaml", "--kind", "rich=image"], "--kind goes without a suite file"),
        (["--data", "toy.npz", "--source", "rich", "--target", "poor", "--track", "free"], "--track is 'free'"),
        (["--data", "toy.npz", "--source", "rich", "--target", "poor", "--pairing", "clas"], "did you mean 'class'"),
        (["--data", "toy.npz", "--source", "rich", "--target", "pour"], "did you mean 'poor'"),
        (["--data", "toy.npz", "--source", "rich", "--target", "poor", "--methods", "l3"], "called 'l3'; did you mean"),
        (["--data", "toy.npz", "--source", "rich", "--target", "poor", "--methods", ",,"], "--methods names none"),
        (
            ["--data", "toy.npz", "--source", "rich", "--target", "poor", "--methods", "kd"],
            "no method can be served: kd: needs a teacher with logits, and this one gives none; the labelled track may",
        ),
        (
            ["--data", "toy.npz", "--source", "rich", "--target", "poor", "--methods", "mla,msd"],
            "no method can be served: mla, msd: reads labels, which nothing may in the label-free track; the labelled "
            "track has it\n",
        ),
        (["--data", "gone.npz", "--source", "rich", "--target", "poor"], "'gone.npz' is neither a file"),
        (["suite.yaml", "--on", "slurm"], "--on is 'slurm'; it can be ray"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(says, suite, arguments, told):
    said = says("bench", *arguments)
    assert said.code == 2
    assert told in said.err
    assert len(said.err.strip().splitlines()) <= 2
    assert "Traceback" not in said.err
