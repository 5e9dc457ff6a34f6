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
"""Seeds from which on checks decide: single seeds may miss them."""


@dataclass(frozen=True)
class Reference:
    """A figure of our earlier prototype, in another implementation and with other random numbers.

    Attributes:
        value: Mean over its seeds.
        sd: Standard deviation over its seeds; None where it was not kept.
        seeds: How many.
    """

    value: float
    sd: float | None = None
    seeds: int = 3


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


def agreement(values: Sequence[float], reference: Reference | None) -> str:
    """Say whether mean and reference can be told apart: "yes" (agrees) unless a t test at 95 % says otherwise.

    Welch's test; where the reference's spread was not kept, the measured one is taken for both, with its own degrees of
    freedom.
    """
    if reference is None or len(values) < 2:
        return "-"
    sd, n, apart = float(np.std(values, ddof=1)), len(values), abs(float(np.mean(values)) - reference.value)
    if reference.sd is None:
        error, freedom = sd * (1 / n + 1 / reference.seeds) ** 0.5, n - 1.0
    else:
        ours, theirs = sd**2 / n, reference.sd**2 / reference.seeds
        error = (ours + theirs) ** 0.5
        freedom = (ours + theirs) ** 2 / (ours**2 / (n - 1) + theirs**2 / (reference.seeds - 1))
    return "yes" if apart <= float(stats.t.ppf(0.975, freedom)) * error else "no"


def row(name: str, values: Sequence[float], reference: Reference | None) -> dict[str, Any]:
    """Give one row of the table, ready for JSON; values in the order of the seeds."""
    interval = mean_interval(values)
    return {
        "row": name,
        "reference": None if reference is None else reference.value,
        "reference_sd": None if reference is None else reference.sd,
        "reference_seeds": None if reference is None else reference.seeds,
        "mean": round(interval.value, 4),
        "low": None if interval.low is None else round(interval.low, 4),
        "high": None if interval.high is None else round(interval.high, 4),
        "values": [round(float(v), 4) for v in values],
        "agrees": agreement(values, reference),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay rows out as a Markdown table."""
    lines = ["| row | reference | measured | 95 % t interval | seeds | agrees |", "| --- " * 6 + "|"]
    for r in rows:
        digits = 3 if r["row"].startswith(FINE) else 1
        known = "-" if r["reference"] is None else f"{r['reference']:.{digits}f}"
        span = "-" if r["low"] is None else f"{r['low']:.{digits}f} to {r['high']:.{digits}f}"
        lines.append(f"| {r['row']} | {known} | {r['mean']:.{digits}f} | {span} | {len(r['values'])} | {r['agrees']} |")
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
        more: Further facts to keep.
    """
    print(f"\n{title}\n\n{table(rows)}\n")
    for check in checks:
        print(f"{'holds' if check.holds else 'FAILS'}  {check.says}: {check.measured}")
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


def mean(values: Sequence[float]) -> float:
    """Give the mean over seeds."""
    return float(np.mean(values))
