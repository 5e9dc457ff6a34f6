"""Uncertainty over seeds and over test items, and what may be concluded from it."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Doubles, feature_rows, label_column

Verdict = Literal["helped", "hurt", "undecided"]

CHUNK = 4_000_000
"""Draws of the bootstrap held at once, which bounds memory to some 64 MB."""

QUADRATURE = 200
"""Nodes of the power integral, which then is right to six digits."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate.
        low: Lower bound; None where one observation tells nothing of the spread (the bound is infinite).
        high: Upper bound, None likewise.
        n: Observations: seeds, items or groups.
        level: Confidence, in (0, 1).
        kind: How it was made, for the reader: "t over seeds", ...
    """

    value: float
    low: float | None
    high: float | None
    n: int
    level: float = 0.95
    kind: str = "t over seeds"

    @property
    def bounded(self) -> bool:
        """Whether there are bounds: two observations or more."""
        return self.low is not None and self.high is not None


def mean_interval(values: ArrayLike, *, level: float = 0.95, kind: str = "t over seeds") -> Interval:
    """Give the mean of values (n,) with Student's interval mean ± t sd / sqrt(n).

    Args:
        values: One number a seed, finite; one alone has no bounds.
        level: Confidence, in (0, 1).
        kind: What is said of the interval.

    Raises:
        DataError: If there are no values or one is not finite.
        ConfigError: If the level is not in (0, 1).
    """
    x = _observations("values", values)
    _check_share(level=level)
    value, spread = _mean_and_spread(x)
    if len(x) == 1:
        return Interval(value, None, None, 1, level, kind)
    half = _t_quantile(level, len(x) - 1) * spread / math.sqrt(len(x))
    return Interval(value, value - half, value + half, len(x), level, kind)


def paired_difference(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Interval:
    """Give the mean of a - b with Student's interval over pairs, such as two methods on the same seeds.

    Args:
        a: (n,), finite.
        b: (n,), finite; row i belongs to row i of a.
        level: Confidence, in (0, 1).

    Raises:
        DataError: If lengths differ or a value is not finite.
    """
    return mean_interval(_differences(a, b), level=level, kind="paired t over seeds")


def paired_p_value(a: ArrayLike, b: ArrayLike) -> float | None:
    """Give the two-sided p of the paired t test of no difference; None for one pair, which tells nothing.

    Raises:
        DataError: If lengths differ or a value is not finite.
    """
    d = _differences(a, b)
    if len(d) == 1:
        return None
    value, spread = _mean_and_spread(d)
    if spread == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / (spread / math.sqrt(len(d))), len(d) - 1))


def bootstrap_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Give mean(a) - mean(b) over test items with a paired percentile bootstrap (Efron & Tibshirani 1993).

    Args:
        correct_a: One number an item, (n,): right or wrong, or any other per-sample metric.
        correct_b: The same of the other method, on the same items.
        groups: What an item belongs to, (n,): whole groups are drawn, as their items are not independent.
        resamples: Draws.
        seed: Decides the draws.
        level: Confidence, in (0, 1).

    Returns:
        The interval; `n` is the number of items or of groups, and one alone has no bounds.

    Raises:
        DataError: If lengths differ or a value is not finite.
        ConfigError: If a parameter is out of range.
    """
    d = _differences(correct_a, correct_b)
    _check_draws(resamples, level)
    total, count, kind = _by_unit(d[:, None], groups)
    n, value = len(total), _mean_and_spread(d)[0]
    if n == 1:
        return Interval(value, None, None, 1, level, kind)
    flat = total[:, 0]
    means = [flat[drawn].sum(axis=1) / count[drawn].sum(axis=1) for drawn in _draws(n, resamples, seed)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n, level, kind)


