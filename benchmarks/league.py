"""Tables of docs/benchmarks/league.md from the kept runs: `python -m benchmarks.league mfeat linear@5 --by target`.

Several suites with commas between are set side by side: `python -m benchmarks.league mfeat,omniglot linear@5,linear@3`.
"""

from __future__ import annotations

import argparse
import csv
import signal
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from crossdistill.errors import DataError
from crossdistill.evaluation import (
    Interval,
    average_ranks,
    critical_difference,
    data_sets_needed,
    friedman,
    mean_interval,
    pairwise_signed_rank,
)
from crossdistill.experiments.suite_tuning import TUNED

NONE = "\N{EN DASH}"
CONTROLS = ("raw_features", "scratch", "target_ssl", "target_graph", "random_teacher", "shuffled_pairs")
OURS = ("focused", "focused_fixed")
"""Our own method, and the same with its former fixed share and walk: no rivals of one another."""
RESULTS = Path(__file__).parent / "results"
Values = dict[tuple[str, str], dict[int, float]]
"""By row and experiment: accuracy in percent by seed."""


def kept(folder: Path, column: str, seeds: Collection[int] = ()) -> Values:
    """Read what all kept files of a suite, runs*.csv, hold of one evaluation; of some seeds alone, if any are given."""
    found: Values = defaultdict(dict)
    for path in sorted(folder.glob("runs*.csv"), key=lambda path: (path.name != "runs.csv", path.name)):
        with path.open(encoding="utf-8") as file:
            for run in csv.DictReader(file):
                if run["status"] == "done" and run.get(column) and (not seeds or int(run["seed"]) in seeds):
                    found[run["method"], run["experiment"]][int(run["seed"])] = 100 * float(run[column])
    return found


def table(folder: Path, column: str, by: str = "experiment", seeds: Collection[int] = ()) -> str:
    """Give mean accuracy in percent by row and experiment, or averaged over the experiments of one target.

    The gain is the mean over experiments of the row minus the best control of each, chosen with hindsight and taken of
    the same seed, its interval Student's over the seeds that are complete; the rank is among methods, by means over
    seeds. Rows that are not in every experiment have neither.
    """
    found = kept(folder, column, seeds)
    experiments = list(dict.fromkeys(experiment for _, experiment in found))
    means = _means(found)
    best = {e: max((m for m in CONTROLS if (m, e) in means), key=lambda m, e=e: means[m, e]) for e in experiments}
    rows = list(dict.fromkeys(method for method, _ in found))
    methods = [m for m in rows if m not in (*CONTROLS, "teacher") and all((m, e) in means for e in experiments)]
    scores = [[means[m, e] for m in methods] for e in experiments]
    rank = dict(zip(methods, map(float, average_ranks(scores)), strict=True)) if methods else {}
    columns: dict[str, list[str]] = defaultdict(list)
    for e in experiments:
        columns[e if by == "experiment" else f"to {e.rsplit('-', 1)[1]}"].append(e)
    lines = [
        f"| row | {' | '.join(columns)} | gain over the best control | rank | seeds |",
        f"| --- |{' --- |' * (len(columns) + 3)}",
    ]
    ordered = sorted(rows, key=lambda m: (m not in methods, rank.get(m, 0.0), m not in CONTROLS))
    for m in ordered:
        cells = [_mean([means[m, e] for e in group if (m, e) in means], len(group)) for group in columns.values()]
        name = f"control: {m}" if m in CONTROLS else f"the {m}" if m == "teacher" else f"`{m}`"
        counts = [len(found[m, e]) for e in experiments if (m, e) in found]
        many = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        gain = _gain(m, found, experiments, best) if m in methods else NONE
        lines.append(
            f"| {name} | {' | '.join(cells)} | {gain} | {f'{rank[m]:.1f}' if m in methods else NONE} | {many} |"
        )
    return "\n".join(lines)


