"""Do the theories' numbers foretell gains? `python -m benchmarks.forecast.theories mfeat`.

For each experiment and seed of a suite whose runs are kept, from the teacher's embedding of the training pairs and the
target's inputs, with the labels of all of them, which is more than any user of a forecast has: CCH's gap and its two
terms (Gaussian, between out-of-fold probes of both sides), what is shared and what is known to one side alone,
redundancy (MFH), and the non-target divergence of probes (NTDH). Rows go to benchmarks/forecast/theories.csv;
those that are there are kept. Then each is held against the gains of the kept runs: rank correlation over experiments,
means over seeds, 95 % bootstrap over experiments.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from benchmarks.forecast.collect import HERE, LABELS, LOSSES, realised
from benchmarks.league import RESULTS
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from crossdistill.diagnostics.complementary import complementarity
from crossdistill.diagnostics.information_prepared import probe_logits
from crossdistill.diagnostics.ntdh import nontarget_of_probes
from crossdistill.diagnostics.ridge import standardised
from crossdistill.diagnostics.shared import shared_information
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.diagnosing import of_bench
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import read_document

PATH = HERE / "theories.csv"
KEYS = ("data_set", "experiment", "seed")
TITLES = {
    "gap": "CCH: I(teacher; student) - I(student; label)",
    "information_shared": "I(teacher; student)",
    "information_known": "I(student; label)",
    "shared": "MFH: shared information",
    "only_source": "known to the source alone",
    "only_target": "known to the target alone",
    "redundancy": "redundancy, I_min",
    "source": "information of the source",
    "ntdh": "NTDH: non-target divergence",
}


def theories(bench: Bench, seed: int) -> dict[str, float]:
    """Give every number of `TITLES` for one experiment."""
    asked = of_bench(bench, seed)
    (z,) = asked.sources.values()
    x, label = standardised(asked.target), asked.labels
    assert label is not None
    teacher, student = (probe_logits(side, label, groups=asked.groups, seed=seed) for side in (z, x))
    cch = complementarity(teacher, student, label, groups=asked.groups, seed=seed)
    parts = shared_information(z, x, label, groups=asked.groups, seed=seed)
    found = {
        "gap": cch.gap,
        "information_shared": cch.shared,
        "information_known": cch.known,
        "ntdh": nontarget_of_probes(z, x, label, groups=asked.groups, seed=seed),
    } | {name: getattr(parts, name) for name in ("shared", "only_source", "only_target", "redundancy", "source")}
    return {name: found[name].value for name in TITLES}


def kept() -> list[dict[str, str]]:
    """Read the rows that are there."""
    if not PATH.is_file():
        return []
    with PATH.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def collect(name: str, out: Path) -> None:
    """Compute what is not there yet of one suite."""
    shelf = Shelf()
    suite = expand(read_document(RESULTS.parent / "suites" / f"{name}.yaml"), shelf)
    known = {(row["experiment"], row["seed"]) for row in kept()}
    gains = [realised(name, k) for k in LABELS]
    if not PATH.is_file():
        PATH.write_text(",".join([*KEYS, *TITLES]) + "\n", encoding="utf-8")
    for seed in suite.seeds:
        for entry in suite.entries:
            wanted = entry.experiment.data.pairs is None and any((entry.name, seed) in of for of in gains)
            if not wanted or (entry.name, str(seed)) in known:
                continue
            spec = entry.experiment.data
            bench = Bench(entry.at(None), out, data=shelf.get(spec.name, spec.options), watched=False)
            with threadpool_limits(1):
                found = theories(bench, seed)
            with PATH.open("a", encoding="utf-8", newline="") as file:
                values = [f"{found[title]:.5f}" for title in TITLES]
                csv.writer(file).writerow([spec.name, entry.name, seed, *values])
            print(entry.name, seed, {title: round(value, 3) for title, value in found.items()}, flush=True)


def table(name: str) -> str:
    """Give the rank correlations of one suite."""
    gains = {k: realised(name, k) for k in LABELS}
    said: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in kept():
        for title in TITLES:
            said[row["experiment"]][title].append(float(row[title]))
    came: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for k, of in gains.items():
        for (experiment, _), by in of.items():
            for loss, gain in by.items():
                came[loss, k][experiment].append(gain)
    columns = [(loss, k) for loss in LOSSES for k in LABELS if len(set(came[loss, k]) & set(said)) > 2]
    lines = [
        "| " + " | ".join(["", *(f"{loss}, {k}" for loss, k in columns)]) + " |",
        "| --- " * (len(columns) + 1) + "|",
    ]
    for title, words in TITLES.items():
        cells = [words]
        for loss, k in columns:
            both = sorted(set(came[loss, k]) & set(said))
            x, y = (
                np.array([np.mean(of[e]) for e in both]) for of in ({e: said[e][title] for e in both}, came[loss, k])
            )
            rng, drawn = np.random.default_rng(0), list[float]()
            for _ in range(1000):
                rows = rng.integers(len(both), size=len(both))
                if np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0:
                    drawn.append(float(spearmanr(x[rows], y[rows]).statistic))
            low, high = np.quantile(drawn, [0.025, 0.975])
            cells.append(f"{spearmanr(x, y).statistic:.2f} [{low:.2f}, {high:.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    for loss, k in columns:
        both = sorted(set(came[loss, k]) & set(said))
        right = [np.mean(said[e]["gap"]) * np.mean(came[loss, k][e]) > 0 for e in both]
        lines.append(f"{loss}, {k}: the sign of CCH's gap is that of the gain for {sum(right)} of {len(both)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="name of a suite file of benchmarks/suites and of its folder of results")
    parser.add_argument("--out", type=Path, default=Path("runs/forecast"), help="where teachers are trained and kept")
    given = parser.parse_args()
    collect(given.suite, given.out)
    print(table(given.suite))


if __name__ == "__main__":
    main()
