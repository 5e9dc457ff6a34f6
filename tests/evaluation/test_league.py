import itertools

import numpy as np
import pytest
from scipy import stats

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation.league import (
    average_ranks,
    cliques,
    critical_difference,
    data_sets_needed,
    friedman,
    pairwise_signed_rank,
    rank_methods,
    signed_rank_p,
)
from crossdistill.evaluation.statistics import holm


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Demšar 2006, table 6: AUC of C4.5 with and without m and cf tuned by inner cross-validation (two of them
# print as 0.975 and rank 2 and 3, so they were not tied)
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip


def test_demsars_example():
    ranks = average_ranks(DEMSAR)
    assert ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    n, m = DEMSAR.shape
    plain = 12 * n / (m * (m + 1)) * ((ranks**2).sum() - m * (m + 1) ** 2 / 4)
    assert plain == pytest.approx(9.28, abs=5e-3)  # he prints the statistic without correction for ties
    found = friedman(DEMSAR)
    ties = sum(
        (np.unique(row, return_counts=True)[1] ** 3 - np.unique(row, return_counts=True)[1]).sum() for row in DEMSAR
    )
    assert found.chi2 == pytest.approx(plain / (1 - ties / (n * m * (m**2 - 1))))
    assert critical_difference(m, n) == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(m, n, level=0.9) == pytest.approx(1.12, abs=5e-3)


@pytest.mark.parametrize(
    ("methods", "q05", "q10"),
    [(2, 1.960, 1.645), (3, 2.343, 2.052), (4, 2.569, 2.291), (5, 2.728, 2.459), (8, 3.031, 2.780), (10, 3.164, 2.920)],
)
def test_critical_values_are_those_of_demsars_table_5(methods, q05, q10):
    unit = np.sqrt(methods * (methods + 1) / (6 * 30))
    assert critical_difference(methods, 30) / unit == pytest.approx(q05, abs=1.1e-3)
    assert critical_difference(methods, 30, level=0.9) / unit == pytest.approx(q10, abs=1.1e-3)


def test_friedman_agrees_with_scipy_ties_included(rng):
    for n, m, levels in ((8, 3, 1000), (12, 5, 4), (30, 9, 3)):
        scores = rng.integers(levels, size=(n, m)).astype(float)
        statistic, p = stats.friedmanchisquare(*scores.T)
        found = friedman(scores)
        assert (found.chi2, found.p) == pytest.approx((statistic, p))
        # Iman and Davenport's F is that of a two-way analysis of variance of the ranks
        ranks = rank_methods(scores)
        between = n * ((ranks.mean(0) - (m + 1) / 2) ** 2).sum() / (m - 1)
        rest = ((ranks - ranks.mean(0)) ** 2).sum() / ((n - 1) * (m - 1))
        assert found.f == pytest.approx(between / rest)
        assert found.f_p == pytest.approx(stats.f.sf(between / rest, m - 1, (m - 1) * (n - 1)))


def test_friedman_at_its_borders():
    tied = friedman(np.full((5, 4), 0.3))
    assert (tied.chi2, tied.p, tied.f_p) == (0, 1, 1)
    agreed = friedman(np.tile([0.1, 0.2, 0.3], (6, 1)))
    assert agreed.chi2 == pytest.approx(6 * 2)
    assert agreed.f == np.inf
    assert agreed.f_p == 0


def test_friedman_finds_nothing_in_noise_about_one_time_in_twenty(rng):
    found = np.mean([friedman(rng.normal(size=(15, 5))).f_p < 0.05 for _ in range(2000)])
    assert abs(found - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_rounding_makes_no_ranks():
    assert rank_methods([[0.1 + 0.2, 0.3, 0.1]]).tolist() == [[1.5, 1.5, 3]]


def all_signs(d):
    ranks = stats.rankdata(np.abs(d))
    sums = np.array([ranks[np.array(signs)].sum() for signs in itertools.product([False, True], repeat=len(d))])
    seen = min(ranks[d > 0].sum(), ranks[d < 0].sum())
    return min(1.0, 2 * np.mean(sums <= seen + 1e-9))


def test_signed_rank_p_counts_every_sign(rng):
    for n in (1, 2, 5, 9):
        smooth, tied = rng.normal(0.4, 1, n), rng.integers(1, 4, n) * rng.choice([-1.0, 1.0], n)
        assert signed_rank_p(smooth) == pytest.approx(all_signs(smooth))
        assert signed_rank_p(tied) == pytest.approx(all_signs(tied))
        assert signed_rank_p([*tied, 0.0, 0.0]) == pytest.approx(all_signs(tied))
    assert signed_rank_p(np.zeros(7)) == 1


@pytest.mark.parametrize("n", [6, 20, 50])
def test_signed_rank_p_agrees_with_scipy_without_ties(rng, n):
    d = rng.normal(0.3, 1, n)
    assert signed_rank_p(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)


def test_signed_rank_p_has_its_smallest_value_where_all_agree():
    for n in (2, 5, 6, 11):
        assert signed_rank_p(np.arange(1.0, n + 1)) == pytest.approx(2.0 ** (1 - n))


@pytest.mark.parametrize(("methods", "least"), [(2, 6), (3, 7), (10, 11)])
def test_below_the_data_sets_needed_nothing_can_be_found(methods, least):
    assert data_sets_needed(methods) == least
    ordered = np.arange(methods) + np.zeros((least, 1)) + 0.01 * np.arange(least)[:, None] * np.arange(methods)
    assert pairwise_signed_rank(ordered).min() < 0.05
    assert pairwise_signed_rank(ordered[:-1]).min() >= 0.05


def test_pairs_are_adjusted_together(rng):
    scores = rng.normal(size=(9, 4)) + np.arange(4)
    table = pairwise_signed_rank(scores)
    pairs = list(itertools.combinations(range(4), 2))
    wanted = holm([stats.wilcoxon(scores[:, i], scores[:, j]).pvalue for i, j in pairs])
    assert [table[i, j] for i, j in pairs] == pytest.approx(list(wanted))
    assert (table == table.T).all()
    assert (np.diag(table) == 1).all()


def test_pairwise_tests_keep_the_familywise_error(rng):
    errors = np.mean([pairwise_signed_rank(rng.normal(size=(12, 4))).min() < 0.05 for _ in range(1500)])
    assert errors < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 1500)


def slow_cliques(ranks, different):
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    runs = [order[i:j] for i in range(len(order)) for j in range(i + 2, len(order) + 1)]
    alike = [run for run in runs if not any(different[a][b] for a in run for b in run)]
    return sorted(tuple(run) for run in alike if not any(set(run) < set(other) for other in alike))


def test_cliques_are_the_longest_runs_that_hold_no_difference(rng):
    for _ in range(200):
        m = int(rng.integers(1, 9))
        ranks = rng.permutation(m) + 1.0
        different = np.triu(rng.random((m, m)) < rng.choice([0.1, 0.4, 0.8]), 1)
        different |= different.T
        found = cliques(ranks, different)
        assert sorted(found) == slow_cliques(ranks, different)
        assert [ranks[run[0]] for run in found] == sorted(ranks[run[0]] for run in found)


def test_a_permutation_of_methods_permutes_everything(rng):
    scores = rng.normal(size=(10, 6)) + np.arange(6)
    order = rng.permutation(6)
    assert average_ranks(scores[:, order]) == pytest.approx(average_ranks(scores)[order])
    assert friedman(scores[:, order]).chi2 == pytest.approx(friedman(scores).chi2)
    p, q = pairwise_signed_rank(scores), pairwise_signed_rank(scores[:, order])
    assert q == pytest.approx(p[np.ix_(order, order)])
    bars = cliques(average_ranks(scores)[order], q < 0.05)
    assert [tuple(int(order[i]) for i in bar) for bar in bars] == cliques(average_ranks(scores), p < 0.05)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: average_ranks([0.1, 0.2]), DataError),
        (lambda: average_ranks([[0.1, np.nan]]), DataError),
        (lambda: friedman([[0.1, 0.2]]), DataError),
        (lambda: pairwise_signed_rank([[0.1], [0.2]]), DataError),
        (lambda: signed_rank_p([]), DataError),
        (lambda: critical_difference(1, 5), ConfigError),
        (lambda: critical_difference(3, 5, level=95), ConfigError),
        (lambda: data_sets_needed(1), ConfigError),
        (lambda: cliques([1.0, 2.0], np.zeros((3, 3), dtype=bool)), DataError),
    ],
)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error):
        call()
