"""What the report shows beside numbers: where test samples lie in each space, and what a student retrieves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossdistill.data import draws
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.judge import features
from crossdistill.files import whole_file

MAP_POINTS = 1000
QUERIES, NEIGHBOURS = 6, 6


def write_evidence(bench: Bench, arms: Sequence[Arm], seed: int) -> None:
    """Write DIR/evidence.npz from the products of one seed.

    Args:
        bench: Whose arms are finished.
        arms: All arms; the method's student, the teacher and the target-only control are shown.
        seed: Whose networks are shown.
    """
    source, target = bench.experiment.data.source, bench.experiment.data.target
    by_name = {arm.name: arm for arm in arms}
    both = bench.train.having(source, target)
    test = bench.test.having(source) if "teacher" in by_name else bench.test
    train = both if len(both) else bench.train.having(target)  # what is retrieved is shown in both, if it can be
    label, train_label = test.label, train.label
    assert label is not None
    assert train_label is not None
    student = bench.product(arms[0], seed)
    control = bench.product(by_name["target_ssl"], seed)
    teacher = bench.ceiling(seed) if "teacher" in by_name else None
    order = draws.permutation(seed, 0, len(test), "map")[:MAP_POINTS]
    shown = test.subset(np.sort(order))
    assert shown.label is not None
    queries = _one_per_class(label, draws.permutation(seed, 0, len(test), "queries"))[:QUERIES]
    query_x, gallery = features(student, test.subset(queries), target), features(student, train, target)
    nearest = np.argsort(-_unit(query_x) @ _unit(gallery).T, axis=1, kind="stable")[:, :NEIGHBOURS]
    flat = nearest.reshape(-1)
    specs = {"source": _facts(bench, source), "target": _facts(bench, target)}
    arrays: dict[str, Any] = {
        "map_label": shown.label,
        **({} if teacher is None else {"map_teacher": features(teacher, shown, source)}),
        "map_student": features(student, shown, target),
        "map_control": features(control, shown, target),
        "map_control_name": np.array("target_ssl"),
        "query_target": test.raw(target, queries),
        "query_label": label[queries],
        "retrieved_source": train.raw(source, flat).reshape(*nearest.shape, *train.raw(source, flat[:1]).shape[1:]),
        "retrieved_target": train.raw(target, flat).reshape(*nearest.shape, *train.raw(target, flat[:1]).shape[1:]),
        "retrieved_label": train_label[nearest],
        "class_names": np.array(bench.data.class_names or [str(c) for c in range(bench.data.classes)]),
        "modalities": np.array(json.dumps(specs)),
    }
    with whole_file(bench.folder / "evidence.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def _one_per_class(label: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Give positions in the given order, the first of each class before any second."""
    seen: dict[int, int] = {}
    rank = np.empty(len(order), dtype=np.int64)
    for place, position in enumerate(order):
        klass = int(label[position])
        rank[place] = seen.get(klass, 0)
        seen[klass] = seen.get(klass, 0) + 1
    return order[np.argsort(rank, kind="stable")]


def _facts(bench: Bench, name: str) -> dict[str, Any]:
    modality = bench.data.modality(name)
    return {"name": name, "kind": modality.kind, "shape": list(modality.shape), "channels": list(modality.channels)}
