"""Mutual information in closed form, in nats: of Gaussians by canonical correlations, and of classes by their table.

Source: textbook formulas; the Gaussian bias is exact for Gaussian data (the expected log determinants of Wishart
matrices); the bias of the table is Miller's and Madow's (1955, from memory).

Shapes: n rows, d and e columns, c classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma

from crossdistill.errors import DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole

RANK = 1e-8
"""Columns are independent where singular values of the standardised ones are above this share of the largest."""
SURELY = 1e-4
"""What columns have left of their own, as a share of the most, above which no closer look is needed."""
DETERMINED = 1e-10
"""Below this value of 1 - r^2 one side determines a direction of the other, and information is infinite."""


def gaussian_information(correlations: ArrayLike) -> float:
    """Give the information of two Gaussians with these canonical correlations (any,): -1/2 sum log(1 - r^2).

    Raises:
        DataError: If a correlation is not in (-1, 1).
    """
    r = np.asarray(correlations, dtype=np.float64)
    if not (np.abs(r) < 1).all():
        raise DataError(f"canonical correlations must be in (-1, 1); received {r.tolist()}")
    return float(-0.5 * np.log1p(-(r**2)).sum())


def gaussian_bias(n: int, d: int, e: int) -> float:
    """Give by how much n rows of d + e Gaussian columns overstate their information on average, exactly.

    Raises:
        NotMeaningful: If n - 1 <= d + e, where the sample's information is infinite.
    """
    if n - 1 <= d + e:
        raise NotMeaningful(f"the Gaussian estimate needs more rows than columns: n - 1 > {d} + {e}; received n = {n}")

    def expected(p: int) -> float:
        return float(digamma((n - 1 - np.arange(p)) / 2).sum())

    return 0.5 * (expected(d) + expected(e) - expected(d + e))


def gaussian(x: Doubles, y: Doubles) -> float:
    """Estimate I(x; y) of x (n, d) and y (n, e) as if jointly Gaussian, without bias if they are.

    It sees linear dependence alone. Columns that others determine, such as the last of a row of probabilities, count
    as none; so it does not change with invertible linear maps of either side.

    Raises:
        NotMeaningful: If there are too few rows, or one side determines a direction of the other.
    """
    a, b = _basis(x), _basis(y)
    bias = gaussian_bias(len(x), a.shape[1], b.shape[1])
    r = np.linalg.svd(a.T @ b, compute_uv=False)
    if r[0] ** 2 > 1 - DETERMINED:
        raise NotMeaningful("one side determines a column of the other linearly, so their information is infinite")
    return gaussian_information(r) - bias


def gaussian_shares(x: Doubles, y: Doubles) -> Doubles:
    """Give what part of the information of x (n, d) and y (n, e), if Gaussian, each canonical correlation holds, (w,).

    The largest first, each less what chance gives it on average; all the same where no more is left, or rows are too
    few.
    """
    width = min(x.shape[1], y.shape[1])
    if len(x) - 1 > x.shape[1] + y.shape[1]:
        a, b = _basis(x), _basis(y)
        r = np.linalg.svd(a.T @ b, compute_uv=False)
        each = -0.5 * np.log(np.maximum(1 - r**2, DETERMINED))
        left = np.maximum(each - gaussian_bias(len(x), a.shape[1], b.shape[1]) / len(each), 0)
        if left.any():
            return left / left.sum()
    return np.ones(width) / width


def discrete(first: Whole, second: Whole) -> float:
    """Estimate the information of two columns of codes (n,), less (cells - rows - columns + 1) / 2n.

    Cells, rows and columns are those of the table that hold anything.
    """
    n = len(first)
    _, a = np.unique(first, return_inverse=True)
    _, b = np.unique(second, return_inverse=True)
    rows, columns = int(a.max()) + 1, int(b.max()) + 1
    cells = np.bincount(a * columns + b)
    held = cells[cells > 0]
    plain = _entropy(np.bincount(a)) + _entropy(np.bincount(b)) - _entropy(held)
    return plain - (len(held) - rows - columns + 1) / (2 * n)


def entropy(code: Whole) -> float:
    """Give the entropy of codes (n,) as they are, in nats, without correction."""
    return _entropy(np.unique(code, return_counts=True)[1])


def _entropy(counts: Whole) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def _basis(x: Doubles) -> Doubles:
    """Give orthonormal columns (n, rank) that span those of x (n, d), centred."""
    x = x - x.mean(axis=0)
    q, r = np.linalg.qr(x)
    left = np.abs(np.diag(r))
    if left.min() > SURELY * left.max():
        return q
    u, s, _ = np.linalg.svd(x, full_matrices=False)  # several times slower, and right where columns depend on others
    return u[:, s > RANK * s[0]]
