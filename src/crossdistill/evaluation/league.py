"""Many methods on many data sets: ranks, whether they differ at all, which of them, and what cannot be told.

The procedure is Demšar's (2006, Statistical comparisons of classifiers over multiple data sets, JMLR 7) with the
pairwise tests that Benavoli, Corani and Mangili (2016, Should we really use post-hoc tests based on mean-ranks?,
JMLR 17) put in place of Nemenyi's: a signed-rank test of two methods does not depend on who else takes part.
Scores are (n, m) everywhere: n data sets, m methods, higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Doubles, feature_rows
from crossdistill.evaluation.statistics import holm

DIGITS = 12
"""Scores that agree to so many decimals are ties: what is left below is rounding, and would be ranked by chance."""


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that m methods on n data sets are all alike.

    Attributes:
        chi2: Statistic, corrected for ties.
        p: Of chi2 with m - 1 degrees of freedom; too large for few data sets.
        f: Iman and Davenport's (1980) statistic, which Demšar prefers; infinite where all data sets agree wholly.
        f_p: Of f with m - 1 and (m - 1)(n - 1) degrees of freedom.
    """

    chi2: float
    p: float
    f: float
    f_p: float


def rank_methods(scores: ArrayLike) -> Doubles:
    """Rank the methods of each data set, 1 for the best; ties share the mean of their ranks.

    Args:
        scores: (n, m), finite; n, m >= 1.

    Returns:
        Ranks (n, m), float64.

    Raises:
        DataError: If the shape is another or a score is not finite.
    """
    return _ranks(-feature_rows("scores", scores).round(DIGITS))


def average_ranks(scores: ArrayLike) -> Doubles:
    """Average each method's ranks over the data sets (Demšar 2006, section 3.2.2): (m,), low is good."""
    return rank_methods(scores).mean(axis=0)


def friedman(scores: ArrayLike) -> Friedman:
    """Test whether any of the methods differs from the others (Friedman 1937; Iman & Davenport 1980).

    Raises:
        DataError: If there are fewer than two data sets or two methods, or a score is not finite.
    """
    ranks = rank_methods(scores)
    n, m = _at_least_two(ranks)
    middle = (m + 1) / 2
    spread = float(((ranks - middle) ** 2).sum()) / (n * (m - 1))
    if spread == 0:  # all tied everywhere
        return Friedman(0.0, 1.0, 0.0, 1.0)
    chi2 = n * float(((ranks.mean(axis=0) - middle) ** 2).sum()) / spread
    room = n * (m - 1) - chi2
    f = (n - 1) * chi2 / room if room > 1e-9 * chi2 else math.inf
    return Friedman(chi2, float(stats.chi2.sf(chi2, m - 1)), f, float(stats.f.sf(f, m - 1, (m - 1) * (n - 1))))


def critical_difference(methods: int, data_sets: int, *, level: float = 0.95) -> float:
    """Give Nemenyi's critical difference q sqrt(m (m + 1) / 6n) of average ranks (Demšar 2006, section 3.2.2).

    Args:
        methods: m >= 2.
        data_sets: n >= 1.
        level: Confidence over all pairs together, in (0, 1).

    Raises:
        ConfigError: If a parameter is out of range.
    """
    if methods < 2 or data_sets < 1 or not 0 < level < 1:
        raise ConfigError(
            f"need methods >= 2, data_sets >= 1, level in (0, 1); received {methods}, {data_sets}, {level}"
        )
    q = float(stats.studentized_range.ppf(level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * data_sets))


def signed_rank_p(differences: ArrayLike) -> float:
    """Give the two-sided p of Wilcoxon's signed-rank test of differences (n,) around zero.

    Zeros are left out and ties share ranks, as Wilcoxon did; the p-value is exact given the ties, every assignment of
    signs being counted (in n^3 steps), where scipy's is exact without ties alone.

    Raises:
        DataError: If there are no differences or one is not finite.
    """
    d = feature_rows("differences", np.asarray(differences, dtype=np.float64)[None])[0].round(DIGITS)
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    twice = np.rint(2 * _ranks(np.abs(d))).astype(np.int64)  # shared ranks are halves
    share = np.zeros(int(twice.sum()) + 1)  # share[s]: of all signs, how many give the sum s / 2 of positive ranks
    share[0] = 1.0
    for rank in twice:
        share[rank:] += share[:-rank].copy()
        share /= 2
    smaller = min(int(twice[d > 0].sum()), int(twice[d < 0].sum()))
    return min(1.0, 2 * float(share[: smaller + 1].sum()))


def pairwise_signed_rank(scores: ArrayLike) -> Doubles:
    """Compare every two methods by the signed-rank test, Holm-adjusted over all m (m - 1) / 2 pairs.

    Args:
        scores: (n, m), finite; n >= 2, m >= 2.

    Returns:
        Adjusted p-values (m, m), symmetric, 1 on the diagonal.

    Raises:
        DataError: If there are fewer than two data sets or two methods, or a score is not finite.
    """
    x = feature_rows("scores", scores)
    _, m = _at_least_two(x)
    first, second = np.triu_indices(m, 1)
    p = holm([signed_rank_p(x[:, i] - x[:, j]) for i, j in zip(first, second, strict=True)])
    table = np.ones((m, m))
    table[first, second] = table[second, first] = p
    return table


def data_sets_needed(methods: int, *, level: float = 0.95) -> int:
    """Give the fewest data sets on which Holm-adjusted signed-rank tests of all pairs can find anything.

    n differences of one sign have p = 2^(1 - n), and Holm asks m (m - 1) / 2 times less of the first pair: two methods
    need 6 data sets at 95 %, ten methods 11. Below, every pair stays undecided whatever the scores.

    Raises:
        ConfigError: If a parameter is out of range.
    """
    if methods < 2 or not 0 < level < 1:
        raise ConfigError(f"need methods >= 2 and level in (0, 1); received {methods}, {level}")
    pairs, n = methods * (methods - 1) // 2, 1
    while pairs * 2.0 ** (1 - n) >= 1 - level:
        n += 1
    return n


def cliques(ranks: Sequence[float] | Doubles, different: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Give the bars of a critical-difference diagram: runs of neighbours in rank, no two of which differ.

    A bar joins all methods that it spans, so a pair that differs is never under one bar, also where "does not differ"
    is not transitive. Bars inside a longer one, and single methods, are left out.

    Args:
        ranks: Average ranks (m,).
        different: Whether two methods were found to differ, (m, m), symmetric.

    Returns:
        Tuples of positions in `ranks`, each sorted by rank, the best first.

    Raises:
        DataError: If the shapes do not fit.
    """
    order = np.argsort(ranks, kind="stable")
    apart = np.asarray(different, dtype=bool)
    if apart.shape != (len(order), len(order)):
        raise DataError(f"different must be ({len(order)}, {len(order)}), as there are ranks; received {apart.shape}")
    apart = apart[np.ix_(order, order)]
    found: list[tuple[int, ...]] = []
    reached = 0
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not apart[start : end + 1, start : end + 1].any():
            end += 1
        if end - start > 1 and end > reached:
            found.append(tuple(int(i) for i in order[start:end]))
            reached = end
    return found


def _ranks(x: Doubles) -> Doubles:
    """Rank along the last axis, 1 for the smallest; ties share the mean of their ranks."""
    ranks: Any = stats.rankdata(x, axis=-1)  # its stubs know no result
    return ranks


def _at_least_two(scores: Doubles) -> tuple[int, int]:
    n, m = scores.shape
    if n < 2 or m < 2:
        raise DataError(f"a comparison needs two data sets and two methods or more; received {n} and {m}")
    return n, m
