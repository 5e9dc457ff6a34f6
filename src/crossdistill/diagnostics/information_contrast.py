"""Mutual information by telling partners from others: InfoNCE on pairs that its critic was not trained on, in nats.

    mean over pairs of  S_ii - log( 1/B sum_j exp S_ij ),   S_ij = f(x_i) . g(y_j) + b(y_j)

A critic is trained on one half and asked about the other, and the other way round. On rows of its own training it may
say anything up to its cap, log B, whatever the truth is; on others it is a lower estimate, and low where pairs are few
for their columns.

Source: van den Oord, Li and Vinyals 2018 (from memory); the cross-fitting and the start of the critic, that of the
Gaussian with the canonical correlations of its half, are ours.

Shapes: n rows, d and e columns, B of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.diagnostics.information_networks import Canonical, Floats, trained
from crossdistill.evaluation._checks import Doubles, Whole

WIDTH = 32
"""Products that the critic adds up, besides its term of y alone."""
STEPS = 400
"""Of training at most."""
MOST_CORRELATION = 0.99
"""Canonical correlations are cut here at the start, as those of few rows are too high."""


@dataclass(frozen=True, eq=False)
class ContrastInformation:
    """Held-out terms of each pair; made by `contrast_information`.

    Attributes:
        terms: (n,), whose mean is the estimate.
        cap: Nats that the estimate cannot go beyond: log B of the smaller half.
    """

    terms: Doubles
    cap: float

    def __call__(self, rows: Whole) -> float:
        """Average over some of the pairs, whole numbers (any,)."""
        return float(self.terms[rows].mean())


def contrast_information(
    x: Doubles, y: Doubles, halves: tuple[Whole, Whole], *, batch: int, seed: int = 0
) -> ContrastInformation:
    """Train a critic on each half and ask it about the other.

    Args:
        x: (n, d), standardised.
        y: (n, e), standardised; of classes, their indicators.
        halves: Rows of the two, whole numbers.
        batch: Pairs that are told apart, B; held-out rows are cut into as many equal batches as make them no larger.
        seed: Of the networks and the batches.
    """
    terms, cap = np.empty(len(x)), math.inf
    for rows, held_out in (halves, halves[::-1]):
        cut = len(rows) * 3 // 4
        towers = trained(x, y, rows[:cut], rows[cut:], _start, _loss, steps=STEPS, seed=seed)
        order = np.random.default_rng(seed).permutation(held_out)
        for part in np.array_split(order, math.ceil(len(order) / batch)):
            f, g = towers(x[part], y[part])
            terms[part] = info_nce(f, g)
            cap = min(cap, math.log(len(part)))
    return ContrastInformation(terms, cap)


def info_nce(f: Doubles, g: Doubles) -> Doubles:
    """Give the term of each pair, (b,), at most log b; f and g are (b, width + 1), g's last column b(y)."""
    return _terms(f, g)[0] + math.log(len(f))


def _terms(f: NDArray[Any], g: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Give the log of the share that each pair has of its row of exp scores, (b,); those (b, b), by row up to a factor.

    Also the sums of their rows, (b,).
    """
    scores = f[:, :-1] @ g[:, :-1].T
    scores += g[:, -1]
    scores -= scores.max(axis=1)[:, None]
    own = scores.diagonal().copy()
    np.exp(scores, out=scores)  # in place: on the rows that stop the training this is the memory that counts
    total = scores.sum(axis=1)
    return own - np.log(total), scores, total


def _loss(f: Floats, g: Floats) -> tuple[float, Callable[[], tuple[Floats, Floats]]]:
    """Give what is lost, and what gives its gradients."""
    terms, scores, total = _terms(f, g)

    def gradients() -> tuple[Floats, Floats]:
        of_scores = scores / total[:, None]
        of_scores[np.diag_indices(len(f))] -= 1
        of_scores /= len(f)
        of_f, of_g = np.zeros_like(f), np.empty_like(g)
        np.matmul(of_scores, g[:, :-1], out=of_f[:, :-1])
        np.matmul(of_scores.T, f[:, :-1], out=of_g[:, :-1])
        of_g[:, -1] = of_scores.sum(axis=0)
        return of_f, of_g

    return -float(terms.mean()) - math.log(len(f)), gradients


def _start(directions: Canonical, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
    """Begin at r / (1 - r^2) x y for each canonical pair, which a Gaussian's density ratio has; the rest at zero.

    Correlations are lessened by what independent columns would show: (sqrt(d / n) + sqrt(e / n))^2 of r^2.
    """
    widths = len(directions.x), len(directions.y)
    luck = min(1.0, sum((width / directions.rows) ** 0.5 for width in widths) ** 2)
    square = np.maximum(0.0, directions.correlations[:WIDTH] ** 2 - luck) / max(1.0 - luck, 1e-6)
    square = np.minimum(square, MOST_CORRELATION**2)
    size = np.sqrt(np.sqrt(square) / (1 - square))

    def filled(found: Doubles) -> Doubles:
        spare = 0.1 * rng.normal(size=(len(found), WIDTH - len(size))) / len(found) ** 0.5
        return np.concatenate([found[:, : len(size)] * size, spare, np.zeros((len(found), 1))], axis=1)

    return filled(directions.x), filled(directions.y)
