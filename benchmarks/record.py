"""Rows and checks of an experiment: printed as a table, kept as JSON, and the process fails where a check does."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from threadpoolctl import threadpool_limits

from crossdistill.evaluation import mean_interval
from crossdistill.files import write_json

HERE = Path(__file__).parent
FINE = ("TV", "rank correlation", "largest excess", "least accuracy")
"""How rows begin that are no percentages, and are printed with three digits."""

BINDING = 3
"""Seeds from which on checks decide, and rows are judged: single seeds may miss them."""

MARGIN = 3.0
"""Points that a measured figure and a claimed one may lie apart and still agree; a hundredth of it for `FINE` rows."""

PAPER, CODE, OURS = "paper", "released code, run by us", "our prototype"
"""Whose figure a reference is; the last is an earlier implementation of ours, with other random numbers."""


@dataclass(frozen=True)
class Reference:
    """A claimed figure, of another implementation and of other random numbers.

    Attributes:
        value: Mean over its seeds.
        sd: Standard deviation over its seeds; None where it was not kept.
        seeds: How many.
        source: Whose it is: `PAPER`, `CODE`, `OURS`, or one's own words.
    """

    value: float
    sd: float | None = None
    seeds: int = 3
    source: str = OURS


@dataclass(frozen=True)
class Check:
    """One expected figure: what is said, what was measured, and whether it holds."""

    says: str
    measured: str
    holds: bool


def at_least(says: str, values: Sequence[float] | np.ndarray, bar: float) -> Check:
    """Expect a mean over seeds of at least `bar`; the interval is told, and decides nothing."""
    interval = mean_interval(values)
    span = "" if interval.low is None else f" (95 % t interval {interval.low:.2f} to {interval.high:.2f})"
    return Check(f"{says} >= {bar:g}", f"{interval.value:.2f}{span}", interval.value >= bar)


def row(name: str, values: Sequence[float], reference: Reference | None) -> dict[str, Any]:
    """Give one row of the table, ready for JSON; values in the order of the seeds."""
    interval = mean_interval(values)
    return {
        "row": name,
        "reference": None if reference is None else reference.value,
        "reference_sd": None if reference is None else reference.sd,
        "reference_seeds": None if reference is None else reference.seeds,
        "reference_source": None if reference is None else reference.source,
        "mean": round(interval.value, 4),
        "low": None if interval.low is None else round(interval.low, 4),
        "high": None if interval.high is None else round(interval.high, 4),
        "values": [round(float(v), 4) for v in values],
    }


def apart(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Give measured less claimed of a kept row, and half the width of its 95 % interval (Welch's).

    Where the claim's spread was not kept, the measured one is taken for both, with its own degrees of freedom. None
    where nothing is claimed, one side has less than `BINDING` seeds, or neither's spread is known (measured values that
    are all the same, at 100 % say): then it cannot be judged.
    """
    n, seeds = len(row["values"]), row["reference_seeds"]
    if row["reference"] is None or min(n, seeds) < BINDING:
        return None
    sd = float(np.std(row["values"], ddof=1))
    if row["reference_sd"] is None and not sd:
        return None
    if row["reference_sd"] is None:
        error, freedom = sd * (1 / n + 1 / seeds) ** 0.5, n - 1.0
    else:
        ours, theirs = sd**2 / n, row["reference_sd"] ** 2 / seeds
        error = (ours + theirs) ** 0.5
        spread = ours**2 / (n - 1) + theirs**2 / (seeds - 1)
        freedom = (ours + theirs) ** 2 / spread if spread else n - 1.0
    return float(np.mean(row["values"])) - row["reference"], float(stats.t.ppf(0.975, freedom)) * error


