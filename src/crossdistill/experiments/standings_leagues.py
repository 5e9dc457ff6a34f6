"""Across experiments: ranks and what they prove, mean gains, and how gains move with labels and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from crossdistill.evaluation import (
    Interval,
    average_ranks,
    cliques,
    critical_difference,
    data_sets_needed,
    friedman,
    mean_interval,
    pairwise_signed_rank,
    rank_methods,
    sign_verdict,
)
from crossdistill.experiments.bench_file import BenchResults
from crossdistill.experiments.standings_cells import DISTILLATION, known_mean

LEVEL = 0.95
Cell = Mapping[str, Any]


def leagues(bench: BenchResults, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Give a league for each (track, tuned or not, labels_per_class, evaluation) in which a method ran.

    Experiments with a limit are left out: they are the same data with fewer pairs. Tuned methods stand in a league of
    their own; it is empty, and left out, where none was tuned.
    """
    found: list[dict[str, Any]] = []
    for track in bench.tracks:
        for tuned in (False, True):
            for way in bench.evaluations:
                for k in bench.labels_per_class:
                    mine = [
                        cell
                        for cell in cells
                        if (cell["track"], cell["labels_per_class"], cell["evaluation"]) == (track, k, way)
                        and bench.experiments[cell["experiment"]].limit is None
                    ]
                    league = _league(bench, mine, tuned)
                    if any(bench.methods[row["method"]].role in DISTILLATION for row in league["rows"]):
                        found.append(
                            {"track": track, "tuned": tuned, "evaluation": way, "labels_per_class": k, **league}
                        )
    return found


def _league(bench: BenchResults, cells: Sequence[Cell], tuned: bool) -> dict[str, Any]:
    """Rank methods over the experiments that all of them have, and average their gains."""
    by_method: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        for row in cell["rows"]:
            by_method.setdefault(row["method"], {})[cell["experiment"]] = row
    methods = [m for m in bench.methods if m in by_method and bench.methods[m].tuned == tuned]
    ceilings = [m for m in bench.methods if m in by_method and bench.methods[m].role == "ceiling"]
    rivals = [m for m in methods if bench.methods[m].role != "ceiling"]
    experiments, sparse = _enough([cell["experiment"] for cell in cells], rivals, by_method)
    ranked = [m for m in rivals if all(e in by_method[m] for e in experiments)]
    left_out = {m: [e for e in experiments if e not in by_method[m]] for m in rivals if m not in ranked}
    ranks = _ranks(np.array([[by_method[m][e]["mean"] for m in ranked] for e in experiments]), ranked, experiments)
    data = {cell["experiment"]: bench.experiments[cell["experiment"]].data for cell in cells}
    rows = [
        {**_row(m, by_method[m], data, experiments), **ranks["of"].get(m, {"average_rank": None, "ranks": None})}
        for m in dict.fromkeys((*rivals, *ceilings))
    ]
    return {
        "experiments": experiments,
        "data_sets": len({data[e] for e in experiments}),
        "sparse_experiments": sparse,
        "left_out": left_out,
        **ranks["tests"],
        "rows": rows,
    }


