"""The tables of docs/benchmarks/league.md, from the kept runs: `python -m benchmarks.league real linear@1`."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

NONE = "\N{EN DASH}"
CONTROLS = ("raw_features", "scratch", "target_ssl", "target_graph", "random_teacher", "shuffled_pairs")


def table(folder: Path, column: str) -> str:
    """Give mean accuracy in percent by row and experiment; seeds in brackets where there are several.

    The last column is the mean over experiments of the row minus the best control of each, chosen with hindsight;
    rows that are not in every experiment have none.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        for run in csv.DictReader(file):
            if run["status"] == "done" and run.get(column):
                found[run["method"], run["experiment"]].append(100 * float(run[column]))
    columns = list(dict.fromkeys(experiment for method, experiment in found if method == "similarity"))
    means = {key: float(np.mean(values)) for key, values in found.items()}
    best = {e: max(means[m, e] for m in CONTROLS if (m, e) in means) for e in columns}
    rows = []
    for method in dict.fromkeys(method for method, _ in found):
        cells = [_cell(found.get((method, e), [])) for e in columns]
        whole = all((method, e) in means for e in columns) and method not in (*CONTROLS, "teacher")
        gain = float(np.mean([means[method, e] - best[e] for e in columns])) if whole else None
        rows.append((method, cells, gain))
    rows.sort(key=lambda row: (row[2] is None, -(row[2] or 0.0)))
    lines = [f"| row | {' | '.join(columns)} | over the best control |", f"| --- |{' --- |' * (len(columns) + 1)}"]
    for method, cells, gain in rows:
        name = f"control: {method}" if method in CONTROLS else f"the {method}" if method == "teacher" else f"`{method}`"
        lines.append(f"| {name} | {' | '.join(cells)} | {NONE if gain is None else f'{gain:+.1f}'} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return NONE
    return f"{np.mean(values):.1f}" + (f" ({len(values)})" if len(values) > 1 else "")


if __name__ == "__main__":
    print(table(Path(__file__).parent / "results" / sys.argv[1], sys.argv[2]))
