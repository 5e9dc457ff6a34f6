"""Whatever has a name runs from an experiment file, and leaves a student that works without the rest."""

import numpy as np
import pytest
import torch
from toy_experiment import EXPERIMENT

from crossdistill.data import Modality, PairedDataset
from crossdistill.experiments import Bench, load_student, parse_experiment, plan, run_experiment
from crossdistill.experiments.judge import features
from crossdistill.experiments.signatures import parameters_of
from crossdistill.registry import discover

LEAN = EXPERIMENT.replace("seeds: 2", "seeds: 1").replace("fine_tune_steps: 5", "ways: [linear]")
STAGES = LEAN[LEAN.index("stages:") : LEAN.index("compare")]
SEVERAL = [name for name, cls in discover("crossdistill.methods").items() if "encoders" in parameters_of(cls)]
TAUGHT = [
    name
    for name, cls in discover("crossdistill.methods").items()
    if "student" in parameters_of(cls) and "objectives" not in parameters_of(cls)
]
OBJECTIVES = discover("crossdistill.objectives")
SAID = {
    "fsp": "{layers: [[stages.1.0.body, stages.1.0.body], [stages.1, stages.1]]}",  # between two layers: which, is said
    "cmkd_clusters": "{clusters: 9}",
}
MORE = {
    "vid": "{on: maps, layers: [[stages.0, stages.0], [stages.1, stages.1]], layer_weights: [1, 0.5]}",
    "cc": "{form: kernel, kernel: gaussian, order: 2}",
    "ab": "{layers: [[stages.0, stages.0], [stages.1, stages.1]], connector: always}",
}
"""Losses that read or make something else by a parameter."""


@pytest.mark.parametrize("name", SEVERAL)
def test_a_method_of_several_networks_runs_and_its_student_is_rebuilt(name, toy, tmp_path):
    text = LEAN.replace(STAGES, f"stages: {{all: {{method: {name}, epochs: 3, batch_size: 8}}}}\n")
    experiment = parse_experiment(
        text.replace("compare: [l2]\n", "").replace("labels_per_class: 3", "labels_per_class: 8")
    )
    results = run_experiment(experiment, tmp_path, data=toy)
    assert results["methods"][name]["role"] == "method"
    student = load_student(tmp_path / "student")
    bench = Bench(experiment, tmp_path, data=toy)
    trained = bench.product(plan(bench).arms[0], 0)
    test = bench.test.subset(np.arange(20))
    assert np.array_equal(features(student.encoder, test, "poor"), features(trained, test, "poor"))
    np.save(tmp_path / "one.npy", toy.columns.arrays["poor"][0])
    assert student.predict([tmp_path / "one.npy"])[0].label in student.class_names


@pytest.fixture(scope="module")
def pictures():
    """Pairs of small pictures: a bright spot at one of four places, seen clearly and through noise."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 160)
    rich = rng.normal(size=(160, 1, 8, 8)).astype("float32") * 0.1
    rich[np.arange(160), 0, 2 + 4 * (label // 2), 2 + 4 * (label % 2)] += 3
    arrays = {"rich": rich, "poor": rich + rng.normal(size=rich.shape).astype("float32") * 0.3}
    kinds = {name: Modality(name=name, kind="image", shape=(1, 8, 8)) for name in arrays}
    return PairedDataset(arrays, kinds, name="spots", label=label, split=np.repeat([0, 1, 2], [96, 24, 40]))


@pytest.mark.parametrize(
    "said", [*(f"{name}: {SAID.get(name, 1.0)}" for name in OBJECTIVES), *(f"{name}: {MORE[name]}" for name in MORE)]
)
def test_an_objective_trains_a_student_under_its_own_name(said, pictures, tmp_path):
    check_trained(f"method: distillation, teacher: teacher, objectives: {{{said}}}", pictures, tmp_path)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_method_with_a_teacher_trains_a_student_under_its_own_name(name, pictures, tmp_path):
    check_trained(f"method: {name}, teacher: teacher, students: 2", pictures, tmp_path)


def check_trained(stage, pictures, tmp_path):
    text = f"""\
data: {{name: spots, source: rich, target: poor}}
networks: {{rich: {{width: 4, blocks: [1, 1], dim: 8}}, poor: {{width: 4, blocks: [1, 1], dim: 8}}}}
stages:
  teacher: {{method: supervised, modality: rich, epochs: 1, batch_size: 32}}
  student: {{{stage}, epochs: 2, batch_size: 32}}
compare: []
evaluate: {{labels_per_class: 3, ways: [linear]}}
seeds: 1
"""
    bench = Bench(parse_experiment(text), tmp_path, data=pictures)
    arm = plan(bench).arms[0]
    before = bench.encoder("poor", 0).state_dict()
    after = bench.product(arm, 0).state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
