"""Experiments on data of which three pairs in ten lack a modality, from a file to the results."""

import numpy as np
import pytest
import torch
from absent import lacking, who_is_there
from toy_experiment import EXPERIMENT

from crossdistill.data import PairedDataset
from crossdistill.errors import DataError
from crossdistill.evaluation import accuracy
from crossdistill.experiments import Bench, load_student, parse_experiment, plan, run_experiment
from crossdistill.experiments.judge import features

LEAN = EXPERIMENT.replace("seeds: 2", "seeds: 1").replace("fine_tune_steps: 5", "ways: [linear]")
LEAN = LEAN.replace("batch_size: 32", "batch_size: 16")
STAGES = LEAN[LEAN.index("stages:") : LEAN.index("compare")]


def archive(toy, path, *absent):
    """An archive of the toy pairs in which the modalities named lack three rows in ten."""
    arrays = {name: array.copy() for name, array in toy.columns.arrays.items()}
    present = {name: here for name, here in who_is_there(300).items() if name in absent}
    for name, here in present.items():
        arrays[name][~here] = np.nan
    masks = {f"present_{name}": here for name, here in present.items()}
    np.savez(path, **arrays, **masks, label=toy.label, split=toy.columns.split)
    return present


def experiment(path, method=""):
    text = LEAN.replace("name: toy", f"name: {path}")
    if method:
        text = text.replace(STAGES, f"stages: {{all: {{method: {method}, epochs: 3, batch_size: 8}}}}\n")
        text = text.replace("compare: [l2]\n", "").replace("labels_per_class: 3", "labels_per_class: 8")
    return parse_experiment(text)


@pytest.mark.parametrize("method", ["mind", "mla", "msd", "cmd_skeleton"])
def test_methods_of_several_modalities_run_where_the_source_is_absent_in_some(method, toy, tmp_path):
    present = archive(toy, tmp_path / "d.npz", "rich")
    made = experiment(tmp_path / "d.npz", method)
    results = run_experiment(made, tmp_path / "out")
    assert results["methods"][method]["role"] == "method"
    assert all(np.isfinite(row["value"]) for row in results["rows"])
    bench = Bench(made, tmp_path / "out")
    arm = plan(bench).arms[0]
    batch = next(bench.stage_data(arm, 0).loader({"rich": 1, "poor": 1}, batch_size=32, seed=0).epoch(0))
    assert not batch["present"]["rich"].all()
    trained, start = bench.product(arm, 0).state_dict(), bench.encoder("poor", 0).state_dict()
    assert any(not torch.equal(trained[key], start[key]) for key in start)
    assert load_student(tmp_path / "out" / "student").class_names
    judged = np.load(tmp_path / "out" / "predictions" / "teacher-0.npz")["rows"]
    assert np.array_equal(judged, 200 + np.flatnonzero(present["rich"][200:]))


def test_a_distillation_where_each_is_absent_in_some(toy, tmp_path):
    present = archive(toy, tmp_path / "d.npz", "rich", "poor")
    rich, poor, split = present["rich"], present["poor"], toy.columns.split
    made = experiment(tmp_path / "d.npz")
    results = run_experiment(made, tmp_path / "out")
    test = np.flatnonzero(poor & (split == 2))
    both = np.flatnonzero(rich & poor & (split == 2))
    assert results["data"]["warnings"][-2:] == [
        f"evaluation leaves out {100 - len(test)} of 100 test rows, which lack 'poor'",
        f"the teacher is judged on the {len(both)} of {len(test)} that have 'rich'",
    ]
    bench = Bench(made, tmp_path / "out")
    arms = {arm.name: arm for arm in plan(bench).arms}
    train = split == 0
    rows = {name: bench.stage_data(arms[name], 0).rows for name in ("similarity", "shuffled_pairs", "target_ssl")}
    assert np.array_equal(rows["similarity"], np.flatnonzero(rich & poor & train))
    assert np.array_equal(rows["shuffled_pairs"], rows["similarity"])
    assert np.array_equal(rows["target_ssl"], np.flatnonzero(poor & train))
    assert np.array_equal(bench.stage_data(bench.teaching(), 0).rows, np.flatnonzero(rich & train))
    assert poor[bench.label_rows(0).rows].all()
    assert rich[bench.label_rows(0, "rich").rows].all()
    correct = {}
    for name, expected in (("similarity", test), ("raw_features", test), ("teacher", both)):
        kept = np.load(tmp_path / "out" / "predictions" / f"{name}-0.npz")
        assert np.array_equal(kept["rows"], expected)
        assert np.array_equal(kept["label"], toy.label[expected])
        correct[name] = kept["linear"] == kept["label"]
        (row,) = (r for r in results["rows"] if r["method"] == name and r["metric"] == "accuracy")
        assert row["value"] == pytest.approx(accuracy(kept["linear"], kept["label"]))
    against = {c["against"]: c["difference"] for c in results["comparisons"] if c["method"] == "similarity"}
    shared = correct["similarity"][np.isin(test, both)]
    assert against["teacher"] == pytest.approx(shared.mean() - correct["teacher"].mean())
    assert against["raw_features"] == pytest.approx(correct["similarity"].mean() - correct["raw_features"].mean())
    evidence = np.load(tmp_path / "out" / "evidence.npz")
    assert len(evidence["map_teacher"]) == len(evidence["map_student"]) == len(both)
    student = load_student(tmp_path / "out" / "student")
    assert np.array_equal(
        features(student.encoder, bench.test, "poor"),
        features(bench.product(arms["similarity"], 0), bench.test, "poor"),
    )


def test_a_source_that_the_test_does_not_have_leaves_the_teacher_out(toy, tmp_path):
    privileged = toy.columns.split < 2
    data = PairedDataset(
        toy.columns.arrays, toy.modalities, name="toy", label=toy.label, split=toy.columns.split,
        present={"rich": privileged},
    )  # fmt: skip
    results = run_experiment(parse_experiment(LEAN), tmp_path, data=data)
    assert results["skipped"] == [
        {"method": "teacher", "reason": "no test row that has 'poor' has 'rich'"},
    ]
    assert "similarity" in results["methods"]
    whole = run_experiment(parse_experiment(LEAN), tmp_path / "whole", data=toy)
    values = [{r["method"]: r["value"] for r in one["rows"] if r["metric"] == "accuracy"} for one in (results, whole)]
    assert values[0] == {name: value for name, value in values[1].items() if name != "teacher"}


def test_pairs_that_share_no_row_are_told_before_training(toy, tmp_path):
    first = np.arange(300) % 2 == 0
    data = PairedDataset(
        toy.columns.arrays, toy.modalities, name="toy", label=toy.label, split=toy.columns.split,
        present={"rich": first, "poor": ~first},
    )  # fmt: skip
    with pytest.raises(DataError, match="'toy': 0 training pairs have the modalities that similarity needs"):
        run_experiment(parse_experiment(LEAN), tmp_path, data=data)


def test_a_run_repeats(toy, tmp_path):
    rows = [run_experiment(parse_experiment(LEAN), tmp_path / k, data=lacking(toy))["rows"] for k in "ab"]
    assert rows[0] == rows[1]
