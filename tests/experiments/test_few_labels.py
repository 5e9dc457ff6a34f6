"""Pairs many, labels few: what the package is for."""

import numpy as np

from crossdistill.data import load
from crossdistill.experiments import parse_experiment, run_experiment


def test_data_of_which_few_rows_are_labelled_run_from_end_to_end(toy, tmp_path):
    from toy_experiment import EXPERIMENT

    label = toy.label.copy()
    split = toy.columns.split
    train = np.flatnonzero(split == 0)
    bare = np.setdiff1d(train, np.concatenate([train[label[train] == c][:4] for c in range(4)]))
    label[bare] = -1
    label[split == 1] = -1
    np.savez(tmp_path / "few.npz", **toy.columns.arrays, label=label, split=split)
    data = load(tmp_path / "few.npz")
    assert int(data.split("train").labelled.sum()) == 16
    text = EXPERIMENT.replace("labels_per_class: 3", "labels_per_class: null").replace("seeds: 2", "seeds: 1")
    results = run_experiment(parse_experiment(text), tmp_path / "run", data=data)
    assert results["data"]["counts"]["train"] == {"pairs": 160, "labelled": 16}
    assert results["verdict"] in ("helped", "hurt", "undecided")
    taught = text.replace("method: simclr", "method: supervised").replace(
        "epochs: 2, batch_size: 32", "epochs: 2, batch_size: 8"
    )
    assert run_experiment(parse_experiment(taught), tmp_path / "run", data=data)["rows"]
