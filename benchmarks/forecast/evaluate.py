"""What is the forecast worth? From the cells that `collect` kept: `python -m benchmarks.forecast.evaluate`.

For each loss: rank correlation of forecast and gain over cells, sign accuracy where the gain exceeds its own error, how
often the interval decides and is right, how often it covers, mean absolute error; for the first study's coefficients,
which never saw these runs, and for coefficients refitted without the data set or, within mfeat, without the target.
Beside them what others would forecast by. A cell's gain is its mean over seeds; intervals are a bootstrap over
experiments.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from crossdistill.diagnostics import Estimate
from crossdistill.diagnostics.calibration import Proxy, Realised, default_calibration, left_out_forecasts

HERE = Path(__file__).parent
LOSSES = ("similarity", "contrastive", "focused")
NAIVE = {
    "teacher accuracy, few labels": "acc_tea",
    "linear CKA": "cka",
    "retrieval": "retrieval",
    "total variation, negative": "tv",
}
PROXIES: tuple[Proxy, ...] = ("pilot", "episodes")
RESAMPLES = 1000
LEVEL = 0.9


@dataclass(frozen=True)
class Cell:
    """A forecast and what came true.

    Attributes:
        row: As kept.
        gain: Mean over the seeds of its experiment and number of labels.
        error: Standard error of that mean; 0 with one seed.
    """

    row: dict[str, str]
    gain: float
    error: float

    @property
    def realised(self) -> Realised:
        """As the calibration takes it.

        What is left out together is a data set, and of mfeat, whose thirty pairs are most of all cells, a target.
        """
        parts = {name: float(value) for name, value in self.row.items() if _number(value)}
        unit = self.row["data_set"]
        if unit == "mfeat":
            unit += " to " + self.row["experiment"].rsplit("-", 1)[1]
        return Realised(unit, parts, float(self.row["standard_error"]), self.gain)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def cells(loss: str, seed: str | None = None) -> list[Cell]:
    """Read all kept cells of a loss, or those of one seed."""
    rows: list[dict[str, str]] = []
    for path in sorted((HERE / "results").glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file) if row[f"gain_{loss}"] and seed in (None, row["seed"])]
    gains: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        gains[row["experiment"], row["k"]].append(float(row[f"gain_{loss}"]))
    found = []
    for row in rows:
        values = gains[row["experiment"], row["k"]]
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
        found.append(Cell(row, float(np.mean(values)), error))
    return found


def bootstrapped(of: Sequence[Cell], measure: Callable[[np.ndarray], float]) -> str:
    """Say a figure of some cells with its interval over experiments, drawn with replacement."""
    names = [cell.row["experiment"] for cell in of]
    by = {name: np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)}
    keys, rng, drawn = list(by), np.random.default_rng(0), list[float]()
    for _ in range(RESAMPLES):
        rows = np.concatenate([by[keys[i]] for i in rng.integers(len(keys), size=len(keys))])
        drawn.append(measure(rows))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{measure(np.arange(len(of))):.2f} [{low:.2f}, {high:.2f}]"


def line(name: str, of: Sequence[Cell], value: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None) -> str:
    """Give one row of the table."""
    gain, error = np.array([c.gain for c in of]), np.array([c.error for c in of])

    def rank(rows: np.ndarray) -> float:
        return float(spearmanr(value[rows], gain[rows]).statistic)

    def sign(rows: np.ndarray) -> float:
        sure = rows[np.abs(gain[rows]) > error[rows]]
        return float(np.mean(np.sign(value[sure]) == np.sign(gain[sure]))) if len(sure) else float("nan")

    row = [name, bootstrapped(of, rank)]
    if bounds is None:
        return "| " + " | ".join([*row, *("",) * 4]) + " |"
    low, high = bounds
    decided = (low > 0) | (high < 0)
    right = np.sign(value) == np.sign(gain)
    covers = (low <= gain) & (gain <= high)
    said = f"{decided.mean():.2f}, {right[decided].mean():.2f}" if decided.any() else "0, -"
    row += [bootstrapped(of, sign), said, bootstrapped(of, lambda rows: float(covers[rows].mean()))]
    return "| " + " | ".join([*row, f"{100 * np.abs(value - gain).mean():.1f}"]) + " |"


def table(loss: str, of: Sequence[Cell], proxy: Proxy, *, refit: bool = True) -> str:
    """Give the table of one loss and one stand-in for the student."""
    sets = sorted({c.row["data_set"] for c in of})
    lines = [
        f"**{loss}, {'one label' if proxy == 'episodes' else 'five labels or more'} per class**: {len(of)} forecasts "
        f"of {len({(c.row['experiment'], c.row['k']) for c in of})} cells, {len(sets)} data sets ({', '.join(sets)})",
        "",
        f"| forecast | rank correlation | sign, where sure | decided, right | {100 * LEVEL:.0f} % interval covers "
        "| error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    whose = "contrastive" if loss == "contrastive" else "similarity"
    rows = [c.realised for c in of]
    options: list[tuple[str, list[Estimate]]] = []
    stand_ins: dict[str, Proxy] = {"one label": "episodes"}
    if proxy == "pilot":
        stand_ins = {"**closed form** (default)": "ridge", "pilot student": "pilot"}
    for name, word in stand_ins.items():
        first = default_calibration(word, whose)
        options.append((name, [first.forecast(r.parts, r.standard_error, n=1, level=LEVEL) for r in rows]))
        if refit:
            options.append((f"{name}, refitted without it", left_out_forecasts(rows, level=LEVEL, proxy=word)))
    for name, found in options:
        value = np.array([e.value for e in found])
        lines.append(line(name, of, value, (np.array([e.low for e in found]), np.array([e.high for e in found]))))
    for name, field in NAIVE.items():
        value = np.array([float(c.row[field] or "nan") for c in of]) * (-1 if field == "tv" else 1)
        if np.isfinite(value).all():
            lines.append(line(name, of, value, None))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", help="cells and gains of this one alone, without a refit")
    seed = parser.parse_args().seed
    for loss in LOSSES:
        found = cells(loss, seed)
        for proxy in PROXIES:
            mine = [c for c in found if c.row["proxy"] == proxy]
            if mine:
                print(table(loss, mine, proxy, refit=seed is None), end="\n\n")


if __name__ == "__main__":
    main()
