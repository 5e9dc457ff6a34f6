"""What nearest neighbours say of Gaussians of known information, and so which of these they say a number of.

Source: our own. Shapes: n rows, d and e columns, w pairs of columns that share.
"""

from __future__ import annotations

import numpy as np

from crossdistill.diagnostics.information_knn import ksg
from crossdistill.evaluation._checks import Doubles

CALIBRATION_ROWS = 4000
"""Rows of Gaussians, in all, that KSG is asked about for a point; one draw at least."""
TOTALS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 10.0, 15.0)
"""Known truths at which KSG is asked; between them it is interpolated."""


class KnownGaussians:
    """Gaussian pairs of one size whose information is any of `TOTALS`, and what KSG says of them."""

    def __init__(self, n: int, columns: tuple[int, int], shares: Doubles, *, k: int = 3, seed: int = 0) -> None:
        """Take n rows of d and e columns, of which the first w share, each its part of the total, (w,)."""
        self._n, self._columns, self._shares, self._k, self._seed = n, columns, shares, k, seed
        self._known: dict[int, float] = {}

    def truth(self, value: float) -> float:
        """Give the information of the Gaussian of which KSG says `value`: between two of `TOTALS`, linearly."""
        last = len(TOTALS) - 1
        high = min(int(np.searchsorted(TOTALS, value)), last)  # about where the truth is; most are never asked
        while high < last and self._said(high) <= value:
            high += 1
        while high > 0 and self._said(high - 1) > value:
            high -= 1
        at_high = self._said(high)
        if high == 0 or value >= at_high:
            return value - at_high + TOTALS[high]
        at_low = self._said(high - 1)
        return TOTALS[high - 1] + (TOTALS[high] - TOTALS[high - 1]) * (value - at_low) / (at_high - at_low)

    def _said(self, position: int) -> float:
        if position not in self._known:
            rng = np.random.default_rng(self._seed)  # the same draws for every total
            draws = range(max(1, CALIBRATION_ROWS // self._n))
            pairs = (known_pairs(self._n, self._columns, TOTALS[position] * self._shares, rng) for _ in draws)
            self._known[position] = float(np.mean([ksg(x, y, self._k) for x, y in pairs]))
        return self._known[position]


def known_pairs(n: int, columns: tuple[int, int], each: Doubles, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
    """Draw Gaussian pairs (n, d) and (n, e) whose first w columns share so many nats `each`, (w,)."""
    x, y = (rng.normal(size=(n, width)) for width in columns)
    r, w = np.sqrt(-np.expm1(-2 * each)), len(each)
    y[:, :w] = r * x[:, :w] + np.sqrt(1 - r**2) * y[:, :w]
    return x, y
