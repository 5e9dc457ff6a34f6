"""Classes by the hundred: nothing of the run, its files or its page grows with classes times rows."""

import numpy as np
import pytest

from crossdistill.data import load
from crossdistill.experiments import parse_experiment, run_experiment
from crossdistill.report import write_report

CLASSES = 150
EXPERIMENT = """\
data: {name: many.npz, source: rich, target: poor}
networks: {rich: {hidden: [8], dim: 4}, poor: {hidden: [8], dim: 4}}
stages:
  teacher: {method: simclr, modality: rich, epochs: 1, batch_size: 128}
  student: {method: distillation, teacher: teacher, objectives: {similarity: 1.0}, epochs: 1, batch_size: 128}
compare: []
evaluate: {labels_per_class: 1, ways: [WAYS], fewer: take}
seeds: 1
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Four rows a class, one of them for the test; a third has no label, but for one training row a class."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(CLASSES), 4)
    latent = rng.normal(size=(CLASSES, 6))[label] + 0.2 * rng.normal(size=(len(label), 6))
    rich, poor = ((latent @ rng.normal(size=(6, d))).astype("float32") for d in (8, 5))
    absent = (rng.random(len(label)) < 0.4) & (np.arange(len(label)) % 4 > 0)
    names = np.array([f"class {c}" for c in range(CLASSES)])
    split, label = np.tile([0, 0, 0, 2], CLASSES), np.where(absent, -1, label)
    np.savez(folder / "many.npz", rich=rich, poor=poor, label=label, split=split, class_names=names)
    return load(folder / "many.npz"), int((label[split == 2] >= 0).sum())


def test_they_run_and_their_page_stays_small(many, tmp_path):
    data, tested = many
    results = run_experiment(parse_experiment(EXPERIMENT.replace("WAYS", "linear, knn")), tmp_path, data=data)
    warnings = results["data"]["warnings"]
    assert results["data"]["classes"] == CLASSES
    assert f"evaluation leaves out {CLASSES - tested} of {CLASSES} test rows, which have no label" in warnings
    assert len(warnings) <= 13
    for name in ("results.json", "evidence.npz", "experiment.yaml"):
        assert (tmp_path / name).stat().st_size < 100_000
    assert write_report(tmp_path).stat().st_size < 500_000
    scores = {(r["method"], r["evaluation"]): r["value"] for r in results["rows"] if r["metric"] == "accuracy"}
    assert scores["raw_features", "knn"] > 10 / CLASSES  # far beyond chance
    alone = run_experiment(parse_experiment(EXPERIMENT.replace("WAYS", "knn")), tmp_path, data=data)
    assert {r["evaluation"] for r in alone["rows"]} == {"knn"}
    assert all(r["value"] == scores[r["method"], "knn"] for r in alone["rows"] if r["metric"] == "accuracy")
