"""Forecast every cell of a suite whose runs are kept: `python -m benchmarks.forecast.collect mfeat`.

For each experiment, seed and number of labels: the forecast and its parts, as `crossdistill diagnose --pilot` makes
them (the teacher of the suite, pilots, the labels of that seed), numbers that others would forecast by (teacher
accuracy, linear CKA, retrieval, total variation), and what came true, from benchmarks/results/SUITE/runs*.csv: accuracy
of each loss less the best of raw features and target-only self-supervision. Written to
benchmarks/forecast/results/SUITE.csv, a row a cell; rows that are there already are kept. Teachers are trained in
--out.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from benchmarks.league import RESULTS, kept
from threadpoolctl import threadpool_limits

from crossdistill.diagnostics.forecast import forecast_gain
from crossdistill.diagnostics.ridge import standardised
from crossdistill.diagnostics.self_supervision import target_embedding
from crossdistill.errors import NotMeaningful
from crossdistill.evaluation import embed, linear_probe
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.diagnosing import of_bench
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import read_document

HERE = Path(__file__).parent
LABELS = (1, 5, 20)
LOSSES = ("similarity", "contrastive", "focused")
PARTS = (
    "p_pilot",
    "p_max",
    "p_tea",
    "e",
    "t",
    "acc_raw",
    "acc_ssl",
    "acc_tea",
    "acc_ridge",
    "acc_pilot",
    "r2",
    "retrieval",
    "tv",
)
FIELDS = (
    *(
        "data_set",
        "experiment",
        "seed",
        "k",
        "proxy",
        "forecast",
        "standard_error",
        "seconds",
        "cka",
        "teacher_accuracy",
    ),
    *PARTS,
    *(f"gain_{loss}" for loss in LOSSES),
)


def cka(x: np.ndarray, z: np.ndarray) -> float:
    """Give the linear centred kernel alignment (Kornblith et al. 2019) of two sets of features of the same rows."""
    x, z = x - x.mean(axis=0), z - z.mean(axis=0)
    return float(np.linalg.norm(x.T @ z) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(z.T @ z)))


def realised(suite: str, k: int) -> dict[tuple[str, int], dict[str, float]]:
    """Give the gain of each loss by experiment and seed, as fractions."""
    found = kept(RESULTS / suite, f"linear@{k}")
    gains: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for loss in LOSSES:
        for (method, experiment), values in found.items():
            if method != loss:
                continue
            for seed, value in values.items():
                references = [found.get((m, experiment), {}).get(seed) for m in ("raw_features", "target_ssl")]
                if None not in references:
                    gains[experiment, seed][loss] = (value - max(r for r in references if r is not None)) / 100
    return gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="name of a suite file of benchmarks/suites and of its folder of results")
    parser.add_argument("--out", type=Path, default=Path("runs/forecast"))
    given = parser.parse_args()
    path = HERE / "results" / f"{given.suite}.csv"
    path.parent.mkdir(exist_ok=True)
    known: set[tuple[str, str, str]] = set()
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            known = {(row["experiment"], row["seed"], row["k"]) for row in csv.DictReader(file)}
    else:
        path.write_text(",".join(FIELDS) + "\n", encoding="utf-8")
    shelf = Shelf()
    suite = expand(read_document(RESULTS.parent / "suites" / f"{given.suite}.yaml"), shelf)
    gains = {k: realised(given.suite, k) for k in LABELS}
    for seed in suite.seeds:
        for entry in suite.entries:
            if entry.experiment.data.pairs is not None:  # a diagnosis is of all pairs
                continue
            for k in entry.labels_per_class:
                if k not in LABELS or (entry.name, str(seed), str(k)) in known or (entry.name, seed) not in gains[k]:
                    continue
                spec = entry.experiment.data
                bench = Bench(entry.at(k), given.out, data=shelf.get(spec.name, spec.options), watched=False)
                with threadpool_limits(1):
                    row = cell(bench, seed, k)
                if row is None:
                    continue
                row |= {f"gain_{loss}": gain for loss, gain in gains[k][entry.name, seed].items()}
                row |= {"data_set": spec.name, "experiment": entry.name, "seed": seed, "k": k}
                with path.open("a", encoding="utf-8", newline="") as file:
                    csv.DictWriter(file, FIELDS, restval="").writerow(
                        {name: round(v, 5) if isinstance(v, float) else v for name, v in row.items() if name in FIELDS}
                    )
                print(entry.name, seed, k, f"forecast {row['forecast']:+.3f}", gains[k][entry.name, seed], flush=True)


def cell(bench: Bench, seed: int, k: int) -> dict[str, object] | None:
    """Forecast one cell; None where the forecast is withheld."""
    asked = of_bench(bench, seed)
    (z,) = asked.sources.values()
    label = asked.labels
    assert label is not None
    index = np.flatnonzero(label >= 0)
    try:
        own = target_embedding(standardised(asked.target), seed=seed)
        found = forecast_gain(
            asked.target, z, label[index], index, ssl=own, groups=asked.groups, proxy="pilot", seed=seed
        )
    except NotMeaningful as error:
        print(f"withheld: {error}")
        return None
    row: dict[str, object] = {name: value for name, value in found.values().items() if name in PARTS}
    test = bench.test.having(bench.experiment.data.source)
    arm = bench.teaching()
    assert arm is not None
    probe = linear_probe(z[index], label[index])
    seen = embed(bench.product(arm, seed), test.samples(bench.experiment.data.source))
    truth = test.label
    assert truth is not None
    return row | {
        "proxy": found.calibration.proxy,
        "forecast": found.gain.value,
        "standard_error": found.gain.standard_error or 0.0,
        "seconds": found.seconds,
        "cka": cka(standardised(asked.target), z),
        "teacher_accuracy": float(np.mean(probe.predict(seen) == truth)),
    }


if __name__ == "__main__":
    main()