def _means(found: Values) -> dict[tuple[str, str], float]:
    """Average over seeds, without the last digits, in which equal means may differ."""
    return {key: round(float(np.mean(list(values.values()))), 9) for key, values in found.items()}


def _mean(values: list[float], of: int) -> str:
    if not values:
        return NONE
    return f"{np.mean(values):.1f}" + (f" ({len(values)} of {of})" if len(values) < of else "")


def _gain(method: str, found: Values, experiments: list[str], best: dict[str, str]) -> str:
    """Say the mean gain of a method with its interval over the seeds that every experiment has."""
    couples = [(found[method, e], found[best[e], e]) for e in experiments]
    seeds = set.intersection(*(set(x) & set(y) for x, y in couples))
    if not seeds:
        return f"{np.mean([np.mean(list(x.values())) - np.mean(list(y.values())) for x, y in couples]):+.1f}"
    return _said(mean_interval([np.mean([x[s] - y[s] for x, y in couples]) for s in sorted(seeds)]))


def across(folders: Sequence[Path], columns: Sequence[str], ours: str = "focused", seeds: Collection[int] = ()) -> str:
    """Set data sets side by side: accuracy in percent, averaged over a set's experiments and their seeds.

    Rows are the methods that every set has; "ours minus it" averages over sets, each counting once, with Student's
    interval over sets. Below them the best control and the best known method of every experiment, by their means and
    so with hindsight, and how far ours is from that method, with an interval over the seeds of the set. The last row
    has no hindsight of seeds: on each the method is taken that is best on the set's others, if there are others.

    Args:
        folders: Of the sets.
        columns: Evaluation and labels; of each set the first that it has.
        ours: The method that others are compared with.
        seeds: Runs of these alone, if any are given.

    Raises:
        DataError: If a set has none of the columns, or not the method.
    """
    sets = _read(folders, columns, seeds)
    scores = {name: _by_row(found) for name, found in sets.items()}
    methods, table = _shared(scores)
    if ours not in methods:
        raise DataError(f"not every set has '{ours}'; those that have rows in all: {', '.join(methods)}")
    ranks = average_ranks(table.T)
    lead = table[methods.index(ours)] - table
    lines = [
        f"| row | {' | '.join(sets)} | mean | rank | `{ours}` minus it | ahead in |",
        f"| --- |{' --- |' * (len(sets) + 4)}",
    ]
    for i in np.argsort(ranks, kind="stable"):
        apart = [NONE, NONE] if methods[i] == ours else [_said(mean_interval(lead[i])), f"{np.sum(lead[i] > 0)}"]
        cells = [*(f"{value:.1f}" for value in (*table[i], table[i].mean(), ranks[i])), *apart]
        lines.append(f"| `{methods[i]}` | {' | '.join(cells)} |")
    known = {name: [m for m in score if m not in (*CONTROLS, *OURS, "teacher")] for name, score in scores.items()}
    best = {name: _best(found, known[name]) for name, found in sets.items()}
    controls = {name: _best(found, CONTROLS) for name, found in sets.items()}
    for title, chosen in (("the best control", controls), ("the best known method", best)):
        values = [_hindsight(found, chosen[name]) for name, found in sets.items()]
        cells = [f"{value:.1f}" for value in (*values, np.mean(values))]
        apart = mean_interval(table[methods.index(ours)] - values)
        ahead = np.sum(table[methods.index(ours)] > values)
        lines.append(f"| {title} of each, in hindsight | {' | '.join(cells)} | {NONE} | {_said(apart)} | {ahead} |")
    differences = [_gain(ours, found, list(best[name]), best[name]) for name, found in sets.items()]
    cells = [said.replace(" [", "<br>[") for said in differences]
    lines.append(f"| `{ours}` minus that method | {' | '.join(cells)} |{f' {NONE} |' * 4}")
    fair = [_out_of_sight(ours, found, known[name]) for name, found in sets.items()]
    cells = [NONE if one is None else _said(one).replace(" [", "<br>[") for one in fair]
    values = [one.value for one in fair if one is not None]
    apart = _said(mean_interval(values)) if values else NONE
    ahead = sum(value > 0 for value in values)
    lines.append(
        f"| `{ours}` minus what other seeds chose | {' | '.join(cells)} | {NONE} | {NONE} | {apart} | {ahead} |"
    )
    return "\n".join(lines)


