"""Ridge probes out of fold, for diagnostics that ask what features tell: closed form, one Gram matrix a fold.

Shapes: n rows, d features, p columns of a probe, c targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import linalg, optimize
from scipy.special import log_softmax

from crossdistill.errors import NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole

FOLDS = 5
RANDOM_FEATURES = 256
MOST_COLUMNS = 1024
"""Of a modality: more are brought to as many by a random projection, which bounds the time."""
SHARPEST = 100.0
"""Factor of ridge scores, which are differences of probabilities, where classes are told apart without error."""
CLIP = 6.0
"""Standard deviations beyond which a feature is cut: one wild entry would move a whole column of the solution."""


def dealt_folds(code: Whole, unit: Whole, rng: np.random.Generator) -> Whole:
    """Deal units, sorted by class (of a row of theirs), out to the folds."""
    _, row = np.unique(unit, return_index=True)
    order = np.lexsort((rng.random(len(row)), code[row]))
    of = np.empty(len(row), dtype=np.int64)
    of[order] = np.arange(len(row)) % FOLDS
    return of[unit]


def check_folds(classes: np.ndarray, code: Whole, fold: Whole) -> None:
    """Refuse a class that some probe would never have seen: two folds are left out at once.

    Raises:
        NotMeaningful: With the class.
    """
    for k, name in enumerate(classes):
        if len(np.unique(fold[code == k])) < 3:
            raise NotMeaningful(f"class {name} is in too few groups to be left out in part and learnt from the rest")


def block(x: Doubles, rng: np.random.Generator) -> Doubles:
    """Standardise columns, cut them, and bring rows to a mean squared length of 1; constant columns become 0."""
    x = x / np.maximum(np.abs(x).max(axis=0), np.finfo(np.float64).tiny)  # squares then neither overflow nor vanish
    x = x - x.mean(axis=0)
    spread = x.std(axis=0)
    varies = spread > len(x) * np.finfo(np.float64).eps
    x = np.clip(x[:, varies] / spread[varies], -CLIP, CLIP)
    if x.shape[1] > MOST_COLUMNS:
        x = x @ rng.standard_normal((x.shape[1], MOST_COLUMNS))
    return unit_length(x)


def unit_length(x: Doubles) -> Doubles:
    """Centre columns and scale all of it to a mean squared row length of 1; what is constant becomes 0."""
    x = x - x.mean(axis=0)
    length = (np.square(x).sum() / len(x)) ** 0.5
    return x / length if length > len(x) * np.finfo(np.float64).eps else np.zeros_like(x)


def expanded(blocks: Sequence[Doubles], rng: np.random.Generator) -> Doubles:
    """Give a probe's columns (n, p): the blocks and random features of all of them, each of mean squared length 1."""
    inputs = np.concatenate(list(blocks), axis=1) / len(blocks) ** 0.5
    weight, bias = rng.standard_normal((inputs.shape[1], RANDOM_FEATURES)), 0.5 * rng.standard_normal(RANDOM_FEATURES)
    p = np.concatenate([*blocks, unit_length(np.maximum(inputs @ weight + bias, 0.0))], axis=1)
    if p.shape[1] > len(p):  # as many columns as rows have the same products, and ridge knows of these alone
        p = np.asarray(linalg.qr(p.T, mode="r", check_finite=False)[0], dtype=np.float64)[: len(p)].T
    return p


