"""Mutual information by nearest neighbours, in nats: KSG for two sets of numbers, Ross's for numbers and classes.

Both compare how far a row's k-th neighbour lies with how many rows lie as near in one of the two alone, by the largest
difference over columns. They need no model, and some exp(information) rows; beyond some 8 columns in all they are
biased low, which `information.calibration_line` shows.

Source: Kraskov, Stoegbauer and Grassberger 2004, the first of their two, and Ross 2014; both from memory, checked
against known truths.

Shapes: n rows, d and e columns, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.special import digamma

from crossdistill.evaluation._checks import Doubles, Whole

BLOCK = 2**16
"""Distances compared at once: half a MB, which stays in the cache. With 2**21 all takes 1.2 to 4 times as long."""
FEW_NEIGHBOURS = 16
"""Up to which the k-th smallest is found by taking the smallest k times, a fifth of the time of a partition for 3."""
TREE_ROWS = 100
"""Rows from which trees are asked, doubled by each column: both ways then take as long. 10,000 x (2 + 2) take 0.16 s
for 0.41 by direct comparison, 2000 the same 0.02, 10,000 x (4 + 4) 0.83 for 0.52."""
JITTER = 1e-10
"""Noise that tells equal entries apart, in standard deviations of a column."""


def ksg(x: Doubles, y: Doubles, k: int = 3) -> float:
    """Estimate I(x; y) of standardised x (n, d) and y (n, e), n > k.

    psi(k) + psi(n) - mean( psi(n_x + 1) + psi(n_y + 1) ), n_x the other rows nearer in x than the k-th neighbour is in
    both. Columns with equal entries must have been told apart, see `untied`.
    """
    n = len(x)
    if _by_trees(n, x.shape[1] + y.shape[1]):
        reach = _reach(np.concatenate([x, y], axis=1), k)
        found = np.concatenate([_counter(side)(side, reach) for side in (x, y)])
        return float(digamma(k) + digamma(n)) - float(digamma(found).sum()) / n
    total, step = 0.0, max(1, BLOCK // n)
    for start in range(0, n, step):
        in_x: Doubles = cdist(x[start : start + step], x, "chebyshev")
        in_y: Doubles = cdist(y[start : start + step], y, "chebyshev")
        apart = _smallest(np.maximum(in_x, in_y), k)
        total += float(digamma(_nearer(in_x, apart)).sum())  # each counts its own row
        total += float(digamma(_nearer(in_y, apart)).sum())
    return float(digamma(k) + digamma(n) - total / n)


def ross(x: Doubles, code: Whole, k: int = 3) -> float:
    """Estimate I(x; class) of standardised x (n, d) and codes (n,) 0 .. c - 1.

    psi(n) + mean( psi(k) - psi(n_class) - psi(m) ), m the rows of any class, oneself among them, that are nearer than
    the k-th neighbour in one's own. A class of k rows or fewer takes all its others as neighbours; of a single row it
    is left out.
    """
    counts = np.bincount(code)
    used = np.flatnonzero(counts[code] > 1)
    x, code, n = x[used], code[used], len(used)
    counted = _counter(x) if _by_trees(n, x.shape[1] + 2) else None  # one tree of all, and one for each class
    total = 0.0
    for c in np.unique(code):
        own = np.flatnonzero(code == c)
        near = min(k, len(own) - 1)
        m = _direct(x, own, near) if counted is None else counted(x[own], _reach(x[own], near))
        total += len(own) * float(digamma(near) - digamma(len(own))) - float(digamma(m).sum())
    return float(digamma(n) + total / n)


def untied(x: Doubles, seed: int = 0) -> Doubles:
    """Tell equal entries of columns (n, d) apart by noise of `JITTER`; columns without equal ones stay as they are."""
    tied = np.array([len(np.unique(column)) < len(column) for column in x.T])
    if not tied.any():
        return x
    return x + tied * JITTER * np.random.default_rng(seed).normal(size=x.shape)


def _reach(x: Doubles, k: int) -> Doubles:
    """Give how far the k-th neighbour of each row is, (n,), less the least bit: what is within is strictly nearer."""
    apart = np.asarray(cKDTree(x).query(x, [k + 1], p=np.inf)[0], dtype=np.float64)
    return np.nextafter(apart[:, 0], 0.0)


def _by_trees(n: int, columns: int) -> bool:
    return n >= TREE_ROWS * 2**columns


def _counter(x: Doubles) -> Callable[[Doubles, Doubles], Whole]:
    """Make the function that counts the rows of x (n, d) within reach (b,) of each that is asked (b, d)."""
    if x.shape[1] == 1:
        return _sorted_counter(x[:, 0])
    tree = cKDTree(x)

    def count(asked: Doubles, reach: Doubles) -> Whole:
        return np.asarray(tree.query_ball_point(asked, reach, p=np.inf, return_length=True), dtype=np.int64)

    return count


def _sorted_counter(x: Doubles) -> Callable[[Doubles, Doubles], Whole]:
    """Do the same for one column and reaches of 0 or more by sorting it once, much faster than a tree."""
    column = np.concatenate([[-np.inf], np.sort(x), [np.inf]])

    def count(asked: Doubles, reach: Doubles) -> Whole:
        at = asked[:, 0]
        first = np.searchsorted(column, at - reach, "left")
        last = np.searchsorted(column, at + reach, "right") - 1
        # a neighbour lies just at the border, and sums are rounded otherwise than the difference that decides
        while (missed := at - column[first - 1] <= reach).any():
            first -= missed
        while (wrong := at - column[first] > reach).any():
            first += wrong
        while (missed := column[last + 1] - at <= reach).any():
            last += missed
        while (wrong := column[last] - at > reach).any():
            last -= wrong
        return np.asarray(last - first + 1, dtype=np.int64)

    return count


def _smallest(apart: Doubles, k: int) -> Doubles:
    """Give the smallest of each row (b, n) but k, (b, 1), oneself the first; the rows are written over."""
    if k > FEW_NEIGHBOURS:
        return np.partition(apart, k, axis=1)[:, k, None]
    every = np.arange(len(apart))
    for _ in range(k):
        apart[every, apart.argmin(axis=1)] = np.inf
    return apart.min(axis=1, keepdims=True)


def _nearer(apart: Doubles, reach: Doubles) -> Whole:
    """Count those of each row (b, n) that are strictly within its reach (b, 1)."""
    return np.asarray((apart < reach).sum(axis=1), dtype=np.int64)


def _direct(x: Doubles, own: Whole, near: int) -> Whole:
    """Count for each row of one class the rows of any that are nearer than its near-th neighbour in the class."""
    found: list[Whole] = []
    step = max(1, BLOCK // len(x))
    for start in range(0, len(own), step):
        apart = cdist(x[own[start : start + step]], x, "chebyshev")
        reach = _smallest(apart[:, own], near)
        found.append(_nearer(apart, reach))
    return np.concatenate(found)
