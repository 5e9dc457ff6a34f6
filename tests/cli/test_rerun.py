"""A run repeated from its folder gives the same bits; where it cannot, the reason is named."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from commands import call
from toy_experiment import EXPERIMENT

from crossdistill.cli.rerun import again
from crossdistill.experiments import read_results
from crossdistill.experiments.suite_run import run_suite
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import read_document

LEAN = (
    EXPERIMENT.replace("seeds: 2", "seeds: 1")
    .replace("compare: [l2]", "compare: []")
    .replace("fine_tune_steps: 5", "ways: [linear, knn]")
)


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


@pytest.fixture
def done(says, toy_npz, tmp_path, own):
    """A run with a loss and a teacher of one's own, which its folder must tell apart from others too."""
    module = own(
        """
        from torch import nn
        def net():
            return nn.Sequential(nn.Linear(12, 3))
        """
    )
    torch.save({"0.weight": torch.randn(3, 12), "0.bias": torch.zeros(3)}, tmp_path / "teacher.pt")
    text = LEAN.replace("name: toy", f"name: {toy_npz.name}").replace(
        "{method: simclr, modality: rich, epochs: 2, batch_size: 32}",
        f"{{module: '{module}:net', weights: teacher.pt}}",
    )
    (tmp_path / "mine.yaml").write_text(text)
    assert says("run", "mine.yaml", "seeds=[3]", "--out", "first", "--jobs", 1).code == 0
    return module


def changed(path, **environment):
    """Change what results.json says."""
    results = json.loads(path.read_text())
    results["environment"] |= environment
    results.pop("sha256", None)
    path.write_text(json.dumps(results))


def test_a_rerun_gives_the_same_bits_and_says_what_differs_where_it_does_not(done, says, toy_npz, tmp_path):
    said = says("rerun", "first")
    assert said.code == 0, said
    first, again = read_results(tmp_path / "first"), read_results(tmp_path / "first-again")
    assert first["rows"] == again["rows"]
    assert {row["seed"] for row in first["rows"]} == {3}
    assert f"all {len(first['rows'])} numbers, and the student's weights, are equal to the bit" in said.out
    assert "differs" not in said.err

    results = json.loads((tmp_path / "first/results.json").read_text())
    results["rows"][0]["value"] = float(np.nextafter(results["rows"][0]["value"], 2))
    del results["sha256"]
    (tmp_path / "first/results.json").write_text(json.dumps(results))
    changed(tmp_path / "first/results.json", torch="1.0", threads=7)
    said = says("rerun", "first", "--out", "first-again")
    assert said.code == 3, said
    assert f"not repeated: 1 of {len(first['rows'])} numbers differ" in said.out
    of = "{method} {evaluation} {metric}, seed {seed}: {value:.17g} then".format(**results["rows"][0])
    assert of in said.out
    assert f"torch was 1.0, is {torch.__version__}" in said.err
    assert "differs in the environment: torch was 1.0" in said.out

    own = (tmp_path / f"{done}.py", tmp_path / "teacher.pt")
    own[0].write_text(own[0].read_text() + "\n# another\n")
    said = says("rerun", "first", "--safe")
    assert (said.code, "--safe" in said.err) == (2, True)
    torch.save({"0.weight": torch.randn(3, 12), "0.bias": torch.ones(3)}, own[1])
    said = says("rerun", "first")
    assert said.code == 3
    assert f"differs from then: own was {done}:net " in said.err
    assert "the student's weights differ" in said.out
    shutil.rmtree(tmp_path / "first-again")
    with np.load(toy_npz) as archive:
        arrays = dict(archive)
    arrays["poor"][0, 0] += 1
    np.savez(toy_npz, **arrays)
    said = says("rerun", "first")
    assert said.code == 2
    assert "data.name: 'toy.npz' is not what it was" in said.err
    assert not (tmp_path / "first-again").exists()


def test_a_suite_is_repeated_too(says, toy_npz, tmp_path, capsys):
    described = {
        "methods": ["similarity"],
        "budget": {"steps": 4, "teacher_steps": 4, "batch_size": 32},
        "base": {"evaluate": {"ways": ["linear"]}},
        "experiments": {"toy": {"data": {"name": toy_npz.name, "source": "rich", "target": "poor"}}},
        "labels_per_class": [1],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(described | {"seeds": [4]}))

    def suite(file, out, jobs, threads):
        run_suite(expand(read_document(file), Shelf()), out, jobs=jobs, threads=threads)

    suite(tmp_path / "suite.yaml", tmp_path / "first", 1, None)
    assert again(tmp_path / "first", None, None, pytest.fail, suite)
    rows = read_results(tmp_path / "first-again")["rows"]
    assert rows == read_results(tmp_path / "first")["rows"]
    assert {row["seed"] for row in rows} == {4}
    assert f"repeated: all {len(rows)} numbers are equal to the bit" in capsys.readouterr().out


def test_a_folder_that_keeps_too_little_says_what_is_missing(says, tmp_path):
    assert "has no results.json" in says("rerun", "nowhere").err
    (tmp_path / "first").mkdir()
    for text in ("[]", "{}", "not JSON", '{"rows": [{"value": "high"}], "data": {}, "environment": {}}'):
        (tmp_path / "first/results.json").write_text(text)
        said = says("rerun", "first")
        assert said.code == 2
        assert "holds no results that can be compared" in said.err
    kept = {"rows": [{"value": 0.5}], "data": {}, "environment": {}}
    (tmp_path / "first/results.json").write_text(json.dumps(kept))
    assert "experiment.yaml" in says("rerun", "first").err
    assert "is the run itself" in says("rerun", "first", "--out", "first").err
    (tmp_path / "first/results.json").write_text(json.dumps({**kept, "kind": "bench", "experiments": {}, "missing": 2}))
    assert "2 runs are missing" in says("rerun", "first").err
    shutil.rmtree(tmp_path / "first")