class Ridge:
    """Ridge regression out of fold, for any targets, with one Gram matrix a fold; B = (P'P + penalty I)^-1 P'Z."""

    def __init__(self, p: Doubles, fold: Whole) -> None:
        self._rows = [np.flatnonzero(fold == h) for h in range(FOLDS)]
        self._p = [p[rows] for rows in self._rows]
        self._grams = [part.T @ part for part in self._p]
        self._whole = np.zeros_like(self._grams[0])
        for gram in self._grams:
            self._whole += gram
        self._whole[np.diag_indices_from(self._whole)] += max(float(np.square(p).sum()) / len(p), 1.0)
        self._factors = [self._factor(h) for h in range(FOLDS)]

    def _factor(self, *left: int) -> tuple[Doubles, bool]:
        """Factorise without some folds."""
        gram = self._whole.copy()
        for h in left:
            gram -= self._grams[h]
        return linalg.cho_factor(gram.T, lower=True, overwrite_a=True, check_finite=False)

    def _solution(self, factor: tuple[Doubles, bool], z: Doubles, *left: int) -> Doubles:
        """Give B (p, c) for z (n, c) less its mean, without some folds."""
        kept = [h for h in range(FOLDS) if h not in left]
        mean = np.concatenate([z[self._rows[h]] for h in kept]).mean(axis=0)
        right = np.zeros((len(self._whole), z.shape[1]))
        for h in kept:
            right += self._p[h].T @ (z[self._rows[h]] - mean)
        return linalg.cho_solve(factor, right, overwrite_b=True, check_finite=False)

    def scores(self, z: Doubles) -> Doubles:
        """Predict z (n, c) less its mean, each fold from the others."""
        found = np.empty_like(z)
        for h, rows in enumerate(self._rows):
            found[rows] = self._p[h] @ self._solution(self._factors[h], z, h)
        return found

    def nested(self, z: Doubles) -> list[Doubles]:
        """Predict z out of fold as if fold h were not there, for each h: (n, c), zeros in its own rows."""
        found = [np.zeros_like(z) for _ in range(FOLDS)]
        for g, h in combinations(range(FOLDS), 2):
            solution = self._solution(self._factor(g, h), z, g, h)
            found[h][self._rows[g]] = self._p[g] @ solution
            found[g][self._rows[h]] = self._p[h] @ solution
        return found

    def follow(self, other: Ridge, z: Doubles) -> Doubles:
        """Predict what another probe says of z (n, c), out of fold, from this one's columns."""
        found = np.empty_like(z)
        for h, said in enumerate(other.nested(z)):
            found[self._rows[h]] = self._p[h] @ self._solution(self._factors[h], said, h)
        return found


def log_probabilities(scores: Doubles, code: Whole, fold: Whole) -> tuple[Doubles, Doubles]:
    """Make log p(k|x) of a ridge probe's scores of classes (n, c): p(k|x) ~ p(k) exp( a (z_k - m_k / 2) ).

    That is a linear discriminant's form, with m_k the mean of z_k in class k; a >= 0 alone is fitted, on other folds.

    Returns:
        (n, c), and log p(k) without each fold, (FOLDS, c).
    """
    n, c = scores.shape
    log_p, log_share = np.empty((n, c)), np.empty((FOLDS, c))
    for h in range(FOLDS):
        rest, held = np.flatnonzero(fold != h), np.flatnonzero(fold == h)
        count = np.bincount(code[rest], minlength=c)
        log_share[h] = np.log(count / len(rest))
        own = np.bincount(code[rest], scores[rest, code[rest]], minlength=c) / count
        centred = scores - own / 2
        log_p[held] = log_softmax(
            log_share[h] + _factor(centred[rest], code[rest], log_share[h]) * centred[held], axis=1
        )
    return log_p, log_share


def _factor(z: Doubles, code: Whole, log_share: Doubles) -> float:
    """Find the factor in [0, SHARPEST] with the highest likelihood: its slope falls, so the zero is unique."""
    right = z[np.arange(len(z)), code].mean()

    def slope(a: float) -> float:
        p = np.exp(log_softmax(log_share + a * z, axis=1))
        return float(right - (p * z).sum() / len(z))

    if slope(0.0) <= 0:
        return 0.0
    return SHARPEST if slope(SHARPEST) >= 0 else float(optimize.brentq(slope, 0.0, SHARPEST, xtol=1e-3))
