"""The time of Algorithm 1; run it with `python -m benchmarks.mfh.speed`.

Both modalities of the sheet's setting: 200 pairs, 50 columns each, two classes, 100 permutations. The goals are 0.02
CPU seconds for the closed form and 0.05 for permutations, with the same order; the released code takes 0.42 (by our
measurement on another machine). A head of two layers, for which there is no closed form, is timed for comparison, and
the same head asked of one permutation after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from benchmarks.fidelity.mfh import worlds
from benchmarks.fidelity.mfh_nullify import nested
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from crossdistill.diagnostics import Generality, modality_generality

REPEATS, PERMUTATIONS, SHARED = 7, 100, 10


def seconds(task: Callable[[], object]) -> float:
    """Give the least CPU seconds of some repeats."""
    taken = []
    for _ in range(REPEATS):
        started = time.process_time()
        task()
        taken.append(time.process_time() - started)
    return min(taken)


Linear = tuple[np.ndarray, np.ndarray]


def setting() -> tuple[list[np.ndarray], list[Linear]]:
    """Give both modalities (200, 50), and a linear head of each.

    The heads agree: each learns the label from what both modalities have, and half from the rest.
    """
    drawn = worlds(nested, [(10, SHARED)], [42])[0]
    first, second, y = (part[0].numpy() for part in drawn)
    linear = []
    for x in (first, second):
        weight = LogisticRegression(C=0.1).fit(x, y).coef_[0]
        weight[SHARED:] /= 2
        linear.append((np.stack([-weight, weight]), np.zeros(2)))
    return [first, second], linear


def one_by_one(x: np.ndarray, head: Callable[[np.ndarray], np.ndarray], other: np.ndarray) -> np.ndarray:
    """Score channels as the released code does: one permutation after the other, the head on all pairs each time."""
    rng = np.random.default_rng(0)
    scores = np.zeros(x.shape[1])
    for i in range(x.shape[1]):
        for _ in range(PERMUTATIONS):
            broken = x.copy()
            broken[:, i] = rng.permutation(x[:, i])
            scores[i] += ((head(broken) - other) ** 2).mean() / PERMUTATIONS
    return scores


def main() -> None:
    """Time, and compare the orders."""
    (first, second), linear = setting()
    logits = [x @ w.T + b for x, (w, b) in zip((first, second), linear, strict=True)]
    hidden = np.random.default_rng(0).normal(size=(50, 32)) / 50**0.5

    def layers(z: np.ndarray) -> np.ndarray:
        return np.maximum(z @ hidden, 0) @ np.ones((32, 2))

    def both(heads: list, method: str = "auto") -> list[Generality]:
        return [
            modality_generality(x, head, other, method=method, n_permutations=PERMUTATIONS)
            for x, head, other in zip((first, second), heads, logits[::-1], strict=True)
        ]

    def slowly() -> None:
        for x, other in zip((first, second), logits[::-1], strict=True):
            one_by_one(x, layers, other)

    with threadpool_limits(1):
        closed, permuted = seconds(lambda: both(linear, "closed_form")), seconds(lambda: both(linear, "permutation"))
        deep, slow = seconds(lambda: both([layers, layers])), seconds(slowly)
        exact, drawn_scores = both(linear, "closed_form"), both(linear, "permutation")
    order = min(float(spearmanr(a.scores, b.scores).statistic) for a, b in zip(exact, drawn_scores, strict=True))
    top = [set(a.kept(SHARED)) == set(b.kept(SHARED)) for a, b in zip(exact, drawn_scores, strict=True)]
    print(f"closed form                       {closed:.5f} CPU s (goal 0.02)")
    print(f"permutations, linear head         {permuted:.4f} CPU s (goal 0.05; released code 0.42)")
    print(f"permutations, head of two layers  {deep:.3f} CPU s, one permutation after the other {slow:.3f}")
    print(f"least rank correlation of the two orders {order:.4f}; the same {SHARED} highest: {top}")


if __name__ == "__main__":
    main()
