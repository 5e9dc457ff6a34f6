"""One experiment, one number of labels, one evaluation: every method's mean, and what its differences are worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from crossdistill.evaluation import (
    Interval,
    bootstrap_differences,
    holm,
    mean_interval,
    minimum_detectable_difference,
    paired_difference,
    paired_p_value,
)
from crossdistill.experiments.bench_file import BenchResults, BenchRun
from crossdistill.experiments.results import LEAST_GROUPS, METRIC
from crossdistill.files import filed

DISTILLATION = ("method", "baseline")
"""Roles that distil: they are compared; a control is what they must beat, a ceiling no rival."""

BySeed: TypeAlias = Mapping[int, float]
View: TypeAlias = tuple[str, int | None, str]
"""(experiment, labels_per_class, evaluation)"""
Costs: TypeAlias = Mapping[tuple[str, str], Mapping[str, float | None]]
"""Mean `seconds` and `cpu_seconds` of the finished runs of (experiment, method)"""


class Scores:
    """A suite's rows of one metric, by view, method and seed."""

    def __init__(self, bench: BenchResults, metric: str = METRIC) -> None:
        self._rows: dict[View, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for row in sorted(bench.rows, key=lambda row: row.seed):  # a sum must not depend on the order of the file
            if row.metric == metric:
                self._rows[row.experiment, row.labels_per_class, row.evaluation][row.method][row.seed] = row.value

    def at(self, view: View) -> Mapping[str, BySeed]:
        """Give scores by method and seed; nothing where nothing ran."""
        return self._rows.get(view, {})


def mean_costs(bench: BenchResults) -> Costs:
    """Average the wall and processor seconds of finished runs over seeds."""
    runs: dict[tuple[str, str], list[BenchRun]] = defaultdict(list)
    for run in bench.runs:
        if run.status == "done":
            runs[run.experiment, run.method].append(run)
    return {
        key: {
            "seconds": known_mean(run.seconds for run in mine),
            "cpu_seconds": known_mean(run.cpu_seconds for run in mine),
        }
        for key, mine in runs.items()
    }


def labels_word(labels_per_class: int | None) -> str:
    """Write a number of labels as the names of predictions do: "5", "all"."""
    return "all" if labels_per_class is None else str(labels_per_class)


@dataclass
class Answers:
    """What was predicted in one experiment, right or wrong by item; every file is read once.

    Attributes:
        label: Of the test items (n,); empty where there are no predictions.
        groups: What an item belongs to (n,), where there are enough groups to draw from.
        right: By method, seed and "evaluation@labels", bool (n,).
        lost: Files that are missing, broken, or of other test items: their runs have no interval over items.
    """

    label: NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    groups: NDArray[Any] | None = None
    right: dict[tuple[str, int], dict[str, NDArray[np.bool_]]] = field(default_factory=lambda: {})
    lost: list[str] = field(default_factory=lambda: [])

    @classmethod
    def read(cls, folder: Path, runs: Iterable[tuple[str, int]]) -> Answers:
        """Read predictions/<experiment>/<method>-<seed>.npz of each run (method, seed)."""
        answers, rows = cls(), None
        for method, seed in runs:
            path = folder / f"{filed(method)}-{seed}.npz"
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    stored = {name: arrays[name] for name in arrays.files}
                label, items = stored.pop("label"), stored.pop("rows")
                group = stored.pop("group", None)
            except Exception:  # numpy, zipfile and zlib raise a dozen kinds for broken archives
                answers.lost.append(path.name)
                continue
            if rows is None:
                rows, answers.label = items, label
                enough = group is not None and len(np.unique(group)) >= LEAST_GROUPS
                answers.groups = group if enough else None
            elif not (np.array_equal(rows, items) and np.array_equal(answers.label, label)):
                answers.lost.append(path.name)
                continue
            answers.right[method, seed] = {
                name: column == label for name, column in stored.items() if "@" in name and column.shape == label.shape
            }
        return answers

    def difference(self, a: str, b: str, seeds: Sequence[int], way: str) -> NDArray[np.float64] | None:
        """Give a minus b by seed and item, (seeds, n); None where a seed has no predictions."""
        pairs = [(self.right.get((a, s), {}).get(way), self.right.get((b, s), {}).get(way)) for s in seeds]
        if not pairs or any(x is None or y is None for x, y in pairs):
            return None
        first, second = (np.stack([x for x in side if x is not None]) for side in zip(*pairs, strict=True))
        return first.astype(np.float64) - second


def known_mean(values: Iterable[float | None]) -> float | None:
    """Average what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def rival(means: Mapping[str, float], names: Iterable[str]) -> str | None:
    """Give the best of `names` by mean; the first of those that tie."""
    return max((name for name in names if name in means), key=lambda name: means[name], default=None)


def experiment_cells(
    bench: BenchResults, name: str, scores: Scores, second: Scores, costs: Costs, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Give all cells of one experiment, the headline method's per-class gains, and files that could not be used.

    Args:
        bench: The suite.
        name: Of the experiment.
        scores: Accuracy.
        second: Macro F1.
        costs: Seconds of its runs.
        folder: predictions/<experiment>.
    """
    views: list[View] = [(name, k, way) for k in bench.labels_per_class for way in bench.evaluations]
    views = [view for view in views if scores.at(view)]
    runs = dict.fromkeys(
        (m, s) for v in views for m, row in scores.at(v).items() for s in row if bench.methods[m].role != "ceiling"
    )
    answers = Answers.read(folder, runs)
    cells = [_cell(bench, view, scores.at(view), second.at(view), costs) for view in views]
    _over_items(cells, answers)
    gains = _class_gains(bench, cells, answers)
    for comparison in (c for cell in cells for row in cell["rows"] for c in _comparisons(row)):
        comparison["seeds"] = len(comparison["seeds"])  # which they are, results.json says
    return cells, gains, answers.lost


def _cell(
    bench: BenchResults, view: View, table: Mapping[str, BySeed], second: Mapping[str, BySeed], costs: Costs
) -> dict[str, Any]:
    name, k, way = view
    means = {method: float(np.mean(list(table[method].values()))) for method in bench.methods if method in table}
    controls = [m for m in means if bench.methods[m].role == "control"]
    rows: dict[str, dict[str, Any]] = {}
    for method, mean in means.items():
        interval = mean_interval([table[method][seed] for seed in sorted(table[method])])
        low, high = _within(interval)
        rows[method] = {
            "method": method,
            "seeds": interval.n,
            "mean": mean,
            "low": low,
            "high": high,
            "macro_f1": known_mean(second.get(method, {}).values()),
            **costs.get((name, method), {"seconds": None, "cpu_seconds": None}),
            "against_control": None,
            "against_other": None,
        }
    best: dict[str, str | None] = {}
    for tuned in (False, True):
        mine = [m for m in means if bench.methods[m].role in DISTILLATION and bench.methods[m].tuned == tuned]
        # an untuned control is fair game for tuned methods only if no tuned one is better; never the other way round
        control = rival(means, [c for c in controls if tuned or not bench.methods[c].tuned])
        best["tuned" if tuned else "default"] = control
        for key, against in (
            ("against_control", dict.fromkeys(mine, control)),
            ("against_other", {m: rival(means, [o for o in mine if o != m]) for m in mine}),
        ):
            found = {m: _over_seeds(table, m, other) for m, other in against.items() if other is not None}
            _adjust(list(found.values()))
            for m, comparison in found.items():
                rows[m][key] = comparison
    return {
        "track": bench.experiments[name].track,
        "experiment": name,
        "labels_per_class": k,
        "evaluation": way,
        "best_control": best,
        "rows": list(rows.values()),
    }


def _within(interval: Interval) -> tuple[float | None, float | None]:
    """Give the bounds of a mean share, within 0 to 1; none where all seeds agree, which tells of no other."""
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return None, None
    return max(0.0, interval.low), min(1.0, interval.high)


def _over_seeds(table: Mapping[str, BySeed], method: str, against: str) -> dict[str, Any] | None:
    """Compare two methods on the seeds that both have; differences that are all equal say nothing of seeds."""
    seeds = sorted(set(table[method]) & set(table[against]))
    if not seeds:
        return None
    a, b = ([table[name][seed] for seed in seeds] for name in (method, against))
    spread = float(np.subtract(a, b).round(12).std(ddof=1)) if len(seeds) > 1 else 0.0
    interval = paired_difference(a, b)
    known = spread > 0
    return {
        "against": against,
        "difference": interval.value,
        "seeds": seeds,
        "over_seeds": [interval.low, interval.high] if known else None,
        "over_items": None,
        "items": None,
        "drawn": None,
        "detectable": minimum_detectable_difference(spread, len(seeds)) if known else None,
        "p": paired_p_value(a, b) if known else None,
        "p_holm": None,
    }


def _comparisons(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row[key] for key in ("against_control", "against_other") if row[key] is not None]


def _adjust(comparisons: Sequence[dict[str, Any] | None]) -> None:
    tested = [c for c in comparisons if c is not None and c["p"] is not None]
    if tested:
        for comparison, p in zip(tested, holm([c["p"] for c in tested]), strict=True):
            comparison["p_holm"] = float(p)


def _over_items(cells: Sequence[dict[str, Any]], answers: Answers) -> None:
    """Put the bootstrap over items into every comparison of an experiment: one set of draws serves them all."""
    asked: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        way = f"{cell['evaluation']}@{labels_word(cell['labels_per_class'])}"
        for row in cell["rows"]:
            for comparison in _comparisons(row):
                asked[row["method"], comparison["against"], tuple(comparison["seeds"]), way].append(comparison)
    columns = {key: answers.difference(*key) for key in asked}
    known = [(key, d.mean(axis=0)) for key, d in columns.items() if d is not None]
    if known:
        intervals = bootstrap_differences(np.column_stack([d for _, d in known]), groups=answers.groups)
        for (key, _), interval in zip(known, intervals, strict=True):
            for comparison in asked[key]:
                if abs(comparison["difference"] - interval.value) > 1e-6:  # predictions of other runs than the scores'
                    answers.lost.append(f"those of {key[0]} or {key[1]} ({key[3]}), which do not give their scores")
                    continue
                comparison["over_items"] = [interval.low, interval.high] if interval.bounded else None
                comparison["items"] = interval.n
                comparison["drawn"] = "items" if answers.groups is None else "groups"
    for comparisons in asked.values():
        for comparison in comparisons:
            sides = [side for side in (comparison["over_seeds"], comparison["over_items"]) if side is not None]
            sides = sides if len(comparison["seeds"]) > 1 else []  # what one seed says of others is not known
            comparison["low"] = min((low for low, _ in sides), default=None)
            comparison["high"] = max((high for _, high in sides), default=None)


def _class_gains(bench: BenchResults, cells: Sequence[dict[str, Any]], answers: Answers) -> list[dict[str, Any]]:
    """Give the headline method's gain by class over the best control, in the headline evaluation.

    The intervals are Student's over seeds alone: a class has few test items, and what they add is not in them.
    """
    found: list[dict[str, Any]] = []
    for cell in cells:
        row = next((row for row in cell["rows"] if row["method"] == bench.headline), None)
        comparison = row["against_control"] if row else None
        if row is None or comparison is None or cell["evaluation"] != bench.evaluations[0]:
            continue
        way = f"{cell['evaluation']}@{labels_word(cell['labels_per_class'])}"
        d = answers.difference(row["method"], comparison["against"], comparison["seeds"], way)
        if d is None:
            continue
        classes: list[dict[str, Any]] = []
        names = bench.experiments[cell["experiment"]].class_names
        for value in np.unique(answers.label):
            mine = d[:, answers.label == value]
            interval = mean_interval(mine.mean(axis=1))
            known = interval.bounded and interval.low != interval.high
            label = int(value)
            classes.append(
                {
                    "class": names[label] if 0 <= label < len(names) else str(label),
                    "items": mine.shape[1],
                    "gain": interval.value,
                    "low": interval.low if known else None,
                    "high": interval.high if known else None,
                }
            )
        found.append(
            {
                **{key: cell[key] for key in ("track", "experiment", "labels_per_class", "evaluation")},
                "method": row["method"],
                "against": comparison["against"],
                "seeds": len(comparison["seeds"]),
                "classes": classes,
            }
        )
    return found
