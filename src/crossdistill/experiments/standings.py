"""What a suite's numbers say: DIR/standings.json, from results.json and the predictions, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdistill.experiments.bench_file import AGAIN, BenchResults, parse_bench, read_object
from crossdistill.experiments.results import METRIC
from crossdistill.experiments.standings_cells import Scores, experiment_cells, mean_costs
from crossdistill.experiments.standings_leagues import LEVEL, label_curves, leagues, pair_curves
from crossdistill.files import filed, write_json


def standings(results: Mapping[str, Any] | BenchResults, folder: Path) -> dict[str, Any]:
    """Compute a suite's statistics: in each experiment, and across them.

    Differences are method minus control, or minus the best other distillation method, in accuracy (a share). Which
    control and which other is the best is read off the same test rows, with hindsight: that favours the rival, so gains
    are rather too small than too large. The same hindsight makes the best of many methods look better than it is;
    p-values are therefore Holm-adjusted over the methods of an experiment.

    Two intervals, both 95 %, are kept apart: `over_seeds`, Student's over paired seed differences, and `over_items`, a
    paired bootstrap over test items (groups, where the predictions name ten or more) of the differences averaged over
    seeds. `low` and `high` reach as far as either on each side, and "helped", "undecided" and "hurt" count by them.
    One seed, or seeds that do not differ at all, have no interval over seeds and no p-value; of one seed no
    experiment decides anything, whatever its test items say. Means over experiments have their interval over these.

    Args:
        results: The content of results.json, or what `parse_bench` gave for it.
        folder: DIR, with predictions/; where some are missing, their comparisons have no interval over items.

    Returns:
        A JSON-like object: `cells` (experiment x labels x evaluation, a row a method), `leagues` (ranks and mean gains
        across experiments without a limit, by track, tuned or not, evaluation and labels), `label_curves`,
        `pair_curves`, `class_gains` (of the headline method), `failed`, `skipped` and `notes`.

    Raises:
        DataError: If results.json is not what it should be.
    """
    bench = results if isinstance(results, BenchResults) else parse_bench(results)
    scores, second = Scores(bench), Scores(bench, "macro_f1")
    costs = mean_costs(bench)
    cells: list[dict[str, Any]] = []
    class_gains: list[dict[str, Any]] = []
    notes: list[str] = []
    for name in bench.experiments:
        mine, gains, lost = experiment_cells(
            bench, name, scores, second, costs, Path(folder) / "predictions" / filed(name)
        )
        cells += mine
        class_gains += gains
        if lost:
            some = ", ".join(sorted(set(lost))[:3]) + (", ..." if len(set(lost)) > 3 else "")
            notes.append(
                f"{name}: predictions cannot be used, so their differences have no interval over items: {some}"
            )
    found = leagues(bench, cells)
    return {
        "kind": "standings",
        "metric": METRIC,
        "level": LEVEL,
        "headline": {
            "method": bench.headline,
            "evaluation": bench.evaluations[0],
            "labels_per_class": bench.labels_per_class[0],
        },
        "complete": bench.complete,
        "missing": bench.missing,
        "leagues": found,
        "label_curves": label_curves(bench, found, cells),
        "pair_curves": pair_curves(bench, cells),
        "class_gains": class_gains,
        "failed": _failed(bench),
        "skipped": [item.model_dump() for item in bench.skipped],
        "notes": notes,
        "cells": cells,
    }


def write_standings(folder: Path) -> tuple[BenchResults, dict[str, Any]]:
    """Read DIR/results.json, write DIR/standings.json whole or not at all, and give both.

    Raises:
        DataError: If results.json is missing or not what it should be.
    """
    path = Path(folder) / "results.json"
    bench = parse_bench(read_object(path, AGAIN), str(path))
    found = standings(bench, Path(folder))
    write_json(Path(folder) / "standings.json", found)
    return bench, found


def _failed(bench: BenchResults) -> list[dict[str, Any]]:
    """List failed runs, those of one experiment, method and reason together."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for run in bench.runs:
        if run.status == "failed":
            seeds.setdefault((run.experiment, run.method, run.reason), []).append(run.seed)
    return [
        {"experiment": experiment, "method": method, "reason": reason, "seeds": sorted(which)}
        for (experiment, method, reason), which in seeds.items()
    ]
