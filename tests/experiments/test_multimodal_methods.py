"""Methods whose networks read several modalities, from an experiment file to its results."""

import numpy as np
import pytest
import torch
from toy_experiment import EXPERIMENT

from crossdistill.data import PairedDataset
from crossdistill.errors import DataError
from crossdistill.experiments import Bench, parse_experiment, plan, run_experiment

STUDENT = EXPERIMENT[EXPERIMENT.index("stages:") : EXPERIMENT.index("compare")]
LEAN = EXPERIMENT.replace("seeds: 2", "seeds: 1").replace("fine_tune_steps: 5", "ways: [linear]")
TAUGHT = "\n  teacher: {method: supervised, modality: rich, epochs: 2, batch_size: 32}"


def experiment(parameters, teacher=""):
    stage = f"stages:{teacher}\n  student: {{{parameters}, epochs: 2, batch_size: 32}}\n"
    return parse_experiment(LEAN.replace(STUDENT, stage).replace("compare: [l2]\n", ""))


@pytest.mark.parametrize(
    ("parameters", "teacher"),
    [
        ("method: msd, weighting: saliency, teacher_hidden: [8]", ""),
        ("method: c2kd, removal: removed", ""),
        ("method: c2kd, teacher: teacher", TAUGHT),
        ("method: mst_distill, top: 3", ""),
        ("method: mke, teacher: teacher, input_noise: {rich: 0.2, poor: 0.5}", TAUGHT),
    ],
)
def test_they_run_from_a_file(toy, tmp_path, parameters, teacher):
    results = run_experiment(experiment(parameters, teacher), tmp_path, data=toy)
    method = parameters.split(", ")[0].removeprefix("method: ")
    roles = {name: row["role"] for name, row in results["methods"].items()}
    assert roles[method] == "method"
    assert roles["shuffled_pairs"] == "control"
    assert ("random_teacher" in roles) == bool(teacher)
    bench = Bench(experiment(parameters, teacher), tmp_path, data=toy)
    trained, start = bench.product(plan(bench).arms[0], 0).state_dict(), bench.encoder("poor", 0).state_dict()
    assert trained.keys() == start.keys()
    assert any(not torch.equal(trained[key], start[key]) for key in start)
    assert any(row["method"] == method for row in results["rows"])


def test_mke_trains_its_teacher_on_the_few_labels_or_is_refused(toy, tmp_path):
    results = run_experiment(experiment("method: mke"), tmp_path, data=toy)
    assert "random_teacher" not in results["methods"]
    unlabelled = PairedDataset(
        toy.columns.arrays, toy.modalities, name="toy", label=np.where(toy.columns.split == 2, toy.label, -1),
        class_names=tuple("abcd"), split=toy.columns.split,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"none of 160 samples is labelled|has no labels"):
        run_experiment(experiment("method: mke"), tmp_path / "none", data=unlabelled)