def order(folders: Sequence[Path], columns: Sequence[str], seeds: Collection[int] = ()) -> str:
    """Say what the ranks of the rows that all sets have prove: Friedman's test, Nemenyi's difference, signed ranks.

    Raises:
        DataError: If a set has none of the columns.
    """
    methods, table = _shared({name: _by_row(found) for name, found in _read(folders, columns, seeds).items()})
    apart = pairwise_signed_rank(table.T) < 0.05
    count = len(methods)
    return (
        f"{count} rows on {len(folders)} sets: Friedman's test (Iman and Davenport) p = {friedman(table.T).f_p:.2g}; "
        f"average ranks differ from {critical_difference(count, len(folders)):.1f} on (Nemenyi, 5 %); by signed ranks "
        f"with Holm's correction {np.sum(apart) // 2} of {count * (count - 1) // 2} pairs differ, for which "
        f"{data_sets_needed(count)} sets are needed at least"
    )


def _read(folders: Sequence[Path], columns: Sequence[str], seeds: Collection[int]) -> dict[str, Values]:
    """Read the kept runs of several sets, of each the first column that it has."""
    sets: dict[str, Values] = {}
    for folder in folders:
        read = (kept(folder, column, seeds) for column in columns)
        sets[folder.name] = next((found for found in read if found), {})
        if not sets[folder.name]:
            raise DataError(f"{folder.name} has no kept run with {' or '.join(columns)}")
    return sets


def _shared(scores: dict[str, dict[str, float]]) -> tuple[list[str], np.ndarray]:
    """Give the methods that all sets have, and their means (methods, sets)."""
    first, *rest = scores.values()
    methods = [m for m in first if m not in (*CONTROLS, "teacher") and all(m in score for score in rest)]
    return methods, np.array([[score[m] for score in scores.values()] for m in methods]).round(9)


def _out_of_sight(method: str, found: Values, known: Collection[str]) -> Interval | None:
    """Give how far a method is on each seed from the one that is best on all others; None for a single seed."""
    experiments = list(dict.fromkeys(e for _, e in found))
    seeds = set.intersection(*(set(found[m, e]) for m in (method, *known) for e in experiments))
    if len(seeds) < 2:
        return None
    apart: list[float] = []
    for s in sorted(seeds):
        others = {key: {seed: v for seed, v in values.items() if seed != s} for key, values in found.items()}
        best = _best({key: values for key, values in others.items() if values}, known)
        apart.append(float(np.mean([found[method, e][s] - found[m, e][s] for e, m in best.items()])))
    return mean_interval(apart)


def _by_row(found: Values) -> dict[str, float]:
    """Give the mean over experiments of the means over seeds; of rows that every experiment has."""
    experiments = {e for _, e in found}
    rows = dict.fromkeys(m for m, _ in found)
    return {
        m: float(np.mean([np.mean(list(found[m, e].values())) for e in experiments]))
        for m in rows
        if all((m, e) in found for e in experiments)
    }


def _best(found: Values, methods: Collection[str]) -> dict[str, str]:
    """Give the best of some methods in every experiment, by its mean over seeds."""
    means = _means(found)
    return {
        e: max((m for m in methods if (m, e) in found), key=lambda m, e=e: means[m, e])
        for e in dict.fromkeys(e for _, e in found)
    }


def _hindsight(found: Values, best: dict[str, str]) -> float:
    return float(np.mean([np.mean(list(found[m, e].values())) for e, m in best.items()]))


