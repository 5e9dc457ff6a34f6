"""How the automatic share and walk were chosen; run it with `python -m benchmarks.focused.forecast`.

A forecast in place of students: a ridge on random ReLU features foretells the coordinates from the target's inputs, out
of fold, and closed-form probes with 1, 5 and 20 labels a class judge it. That costs a second for a whole grid, so that
all shares and walks can be tried on the ordered pairs of views of Multiple Features with an odd number, seeds 0 and 1.
The pairs with an even number are judged by trained students alone, in share.py. Results: results/forecast.json.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.cmcd.protocol import augmented, encoder, features, labels, samples, self_supervised
from torch import Tensor
from torch.nn import functional as F

from crossdistill.data import load
from crossdistill.evaluation import few_labels
from crossdistill.files import write_json
from crossdistill.objectives import unit
from crossdistill.objectives._graph import displacement, neighbour_graph
from crossdistill.objectives.smoothed import SmoothedTarget

PAIRS = tuple(itertools.permutations(("fac", "fou", "kar", "mor", "pix", "zer"), 2))[0::2]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
LABELS, DRAWS, WIDTH, FOLDS, PENALTY = (1, 5, 20), 6, 512, 5, 0.02
NOISE = [{"noise": {"std": 0.3}}, {"dropout": {"share": 0.2}}]
RULES: Mapping[str, Callable[[float, float], float]] = {
    "a2": lambda a, b: a**2 / (a**2 + b**2),
    "a3": lambda a, b: a**3 / (a**3 + b**3),
    "a3, a quarter by chance": lambda a, b: max(1 - 4 * a * b, 0) * (a**3 / (a**3 + b**3) - 0.25) + 0.25,
    "default": lambda a, b: max(a, b) ** 4 / (max(a, b) ** 4 + 3 * b**4),
}
OUT = Path(__file__).parent / "results" / "forecast.json"


class Forecast:
    """A ridge from a target's inputs to coordinates, for pairs (out of fold) and test samples."""

    def __init__(self, x: Tensor, new: Tensor) -> None:
        mean, spread = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(x.shape[1], WIDTH, generator=generator) / x.shape[1] ** 0.5
        bias = 0.5 * torch.randn(WIDTH, generator=generator)

        def lifted(rows: Tensor) -> Tensor:
            rows = (rows - mean) / spread
            parts = [torch.relu(rows @ weight + bias), rows / x.shape[1] ** 0.5, torch.ones(len(rows), 1)]
            return torch.cat(parts, dim=1).double()

        self.x, self.new, self.fold = lifted(x), lifted(new), torch.arange(len(x)) % FOLDS

    def __call__(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Give the forecast of coordinates (n, m) for the pairs and for the test samples."""
        target = unit(target.double())
        centred, out = target - target.mean(dim=0), torch.empty_like(target)
        for fold in range(FOLDS):
            seen = self.fold != fold
            out[~seen] = self.x[~seen] @ self._ridge(self.x[seen], centred[seen]) + target.mean(dim=0)
        return out, self.new @ self._ridge(self.x, centred) + target.mean(dim=0)

    def _ridge(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.solve(x.T @ x + PENALTY * len(self.x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def judged(z: Tensor, new: Tensor, y: np.ndarray, truth: np.ndarray, draws: Mapping[int, list[Any]]) -> list[float]:
    """Give the accuracy of kernel ridge probes, %, a mean over draws, for each number of labels."""
    z, new, found = unit(z), unit(new), list[float]()
    for chosen in draws.values():
        right: list[float] = []
        for rows in chosen:
            seen, classes = z[rows], F.one_hot(torch.from_numpy(y[rows].astype(np.int64)), 10).double()
            kernel = seen @ seen.T + 0.1 + 0.3 * torch.eye(len(seen), dtype=seen.dtype)
            scores = (new @ seen.T + 0.1) @ torch.linalg.solve(kernel, classes)
            right.append(float((scores.argmax(dim=1).numpy() == truth).mean()))
        found.append(100 * float(np.mean(right)))
    return found


def main() -> None:
    """Try all settings and rules, keep and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--every", type=int, default=1, help="take one direction in this many")
    parser.add_argument("--epochs", type=int, default=175)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, clock = load("mfeat"), time.process_time()
    train, test = data.split("train"), data.split("test")
    y, truth, runs = labels(train), labels(test), list[dict[str, Any]]()
    for seed in given.seeds:
        z: dict[str, Tensor] = {}
        for source, target in PAIRS[:: given.every]:
            if source not in z:
                noisy = augmented(train, {source: NOISE})
                net = encoder(data, source, seed)
                net = self_supervised(net, noisy, source, epochs=given.epochs, batch_size=256, seed=seed)
                z[source] = torch.from_numpy(features(net, train, source))
            x = samples(train, target)
            draws = {n: [few_labels(y, n, 100 * seed + d) for d in range(DRAWS)] for n in LABELS}
            one, other = neighbour_graph(z[source]), neighbour_graph(x, standardise=True)
            a, b = displacement(one, other), displacement(other, one)
            settings: dict[str, tuple[float, Any]] = {f"share {s:g}, walk 8": (s, 8.0) for s in SHARES}
            settings |= {f"rule {name}, walk 8": (rule(a, b), 8.0) for name, rule in RULES.items()}
            chosen = RULES["default"](a, b)
            settings["rule default, walk auto"] = (chosen, "auto")
            forecast, found = Forecast(x, samples(test, target)), dict[str, list[float]]()
            for name, (share, walk) in settings.items():
                coordinates = SmoothedTarget(target_share=share, walk=walk).fit(z[source], x).coordinates
                found[name] = judged(*forecast(coordinates), y, truth, draws)
            runs.append({"source": source, "target": target, "seed": seed, "a": a, "b": b, "accuracy": found})
            write_json(OUT, {"cpu_seconds": round(time.process_time() - clock), "runs": runs})
            print(source, target, seed, f"a {a:.2f} b {b:.2f} share {chosen:.2f}", flush=True)
    for name in runs[0]["accuracy"]:
        each = np.array([run["accuracy"][name] for run in runs])
        worst = (each - np.array([run["accuracy"]["share 0.25, walk 8"] for run in runs])).min(axis=0)
        print(f"{name:52}", each.mean(axis=0).round(1), "worst against the former default", worst.round(1))


if __name__ == "__main__":
    main()