def _enough(
    experiments: Sequence[str], methods: Sequence[str], found: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """Part experiments in which at least half of the methods have run from those that would empty the ranks."""
    share = {e: sum(e in found[m] for m in methods) / max(1, len(methods)) for e in experiments}
    return [e for e in experiments if share[e] >= 0.5], [e for e in experiments if share[e] < 0.5]


def _ranks(scores: np.ndarray, methods: Sequence[str], experiments: Sequence[str]) -> dict[str, Any]:
    """Rank, test and group; where there is too little to test, say why instead."""
    n, m = len(experiments), len(methods)
    tests: dict[str, Any] = {
        "friedman": None,
        "critical_difference": None,
        "cliques": None,
        "undecided": "",
        "needed": None,
    }
    if n == 0 or m < 2:
        tests["undecided"] = "There are not two methods that ran on the same experiment, so nothing is ranked."
        return {"of": {}, "tests": tests}
    table, mean = rank_methods(scores), average_ranks(scores)
    of = {name: {"average_rank": float(mean[i]), "ranks": table[:, i].tolist()} for i, name in enumerate(methods)}
    tests["needed"] = data_sets_needed(m, level=LEVEL)
    if n > 1:
        found = asdict(friedman(scores))
        tests["friedman"] = {key: value if np.isfinite(value) else None for key, value in found.items()}
        tests["critical_difference"] = critical_difference(m, n, level=LEVEL)
    if n < tests["needed"]:
        tests["undecided"] = (
            f"Signed-rank tests of all pairs of {m} methods, Holm-adjusted, can find no difference on fewer than "
            f"{tests['needed']} experiments, whatever the scores; this league has {n}. "
            "The order is what was seen, not what was proved."
        )
    else:
        apart = pairwise_signed_rank(scores) < 1 - LEVEL
        tests["cliques"] = [[methods[i] for i in group] for group in cliques(mean, apart)]
        tests["different"] = [[methods[i], methods[j]] for i, j in zip(*np.nonzero(np.triu(apart)), strict=True)]
    return {"of": of, "tests": tests}


def _row(
    method: str, found: Mapping[str, Mapping[str, Any]], data: Mapping[str, str], experiments: Sequence[str]
) -> dict[str, Any]:
    """Average a method over the league's experiments; those it lacks are left out, and counted."""
    mine = {e: found[e] for e in experiments if e in found}
    gains = {e: row["against_control"] for e, row in mine.items() if row["against_control"] is not None}
    verdicts = [sign_verdict(Interval(c["difference"], c["low"], c["high"], 1)) for c in gains.values()]
    seeds = [row["seeds"] for row in mine.values()]
    only = next(iter(mine.values())) if len(mine) == 1 else None
    return {
        "method": method,
        "experiments": len(mine),
        "seeds": [min(seeds), max(seeds)] if seeds else None,
        "mean": float(np.mean([row["mean"] for row in mine.values()])) if mine else None,
        "low": only["low"] if only else None,
        "high": only["high"] if only else None,
        "macro_f1": known_mean(row["macro_f1"] for row in mine.values()),
        "gain": _gain([(data[e], c) for e, c in gains.items()]),
        "helped": verdicts.count("helped"),
        "undecided": verdicts.count("undecided"),
        "hurt": verdicts.count("hurt"),
        "seconds": known_mean(row["seconds"] for row in mine.values()),
        "cpu_seconds": known_mean(row["cpu_seconds"] for row in mine.values()),
    }


def _gain(gains: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Average gains over experiments, with Student's interval over them and over data sets where some share data.

    One experiment alone has the bounds of its own comparison, as far as they reach over seeds and over test items.
    """
    if not gains:
        return None
    over = mean_interval([c["difference"] for _, c in gains], kind="t over experiments")
    names = dict.fromkeys(name for name, _ in gains)
    by_data = mean_interval([float(np.mean([c["difference"] for name, c in gains if name == one])) for one in names])
    alone = gains[0][1] if len(gains) == 1 else None
    return {
        "value": over.value,
        "low": alone["low"] if alone else over.low,
        "high": alone["high"] if alone else over.high,
        "over": "seeds and test items" if alone else "experiments",
        "experiments": over.n,
        "data_sets": by_data.n,
        "over_data": [by_data.low, by_data.high] if by_data.bounded and by_data.n < over.n else None,
    }


def label_curves(
    bench: BenchResults, found: Sequence[Mapping[str, Any]], cells: Sequence[Cell]
) -> list[dict[str, Any]]:
    """Give each method's mean gain against the number of labels, over the experiments that have it at every number."""
    curves: list[dict[str, Any]] = []
    for track, tuned, way in dict.fromkeys((x["track"], x["tuned"], x["evaluation"]) for x in found):
        gains: dict[str, dict[int | None, dict[str, float]]] = {}
        for cell in cells:
            facts = bench.experiments[cell["experiment"]]
            if (cell["track"], cell["evaluation"], facts.limit) != (track, way, None):
                continue
            for row in cell["rows"]:
                if row["against_control"] is not None and bench.methods[row["method"]].tuned == tuned:
                    here = gains.setdefault(row["method"], {}).setdefault(cell["labels_per_class"], {})
                    here[cell["experiment"]] = row["against_control"]["difference"]
        for method, by_labels in gains.items():
            shared = set[str].intersection(*(set(at) for at in by_labels.values()))
            if len(by_labels) > 1 and shared:
                points: list[dict[str, Any]] = []
                for k in sorted(by_labels, key=lambda k: np.inf if k is None else k):
                    interval = mean_interval([by_labels[k][e] for e in sorted(shared)])
                    points.append(
                        {"labels_per_class": k, "gain": interval.value, "low": interval.low, "high": interval.high}
                    )
                head = {"track": track, "tuned": tuned, "evaluation": way, "method": method}
                curves.append({**head, "experiments": len(shared), "points": points})
    return curves


def pair_curves(bench: BenchResults, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Give each method's gain against the number of training pairs, in families that were run with several numbers.

    The bounds reach as far as those over seeds and over test items.
    """
    points: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        facts = bench.experiments[cell["experiment"]]
        for row in cell["rows"]:
            c = row["against_control"]
            if c is not None:
                key = (
                    cell["track"],
                    bench.methods[row["method"]].tuned,
                    cell["evaluation"],
                    cell["labels_per_class"],
                    facts.family,
                    row["method"],
                )
                gain = {
                    "pairs": facts.pairs,
                    "gain": c["difference"],
                    "low": c["low"],
                    "high": c["high"],
                    "seeds": c["seeds"],
                }
                points.setdefault(key, []).append(gain)
    names = ("track", "tuned", "evaluation", "labels_per_class", "family", "method")
    return [
        {**dict(zip(names, key, strict=True)), "points": sorted(line, key=lambda point: point["pairs"])}
        for key, line in points.items()
        if len({point["pairs"] for point in line}) > 1
    ]