def verdict(row: Mapping[str, Any]) -> str:
    """Judge a kept row.

    "differs": zero lies outside the 95 % interval of measured less claimed. "agrees": zero lies inside, and the whole
    interval within `MARGIN` of it. "open": the interval is too wide for either. "-": it cannot be judged, see `apart`.
    """
    found = apart(row)
    if found is None:
        return "-"
    difference, half = found
    if abs(difference) > half:
        return "differs"
    return "agrees" if abs(difference) + half <= MARGIN / (100 if row["row"].startswith(FINE) else 1) else "open"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay kept rows out as a Markdown table."""
    heads = ("row", "claimed", "by", "measured", "95 % interval", "seeds", "measured - claimed", "verdict")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for r in rows:
        digits = 3 if r["row"].startswith(FINE) else 2
        claimed = ("-", "-") if r["reference"] is None else (f"{r['reference']:g}", r["reference_source"])
        span = "-" if r["low"] is None else f"{r['low']:.{digits}f} to {r['high']:.{digits}f}"
        found = apart(r)
        difference = "-" if found is None else f"{found[0]:+.{digits}f} ± {found[1]:.{digits}f}"
        cells = (r["row"], *claimed, f"{r['mean']:.{digits}f}", span, len(r["values"]), difference, verdict(r))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def checked(checks: Sequence[Mapping[str, Any]]) -> str:
    """Lay kept checks out as a Markdown table."""
    lines = ["| expected of the mean over seeds | measured | |", "| --- " * 3 + "|"]
    lines += [f"| {c['says']} | {c['measured']} | {'held' if c['holds'] else '**missed**'} |" for c in checks]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Say on what it ran: processor and versions, nothing that names the computer."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def commit() -> str:
    """Give the commit, with "+" where the library or the benchmark differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    changed = top and git("status", "-s", "--", f"{top}/src", str(HERE / "**" / "*.py"))
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


def seeds_from(doc: str, default: int) -> range:
    """Read `--seeds N` from the command line: seeds 0..N-1."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=default, help=f"runs over the seeds 0..N-1; {default} by default")
    count: int = parser.parse_args().seeds
    if count < 1:
        parser.error(f"--seeds must be at least 1; received {count}")
    return range(count)


def run_seeds(run: Callable[[int], dict[str, float]], seeds: Sequence[int]) -> dict[str, list[float]]:
    """Run an experiment on one core for each seed, and give its figures by name, in the order of the seeds."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    with threadpool_limits(1):
        for seed in seeds:
            started = time.process_time()
            for name, value in run(seed).items():
                found.setdefault(name, []).append(value)
            print(f"seed {seed}: {time.process_time() - started:.0f} CPU seconds", flush=True)
    return found


def results_of(family: str) -> Path:
    """Give the folder of a family's kept results."""
    return HERE / family / "results"


def keep(
    family: str,
    name: str,
    title: str,
    seeds: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    checks: Sequence[Check],
    **more: Any,
) -> None:
    """Print the table and the checks, keep both, and leave with status 1 where a check fails on enough seeds.

    Args:
        family: Folder of the experiment: "cmcd", "fidelity".
        name: Of the experiment's module and of the file under results/, which only runs on `BINDING` seeds or more
            replace.
        title: What was measured.
        seeds: On which.
        rows: As `row` gives them.
        checks: The expected figures.
        more: Further facts to keep: `about`, other losses and methods on whose pages the table stands; `note`, what a
            reader of the table must know.
    """
    print(f"\n{title}\n\n{table(rows)}\n")
    for check in checks:
        print(f"{'held  ' if check.holds else 'MISSED'}  {check.says}: {check.measured}")
    if len(seeds) < BINDING:
        print(f"\n{len(seeds)} seeds decide nothing: checks are binding from {BINDING} on, and nothing was kept")
        return
    record = {
        "experiment": title,
        "command": f"python -m benchmarks.{family}.{name} --seeds {len(seeds)}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "cpu_seconds": round(time.process_time()),
        "seeds": list(seeds),
        **more,
        "rows": list(rows),
        "checks": [{"says": c.says, "measured": c.measured, "holds": c.holds} for c in checks],
    }
    write_json(results_of(family) / f"{name}.json", record)
    failed = [check.says for check in checks if not check.holds]
    if failed:
        sys.exit(f"{len(failed)} of {len(checks)} expected figures were missed: {'; '.join(failed)}")


def difference(found: Mapping[str, Sequence[float]], first: str, second: str) -> np.ndarray:
    """Give the difference of two rows, seed by seed."""
    return np.subtract(found[first], found[second])


def add_difference(
    found: dict[str, list[float]], known: dict[str, Reference], first: str, second: str, name: str | None = None
) -> None:
    """Add a row that is one row less another, seed by seed; what is claimed of it is the difference of their claims.

    Levels hang on how hard a world is, which a description may leave open; differences between methods do so less.

    Args:
        found: Rows; gets one more.
        known: Claims; gets one more, without spread, as that of a difference is not known from those of its parts.
        first: A row of both.
        second: Another.
        name: What the new row is called; "first less second" if nothing is said.
    """
    name = name or f"{first} less {second}"
    found[name] = list(difference(found, first, second))
    a, b = known[first], known[second]
    known[name] = Reference(a.value - b.value, None, min(a.seeds, b.seeds), a.source)


def mean(values: Sequence[float]) -> float:
    """Give the mean over seeds."""
    return float(np.mean(values))