def bootstrap_differences(
    differences: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """Give `bootstrap_difference` of many comparisons on the same items, which then share their draws.

    Args:
        differences: Per-item differences (n, m), finite: one comparison a column.
        groups: What an item belongs to, (n,).
        resamples: Draws.
        seed: Decides the draws.
        level: Confidence, in (0, 1).

    Returns:
        An interval a column; to rounding, the one that `bootstrap_difference` gives for it alone.

    Raises:
        DataError: If the shape is another or a value is not finite.
        ConfigError: If a parameter is out of range.
    """
    d = feature_rows("differences", differences)
    _check_draws(resamples, level)
    total, count, kind = _by_unit(d, groups)
    n = len(total)
    if n == 1:
        return [Interval(float(value), None, None, 1, level, kind) for value in d.mean(axis=0)]
    means: list[Doubles] = []
    for drawn in _draws(n, resamples, seed):
        shift = np.arange(len(drawn))[:, None] * n  # how often a resample holds a unit: a product then adds them up
        often = np.bincount((drawn + shift).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        means.append((often @ total) / (often @ count)[:, None])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Interval(float(value), float(a), float(b), n, level, kind)
        for value, a, b in zip(d.mean(axis=0), low, high, strict=True)
    ]


def _by_unit(d: Doubles, groups: ArrayLike | None) -> tuple[Doubles, Doubles, str]:
    """Add items (n, m) up over what is drawn: sums (units, m), items a unit (units,), and what to call the interval."""
    if groups is None:
        return d, np.ones(len(d)), "paired bootstrap over items"
    _, code = np.unique(label_column("groups", groups, len(d)), return_inverse=True)
    total = np.zeros((int(code.max()) + 1, d.shape[1]))
    np.add.at(total, code, d)
    return total, np.bincount(code).astype(np.float64), "paired bootstrap over groups"


def _draws(n: int, resamples: int, seed: int) -> Generator[NDArray[np.int32]]:
    """Draw `resamples` times n of n units, with replacement, in blocks (rows, n) that fit into memory."""
    rng, rows = np.random.default_rng(seed), max(1, CHUNK // n)
    for start in range(0, resamples, rows):
        yield rng.integers(0, n, size=(min(rows, resamples - start), n), dtype=np.int32)


def _check_draws(resamples: int, level: float) -> None:
    _check_share(level=level)
    if resamples < 1:
        raise ConfigError(f"a bootstrap needs resamples >= 1; received {resamples}")


def minimum_detectable_difference(spread: float, n: int, *, level: float = 0.95, power: float = 0.8) -> float | None:
    """Give the true difference that a paired t test over n seeds would find with probability `power`.

    Args:
        spread: Standard deviation of the paired differences over seeds, >= 0.
        n: Seeds; one finds nothing, the answer is None.
        level: Confidence of the test, two-sided.
        power: In (0, 1), at least 1 - level.

    Raises:
        ConfigError: If a parameter is out of range.
    """
    _check_share(level=level, power=power)
    if not (math.isfinite(spread) and spread >= 0) or n < 1 or power <= 1 - level:
        raise ConfigError(f"need spread >= 0, n >= 1, power > 1 - level; received {spread}, {n}, {power}, {level}")
    if n == 1:
        return None
    critical = _t_quantile(level, n - 1)
    return _detectable_shift(n, critical, power) * spread / math.sqrt(n)


@functools.lru_cache
def _t_quantile(level: float, freedom: int) -> float:
    return float(stats.t.ppf((1 + level) / 2, freedom))


@functools.lru_cache
def _detectable_shift(n: int, critical: float, power: float) -> float:
    """Give the shift, in standard errors, that a two-sided t test finds with probability `power`."""
    # the noncentral t, as a mean over the estimated spread: scipy's own is NaN far from the middle
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE)
    bar = critical * np.sqrt(stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))

    def lacking(shift: float) -> float:
        found = stats.norm.sf(bar - shift) + stats.norm.cdf(-bar - shift)
        return float(weights @ found) / 2 - power

    return float(optimize.brentq(lacking, 0.0, 10.0 * critical + 10.0))


def holm(p_values: ArrayLike) -> Doubles:
    """Adjust p-values (m,) for m comparisons (Holm 1979): those below alpha are found with familywise error alpha.

    Raises:
        DataError: If a value is not in [0, 1].
    """
    p = _observations("p_values", p_values)
    if p.min() < 0 or p.max() > 1:
        raise DataError(f"p-values must be in [0, 1]; received {p.min()} .. {p.max()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def sign_verdict(interval: Interval) -> Verdict:
    """Say what the interval of (method - best control) decides: nothing if it holds zero or has no bounds."""
    if interval.low is not None and interval.low > 0:
        return "helped"
    if interval.high is not None and interval.high < 0:
        return "hurt"
    return "undecided"


def _observations(name: str, values: ArrayLike) -> Doubles:
    x = label_column(name, values).astype(np.float64)
    if not np.isfinite(x).all():
        raise DataError(f"{name}: entry {int(np.flatnonzero(~np.isfinite(x))[0])} is not finite")
    return x


def _differences(a: ArrayLike, b: ArrayLike) -> Doubles:
    first, second = _observations("a", a), _observations("b", b)
    if len(first) != len(second):
        raise DataError(f"a paired comparison needs as many values on both sides; received {len(first)}, {len(second)}")
    return first - second


def _mean_and_spread(x: Doubles) -> tuple[float, float]:
    """Give mean and standard deviation (n - 1); equal values have exactly that mean and no spread."""
    if (x == x[0]).all():
        return float(x[0]), 0.0
    return float(x.mean()), float(x.std(ddof=1))


def _check_share(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ConfigError(f"{name} must be in (0, 1); received {share}")