def _said(found: Interval) -> str:
    """Write a difference with its interval, where there is one."""
    return f"{found.value:+.1f}" + ("" if found.low is None else f" [{found.low:+.1f}, {found.high:+.1f}]")


def rival(folder: Path, column: str, method: str, seeds: Collection[int] = ()) -> str:
    """Say how far a method is from the best known one of each experiment, chosen with hindsight, and from each.

    Experiments stand by name where it is behind on an interval over seeds.
    """
    found = kept(folder, column, seeds)
    experiments = [e for m, e in found if m == method]
    means = {key: float(np.mean(list(values.values()))) for key, values in found.items()}
    others = [m for m in dict.fromkeys(m for m, _ in found) if m not in (*CONTROLS, *OURS, "teacher", method)]
    lead = {e: means[method, e] - max(means[o, e] for o in others if (o, e) in means) for e in experiments}
    said = mean_interval(list(lead.values()), kind="t over experiments")
    lines = [
        f"{method} minus the best known method of each experiment, in hindsight: {_said(said)}, "
        f"ahead in {sum(v > 0 for v in lead.values())} of {len(lead)}"
    ]
    for e, best in _best(found, others).items():
        behind = mean_interval([found[method, e][s] - v for s, v in found[best, e].items() if s in found[method, e]])
        if behind.high is not None and behind.high < 0:
            lines.append(f"  behind in {e}: minus {best} {_said(behind)}")
    for o in others:
        apart = [means[method, e] - means[o, e] for e in experiments if (o, e) in means]
        lines.append(f"  minus {o}: {np.mean(apart):+.1f}, ahead in {sum(v > 0 for v in apart)} of {len(apart)}")
    return "\n".join(lines)


def tuned(folder: Path, columns: list[str]) -> str:
    """Give mean accuracy in percent over experiments and seeds, with the defaults and with tuned settings."""
    found = {column: kept(folder, column) for column in columns}
    rows = dict.fromkeys(method.removesuffix(TUNED) for method, _ in found[columns[0]])

    def mean(method: str, column: str) -> str:
        values = [np.mean(list(seeds.values())) for (m, _), seeds in found[column].items() if m == method]
        return f"{np.mean(values):.1f}" if values else NONE

    lines = [f"| row | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for m in sorted(rows, key=lambda m: (m in CONTROLS, m == "teacher")):
        cells = [f"{mean(m, c)} → {mean(m + TUNED, c)}" if (mean(m, c) != NONE) else NONE for c in columns]
        name = f"control: {m}" if m in CONTROLS else f"the {m}" if m == "teacher" else f"`{m}`"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # as for any filter, `| head` is no error
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", help="folder of benchmarks/results, or several with commas between")
    parser.add_argument("column", help="evaluation and labels, as linear@5; several with commas between")
    parser.add_argument("--by", choices=("experiment", "target"), default="experiment")
    parser.add_argument("--against", metavar="METHOD", help="instead: how far a method is from all others")
    parser.add_argument("--seed", type=int, nargs="+", default=(), help="runs of these alone")
    parser.add_argument("--tuned", action="store_true", help="instead: defaults → tuned, of several columns")
    given = parser.parse_args()
    folder = RESULTS / given.suite
    if "," in given.suite:
        if given.tuned or given.by != "experiment":
            parser.error("--tuned and --by are of one suite alone")
        folders, ours = [RESULTS / name for name in given.suite.split(",")], given.against or "focused"
        try:
            columns = given.column.split(",")
            print(across(folders, columns, ours, given.seed), order(folders, columns, given.seed), sep="\n\n")
        except DataError as error:
            parser.error(str(error))
    elif given.tuned:
        print(tuned(folder, given.column.split(",")))
    elif given.against:
        print(rival(folder, given.column, given.against, given.seed))
    else:
        print(table(folder, given.column, given.by, given.seed))
