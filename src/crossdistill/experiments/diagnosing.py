"""What `crossdistill diagnose` is asked about, as arrays: from NPY files, or from an experiment's data and teachers.

An experiment's student is not trained here. Its teachers are, where the file trains them, in the folder where a later
`crossdistill run` finds them; of labels only those are read that the experiment's first seed evaluates with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.data import PairedDataset
from crossdistill.data.arrays import read_features, read_groups, read_labels
from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation import embed
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.listening import LISTEN
from crossdistill.experiments.pool import limited_threads, shared_out
from crossdistill.experiments.specs import Experiment
from crossdistill.files import only_one
from crossdistill.objectives import generic_features

Rows = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Question:
    """Arrays of pairs, for `crossdistill.diagnostics.diagnosis.diagnose`.

    Attributes:
        sources: Candidate teacher to its embedding (n, any) of the pairs' source side.
        target: (n, D).
        labels: (n,) int64, -1 where unknown; None without labels.
        groups: (n,) int64, or None.
        splits: (n,), or None.
        about: What was read, for the page: a word and its value.
    """

    sources: Mapping[str, Rows]
    target: Rows
    labels: NDArray[np.int64] | None
    groups: NDArray[np.int64] | None
    splits: NDArray[np.int64] | None
    about: Mapping[str, str]


def from_files(
    sources: Mapping[str, Path], target: Path, *, labels: Path | None, groups: Path | None, splits: Path | None
) -> Question:
    """Read NPY files whose row i is pair i.

    Raises:
        DataError: If a file is missing, broken, no such array, or has another number of rows; the message names it.
    """
    x = read_features(target)
    embeddings = {name: read_features(path) for name, path in sources.items()}
    for name, path in sources.items():
        if len(embeddings[name]) != len(x):
            raise DataError(
                f"{path}: {len(embeddings[name])} rows, and {target} has {len(x)}; row i of both must be one pair"
            )
    given = {"target": target, "labels": labels, "groups": groups, "splits": splits}
    return Question(
        embeddings,
        x,
        None if labels is None else read_labels(labels, len(x))[0],
        None if groups is None else read_groups(groups, len(x)),
        None if splits is None else read_groups(splits, len(x)),
        {f"source {name}": str(path) for name, path in sources.items()}
        | {word: str(path) for word, path in given.items() if path is not None},
    )


def from_experiment(experiment: Experiment, folder: Path, *, listen: LISTEN | None = None) -> Question:
    """Embed an experiment's training pairs with each of its teachers, and describe the target side without learning.

    Args:
        experiment: Checked.
        folder: Where a teacher that the file trains is trained, or found.
        listen: Told of its training.

    Raises:
        ConfigError: If the experiment names no teacher, or another process works in the folder.
        DataError: If no pair has both modalities.
        CrossDistillError: If something else does not fit.
    """
    with only_one(folder), limited_threads(shared_out(1, None, 1)[1]):  # as `crossdistill run` would train it
        return of_bench(Bench(experiment, folder), experiment.seeds[0], listen=listen)


def of_bench(bench: Bench, seed: int, *, listen: LISTEN | None = None) -> Question:
    """Ask about an experiment whose data are at hand; see `from_experiment`."""
    spec = bench.experiment.data
    stages = [*bench.experiment.stages.values(), *bench.experiment.compare.values()]
    names = dict.fromkeys(stage.teacher for stage in stages if stage.teacher and not stage.fused)
    if not names:
        where = bench.experiment.document.where(("stages",))
        raise ConfigError(
            f"{where}: no stage has a teacher of '{spec.source}' alone to be diagnosed; name one, or give arrays with "
            "--source and --target"
        )
    rows = bench.train.having(spec.source, spec.target)
    if not len(rows):
        raise DataError(f"'{bench.data.name}': no training pair has both '{spec.source}' and '{spec.target}'")
    sources: dict[str, Rows] = {}
    for name in names:
        arm = bench.teacher_arm(bench.experiment.stages[name])
        network = bench.product(arm, seed, listen=listen)
        sources[name] = embed(network, rows.samples(spec.source)).astype(np.float64)
    target = np.concatenate([generic_features(x).numpy() for x in rows.samples(spec.target)]).astype(np.float64)
    about = {
        "data": str(spec.name),
        "source": f"{spec.source}, {bench.data.modality(spec.source).kind}",
        "target": f"{spec.target}, {bench.data.modality(spec.target).kind}, as generic features",
        "seed": str(seed),
    }
    return Question(sources, target, _labels(bench, rows, seed), _groups(rows), None, about)


def _labels(bench: Bench, rows: PairedDataset, seed: int) -> NDArray[np.int64] | None:
    if bench.train.label is None or not bench.train.labelled.any():
        return None
    few: Any = bench.label_rows(seed)
    known = np.full(len(rows), -1, dtype=np.int64)
    mine = np.isin(rows.rows, few.rows)
    label = rows.label
    assert label is not None
    known[mine] = label[mine]
    return known


def _groups(rows: PairedDataset) -> NDArray[np.int64] | None:
    return None if rows.group is None else rows.group.astype(np.int64)
