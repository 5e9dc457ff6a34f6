"""Information and rankings beside those of peers: run it with `python -m benchmarks.speed.mi`.

latentmi is installed into an environment of its own; see `requirements.txt` beside this file. One process, one thread,
by turns, CPU seconds; each answer is compared too. What each costs alone, with error bars and more shapes, is measured
by `benchmarks.information.speed` and `benchmarks.mfh.speed`.

latent      500 rows of 64 columns that show two latents each: latentmi 0.1.3, at most 60 epochs; ours twice, the
            estimate alone, which is what latentmi gives, and with the error bar that our users get
columns     KSG of each of 20 columns with a target, 5000 rows: scikit-learn's mutual_info_regression
classes     Ross's estimate of each of 20 columns with ten classes, 5000 rows: scikit-learn's mutual_info_classif
ranking     MFH's Algorithm 1, 200 pairs, 2 x 50 channels, linear heads, 100 permutations: one permutation after the
            other, as released, written by us
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.information.speed import LATENT_TRUTH, latent_pairs, peer_estimate
from benchmarks.mfh.speed import PERMUTATIONS, one_by_one, setting
from benchmarks.record import Check
from benchmarks.speed.measure import ROUNDS, by_turns, keep, ratio, said
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression
from threadpoolctl import threadpool_limits

from crossdistill.diagnostics import modality_generality
from crossdistill.diagnostics.information import mutual_information
from crossdistill.diagnostics.information_knn import ksg, ross
from crossdistill.diagnostics.information_prepared import prepare, side

ROWS, COLUMNS, CLASSES = 5000, 20, 10
OURS = "ours"

Work = Callable[[], Any]


def quietly(work: Work) -> Any:
    """Run without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


class Draws:
    """New data at each call, the same sequence for every side that asks."""

    def __init__(self, ask: Callable[[np.ndarray, np.ndarray], float]) -> None:
        self.ask, self.seed, self.found = ask, 0, list[float]()

    def __call__(self) -> None:
        """Ask about the next data, and remember the answer."""
        torch.manual_seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 - latentmi draws from it
        x, y = latent_pairs(self.seed, rows=500)
        self.found.append(quietly(lambda: self.ask(x, y)))
        self.seed += 1


def latent_value(x: np.ndarray, y: np.ndarray) -> float:
    """Give our estimate without its error bar."""
    return prepare(side("x", x), side("y", y), estimator="latent").at(np.arange(len(x)))


def columns() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw columns (n, d) that say more and more of a target (n,), and the target cut into classes."""
    rng = np.random.default_rng(0)
    target, noise = rng.normal(size=ROWS), rng.normal(size=(ROWS, COLUMNS))
    share = np.linspace(0, 0.9, COLUMNS)
    x = share * target[:, None] + (1 - share**2) ** 0.5 * noise
    edges = np.quantile(target, np.arange(1, CLASSES) / CLASSES)
    return x, target, np.digitize(target, edges)


def compared(
    name: str, works: dict[str, Work], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Time by turns; rows to keep, and the ratio of each to ours."""
    seconds = by_turns(works, rounds)
    ratios = {who: ratio(taken, seconds[OURS]) for who, taken in seconds.items() if who != OURS}
    rows = []
    for who, taken in seconds.items():
        beside = f"; it / ours {said(ratios[who])}" if who in ratios else ""
        print(f"{name:8s} {who:28s} {statistics.median(taken):9.4f} CPU s{beside}", flush=True)
        found = {"row": name, "who": who, "cpu_seconds": [round(x, 5) for x in taken]}
        rows.append(found | ({"it / ours": ratios[who]} if who in ratios else {}))
    return rows, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    checks: list[Check] = []
    rows: list[dict[str, Any]] = []

    def faster(name: str, who: str, found: dict[str, float], bar: float) -> None:
        checks.append(Check(f"{name}: at least {bar:g} times as fast as {who}", said(found), found["median"] >= bar))

    with threadpool_limits(1):
        latent_value(*latent_pairs(0, rows=200))
        sides = {
            OURS: Draws(latent_value),
            "ours, with its error bar": Draws(lambda x, y: mutual_information(x, y, estimator="latent").value),
            "latentmi": Draws(peer_estimate),
        }
        found, ratios = compared("latent", dict(sides), rounds)
        rows += found
        off = {who: float(np.mean(np.abs(np.subtract(s.found, LATENT_TRUTH)))) for who, s in sides.items()}
        said_off = ", ".join(f"{who} {value:.3f}" for who, value in off.items())
        checks.append(
            Check("latent: mean error in nats no larger than latentmi's", said_off, off[OURS] <= off["latentmi"])
        )
        faster("latent", "latentmi", ratios["latentmi"], 20)

        x, target, code = columns()
        scaled, goal = x / x.std(axis=0), (target / target.std())[:, None]
        answers = {
            "columns": {
                OURS: lambda: np.array([ksg(scaled[:, [i]], goal) for i in range(COLUMNS)]),
                "scikit-learn": lambda: mutual_info_regression(x, target, random_state=0),
            },
            "classes": {
                OURS: lambda: np.array([ross(scaled[:, [i]], code) for i in range(COLUMNS)]),
                "scikit-learn": lambda: mutual_info_classif(x, code, random_state=0),
            },
        }
        for name, works in answers.items():
            ours, theirs = (work() for work in works.values())
            gap = float(np.abs(np.maximum(ours, 0) - theirs).max())  # scikit-learn cuts what is below 0
            checks.append(Check(f"{name}: the same to .001 nats", f"{gap:.1e}", gap <= 1e-3))
            found, ratios = compared(name, works, rounds)
            rows += found
            faster(name, "scikit-learn", ratios["scikit-learn"], 1)

        modalities, heads = setting()
        logits = [z @ w.T + b for z, (w, b) in zip(modalities, heads, strict=True)]
        jobs = list(zip(modalities, heads, logits[::-1], strict=True))

        def ranked(method: str) -> list[np.ndarray]:
            return [
                modality_generality(z, head, other, method=method, n_permutations=PERMUTATIONS).scores
                for z, head, other in jobs
            ]

        works = {
            OURS: lambda: ranked("closed_form"),
            "ours, permutations": lambda: ranked("permutation"),
            "one permutation a time": lambda: [
                one_by_one(z, lambda v, w=w, b=b: v @ w.T + b, other) for z, (w, b), other in jobs
            ],
        }
        scores = {who: work() for who, work in works.items()}
        slow = scores["one permutation a time"]
        alike = min(
            float(np.corrcoef(a, b)[0, 1])
            for who in (OURS, "ours, permutations")
            for a, b in zip(scores[who], slow, strict=True)
        )
        says = "ranking: correlation of the scores with those of the released way at least .99"
        checks.append(Check(says, f"{alike:.4f}", alike >= 0.99))
        found, ratios = compared("ranking", works, rounds)
        rows += found
        faster("ranking", "one permutation a time", ratios["one permutation a time"], 20)
    keep("mi", "Information and rankings beside peers", rows, checks, peers=("latentmi", "scikit-learn"))


if __name__ == "__main__":
    main()
