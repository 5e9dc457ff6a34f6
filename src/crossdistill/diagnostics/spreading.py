"""Label spreading over a graph of all views: what few labels say of the unlabelled pairs (Zhou et al. 2004).

    views  ─►  10 nearest neighbours, weights W  ─►  (I - alpha D^-1/2 W D^-1/2)^-1  ─►  labels of all rows

The operator is the closed form of Zhou et al.; graph, weights and the joint use of several views are our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, unit_rows

SHARPNESS = 0.3
"""Drop of the summed similarity at which an edge has lost a factor of e."""


def label_spreading(
    views: Sequence[ArrayLike], *, neighbours: int = 10, alpha: float = 0.9, sources: ArrayLike | None = None
) -> Doubles:
    """Make the operator that spreads labels over the graph of several views of the same rows.

    Similarities s are inner products of all views side by side, each centred and its rows scaled to unit length, so
    that views count alike. Row i is joined to its nearest by w_ij = exp((s_ij - max s) / 0.3), W = max(W, W').

    Args:
        views: Arrays (n, any width) of the same n rows, one or more.
        neighbours: Of each row; 10, fewer where n is smaller.
        alpha: Share that a row takes from its neighbours, in (0, 1); 0.9.
        sources: Rows (m,) that labels will come from, if only their columns are wanted; None gives all.

    Returns:
        (n, n) float64, symmetric and non-negative, or (n, m) of its columns. Time grows as n^3.

    Raises:
        DataError: If views differ in rows, have fewer than 2, or a value is not finite.
        ConfigError: If a parameter is out of range.
    """
    if neighbours < 1 or not 0 < alpha < 1:
        raise ConfigError(f"label spreading needs neighbours >= 1 and alpha in (0, 1); received {neighbours}, {alpha}")
    blocks = [feature_rows(f"view {number}", view) for number, view in enumerate(views)]
    if not blocks or len({len(block) for block in blocks}) > 1 or len(blocks[0]) < 2:
        raise DataError(f"views must be of the same 2 or more rows; received {[len(block) for block in blocks]} rows")
    rows = np.concatenate([unit_rows(block - block.mean(axis=0)) for block in blocks], axis=1)
    n = len(rows)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    near = np.argpartition(-similarity, min(neighbours, n - 1) - 1, axis=1)[:, : min(neighbours, n - 1)]
    each = np.arange(n)[:, None]
    weights = np.zeros((n, n))
    weights[each, near] = np.exp((similarity[each, near] - similarity.max()) / SHARPNESS)
    weights = np.maximum(weights, weights.T)
    scale = 1.0 / np.sqrt(weights.sum(axis=1))
    system: Doubles = np.eye(n) - alpha * scale[:, None] * weights * scale
    wanted = np.eye(n) if sources is None else np.eye(n)[:, np.asarray(sources, dtype=np.int64)]
    return np.maximum(solve(system, wanted, assume_a="pos"), 0.0)  # entries of rounding errors alone are 0


def spread(operator: Doubles, code: Whole, classes: int) -> Whole:
    """Give every row the class that reaches it most.

    Args:
        operator: (n, m), columns of `label_spreading` for the m labelled rows.
        code: Their classes (m,), 0 .. classes - 1; each class counts alike, whatever its number of labels.
        classes: How many there are; one without a label reaches nothing.

    Returns:
        Classes (n,).
    """
    return (operator @ shares(code, classes)).argmax(axis=1)


def shares(code: Whole, classes: int) -> Doubles:
    """Give one-hot rows (m, classes) divided by the number of labels of the class."""
    hot = np.zeros((len(code), classes))
    hot[np.arange(len(code)), code] = 1.0 / np.bincount(code, minlength=classes)[code]
    return hot
