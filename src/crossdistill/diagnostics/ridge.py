"""The ridge student: what a shallow map fetches from the teacher out of the target's features, in closed form.

    P = [ relu(X W / sqrt(D) + b), X, 1 ]              X (n, D) standardised by column and clipped, W (D, 512)
    B_h = (P_-h' P_-h + penalty n I)^-1 P_-h' (Z_-h - mu)                              fold h left out, mu = mean Z
    Zhat_h = unit rows of (P_h B_h + mu)

It stands for the student that is not trained yet, wherever a diagnostic needs one: no labels, no gradient, and each row
is embedded by a map that has not seen it. All folds have the teacher's coordinates, so that the rows are one embedding.

Source: our own. Shapes: n pairs, D target features, d of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, label_column, unit_rows

RANDOM_FEATURES = 512
CLIP = 6.0
"""Standard deviations beyond which a feature is cut, as one wild entry would move a whole column of the solution."""


@dataclass(frozen=True, eq=False)
class RidgeStudent:
    """A student in closed form; made by `ridge_student`.

    Attributes:
        values: (n, d) float64, unit rows in the teacher's coordinates, each from a map fitted without its fold.
        r2: Share of the teacher's variance that the maps predict out of fold, before scaling to unit length; negative
            where they do worse than the mean, as honest small sets do at this penalty. 0 for a constant teacher.
        fold: (n,) int64, the fold each row was left out with.
    """

    values: Doubles
    r2: float
    fold: Whole


def ridge_student(
    x: ArrayLike,
    z: ArrayLike,
    *,
    penalty: float = 0.2,
    folds: int = 5,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> RidgeStudent:
    """Map the target's features to the teacher's embedding by ridge regression on random features, out of fold.

    Cheap: one Gram matrix, of features or of pairs, whichever are fewer; each fold takes its own part out.

    Args:
        x: (n, D) target features, row i of the pair that row i of `z` is of; of images, any generic feature.
            Standardised by column and clipped to ±6 here.
        z: (n, d) teacher embedding of the source; scaled to unit rows here.
        penalty: Ridge penalty per pair. 0.2 is fixed and not chosen by reconstruction error: that is 3 to 100 times too
            large for telling whether a student helps, as most of an embedding is nuisance that nothing predicts.
        folds: Parts that are left out in turn, >= 2; fewer where there are fewer groups.
        groups: (n,) what a pair belongs to; no group is on two sides of a fold.
        seed: Of the random features and of the folds.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are fewer than two pairs or groups.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(300, 8))
        >>> teacher = x @ np.random.default_rng(1).normal(size=(8, 4))
        >>> student = ridge_student(x, teacher)
        >>> student.values.shape, student.r2 > 0.8
        ((300, 4), True)
    """
    features, target = feature_rows("x", x), unit_rows(feature_rows("z", z))
    n = len(features)
    if len(target) != n:
        raise DataError(f"row i of x and z must be one pair; received {n} and {len(target)} rows")
    if not 0 < penalty < float("inf"):
        raise ConfigError(f"penalty, of the ridge per pair, must be above 0; received {penalty}")
    fold = group_folds(n, folds, groups, seed=seed)
    p = _random_features(features, np.random.default_rng(seed))
    mean = target.mean(axis=0)
    centred = target - mean
    predicted = (_by_features if p.shape[1] < n else _by_pairs)(p, centred, fold, penalty * n)
    left, whole = float(np.square(centred - predicted).sum()), float(np.square(centred).sum())
    # a constant teacher has the variance of rounding alone
    r2 = 1 - left / whole if whole > n * np.finfo(np.float64).eps else 0.0
    return RidgeStudent(unit_rows(predicted + mean), r2, fold)


def group_folds(n: int, folds: int, groups: ArrayLike | None = None, *, seed: int = 0) -> Whole:
    """Draw folds of nearly equal size that split no group.

    Args:
        n: Rows.
        folds: Parts, >= 2; fewer where there are fewer groups.
        groups: (n,) what a row belongs to; None is each row alone.
        seed: Of the draw.

    Returns:
        (n,) int64, the fold of each row, 0 to folds - 1, none empty.

    Raises:
        ConfigError: If folds < 2.
        DataError: If groups are not (n,).
        NotMeaningful: If there are fewer than two groups.
    """
    if folds < 2:
        raise ConfigError(f"folds must be 2 or more; received {folds}")
    code = np.arange(n) if groups is None else np.unique(label_column("groups", groups, n), return_inverse=True)[1]
    size = np.bincount(code)
    if len(size) < 2:
        raise NotMeaningful(f"cross-fitting needs two rows or groups at least; received {len(size)}")
    order = np.random.default_rng(seed).permutation(len(size))
    order = order[np.argsort(-size[order], kind="stable")]  # the largest first, so that the small ones even out
    held, of = np.zeros(min(folds, len(size))), np.empty(len(size), dtype=np.int64)
    for group in order:
        of[group] = int(held.argmin())
        held[of[group]] += size[group]
    return of[code]


def standardised(x: Doubles) -> Doubles:
    """Bring columns of (n, D) to mean 0 and deviation 1, clipped to ±6; a constant column becomes 0."""
    x = x / np.maximum(np.abs(x).max(axis=0), np.finfo(np.float64).tiny)  # squares then neither overflow nor vanish
    x = x - x.mean(axis=0)
    spread = x.std(axis=0)
    constant = spread <= len(x) * np.finfo(np.float64).eps  # what rounding leaves of equal numbers
    x = np.clip(x / np.where(constant, 1.0, spread), -CLIP, CLIP)
    x[:, constant] = 0.0
    return x


def _random_features(x: Doubles, rng: np.random.Generator) -> Doubles:
    """Give P (n, 512 + D + 1)."""
    x = standardised(x)
    n, d = x.shape
    weight, bias = rng.standard_normal((d, RANDOM_FEATURES)), 0.5 * rng.standard_normal(RANDOM_FEATURES)
    return np.concatenate([np.maximum(x @ weight / d**0.5 + bias, 0.0), x, np.ones((n, 1))], axis=1)


def _by_features(p: Doubles, target: Doubles, fold: Whole, ridge: float) -> Doubles:
    """Predict out of fold from Gram matrices of features; each fold takes its own from the sum."""
    gram, cross = p.T @ p, p.T @ target
    gram[np.diag_indices_from(gram)] += ridge
    predicted = np.empty_like(target)
    for h in range(int(fold.max()) + 1):
        held = fold == h
        own = p[held]
        predicted[held] = own @ _solve(gram - own.T @ own, cross - own.T @ target[held])
    return predicted


def _by_pairs(p: Doubles, target: Doubles, fold: Whole, ridge: float) -> Doubles:
    """Predict the same from the Gram matrix of pairs, which is smaller where features are more than they."""
    kernel = p @ p.T
    predicted = np.empty_like(target)
    for h in range(int(fold.max()) + 1):
        held, rest = fold == h, fold != h
        inner = kernel[np.ix_(rest, rest)]
        inner[np.diag_indices_from(inner)] += ridge
        predicted[held] = kernel[np.ix_(held, rest)] @ _solve(inner, target[rest])
    return predicted


def _solve(matrix: Doubles, right: Doubles) -> Doubles:
    """Solve for a positive definite matrix, overwritten: transposed it is laid out for LAPACK, and is not copied."""
    factor = linalg.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    return linalg.cho_solve(factor, right, check_finite=False)
