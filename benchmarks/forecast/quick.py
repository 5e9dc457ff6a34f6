"""Does the forecast follow the gain? Run it with `python -m benchmarks.forecast.quick [--pairs 30] [--k 5] [--seed 0]`.

Ordered pairs of Multiple Features' views, one draw of labels forecast each; the gain that came true is a mean over six
draws. The protocol is the first study's: views standardised, teachers and target-only references MLPs trained by SimCLR
for 400 steps, students for 300 steps of CMCD's similarity loss, all on the 1200 training pairs; probes are scored on
the 500 test rows. Besides, five teachers whose pairs are shuffled. A look, not the evidence: one data set, one seed,
one draw, and the first study's coefficients were fitted to this data set among others. Results are printed, not kept.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable

import numpy as np
import torch
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from crossdistill.data import load
from crossdistill.diagnostics.forecast import Forecast, forecast_gain
from crossdistill.diagnostics.pilot import pilot_student
from crossdistill.diagnostics.ridge import standardised
from crossdistill.evaluation import balanced_accuracy, linear_probe
from crossdistill.networks import MLP
from crossdistill.objectives.ntxent import nt_xent

VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")
DRAWS, STEPS, BATCH = 6, 400, 250
NOISE, DROPPED = 0.5, 0.2
SHUFFLED = 5


def self_supervised(x: np.ndarray, train: np.ndarray, seed: int) -> np.ndarray:
    """Train an MLP by SimCLR on some rows of (n, d) and embed all, (n, 64)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP((x.shape[1],))
        head = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-3)
        rows, known = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(train)
        for _ in range(STEPS):
            chosen = rows[known[torch.randperm(len(known))[:BATCH]]]
            first, second = (
                (chosen + NOISE * torch.randn_like(chosen)) * (torch.rand_like(chosen) > DROPPED) for _ in range(2)
            )
            loss = nt_xent(head(net(first)), head(net(second)), tau=0.2)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    net.eval()
    with torch.no_grad():
        return net(rows).double().numpy()


def draw(label: np.ndarray, train: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Draw k training rows of each class."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(train[label[train] == c])[:k] for c in np.unique(label)])


def score(rows: np.ndarray, label: np.ndarray, train: np.ndarray, test: np.ndarray, k: int) -> float:
    """Probe an embedding: balanced accuracy on the test, a mean over draws of the labels."""
    found: list[float] = []
    for number in range(DRAWS):
        known = draw(label, train, k, 1000 + number)
        answers = linear_probe(rows[known], label[known]).predict(rows[test])
        found.append(balanced_accuracy(label[test], answers))
    return float(np.mean(found))


def told(name: str, gain: float | None, forecasts: Iterable[Forecast]) -> str:
    """Lay out one row."""
    true = "" if gain is None else f"{100 * gain:+.1f}"
    return f"{name:<12} {true:>6}   " + "   ".join(f"{forecast!s:<55}" for forecast in forecasts)


def summary(gains: list[float], forecasts: list[Forecast]) -> str:
    """Say how forecasts and gains agree."""
    values = np.array([f.gain.value for f in forecasts])
    right = np.sign(values) == np.sign(gains)
    inside = [f.gain.low <= g <= f.gain.high for f, g in zip(forecasts, gains, strict=True) if f.gain.bounded]
    decided = [
        (f.verdict == "help") == (g > 0) for f, g in zip(forecasts, gains, strict=True) if f.verdict != "undecided"
    ]
    return (
        f"rank correlation {spearmanr(values, gains).statistic:.2f}, sign right {right.mean():.2f}, mean error "
        f"{100 * np.abs(values - gains).mean():.1f} points, interval holds the gain {np.mean(inside):.2f}, decided "
        f"{len(decided)} of {len(gains)}, right {sum(decided)}; {np.median([f.seconds for f in forecasts]):.2f} s each"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="ordered pairs of views, drawn by the seed")
    parser.add_argument("--k", type=int, default=5, help="labels of each class")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    data = load("mfeat")
    assert data.label is not None
    label, split = np.asarray(data.label), np.asarray(data.columns.split)
    train, test = np.flatnonzero(split == 0), np.flatnonzero(split == 2)
    x = {name: standardised(np.asarray(data.columns.arrays[name], dtype=np.float64)) for name in VIEWS}
    ssl = {name: self_supervised(x[name], train, given.seed) for name in VIEWS}
    alone = {name: max(score(rows[name], label, train, test, given.k) for rows in (x, ssl)) for name in VIEWS}
    known = draw(label, train, given.k, 7 + given.seed)
    order = np.random.default_rng(given.seed).permutation(np.array(list(itertools.permutations(VIEWS, 2))))
    gains: list[float] = []
    by_pilot: list[Forecast] = []
    by_ridge: list[Forecast] = []

    def forecasts(target: str, teacher: np.ndarray) -> list[Forecast]:
        at = np.searchsorted(train, known)
        given_ssl = ssl[target][train]
        return [
            forecast_gain(x[target][train], teacher, label[known], at, ssl=given_ssl, proxy=proxy, seed=given.seed)
            for proxy in ("pilot", "ridge")
        ]

    print(f"{'pair':<12} {'gain':>6}   {'by the pilot':<55}   by the ridge student")
    for source, target in order[: given.pairs].tolist():
        rest = np.setdiff1d(np.arange(len(label)), train)
        student = pilot_student(x[target], ssl[source], leave_out=rest, seed=100 + given.seed)
        gains.append(score(student, label, train, test, given.k) - alone[target])
        pilot, ridge = forecasts(target, ssl[source][train])
        by_pilot.append(pilot)
        by_ridge.append(ridge)
        print(told(f"{source} > {target}", gains[-1], (pilot, ridge)), flush=True)
    for source, target in order[:SHUFFLED].tolist():
        shuffled = np.random.default_rng(1).permutation(ssl[source][train])
        print(told(f"{source} ? {target}", None, forecasts(target, shuffled)), flush=True)
    print(f"\npilot: {summary(gains, by_pilot)}\nridge: {summary(gains, by_ridge)}")
    print(f"{time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
