import dataclasses
import itertools
import json

import numpy as np
import pytest
from scipy import stats

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation import (
    Interval,
    bootstrap_difference,
    bootstrap_differences,
    holm,
    mean_interval,
    minimum_detectable_difference,
    paired_difference,
    paired_p_value,
    sign_verdict,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 3, 20])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_t_interval_is_that_of_scipy(rng, n, level):
    x = rng.normal(size=n)
    expected = stats.t.interval(level, n - 1, loc=x.mean(), scale=stats.sem(x))
    interval = mean_interval(x, level=level)
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert (interval.value, interval.n, interval.level) == (pytest.approx(x.mean()), n, level)


def test_t_interval_covers_as_often_as_it_says(rng):
    draws = 2 + 3 * rng.normal(size=(2000, 4))
    covered = np.mean([(i := mean_interval(row)).low <= 2 <= i.high for row in draws])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_paired_difference_ignores_what_seeds_share(rng):
    luck, gain = 100 * rng.normal(size=6), rng.normal(size=6)
    interval = paired_difference(luck + gain, luck)
    expected = mean_interval(gain)
    assert (interval.value, interval.low, interval.high) == pytest.approx((expected.value, expected.low, expected.high))
    opposite = paired_difference(luck, luck + gain)
    assert (opposite.low, opposite.high) == pytest.approx((-interval.high, -interval.low))


def test_p_value_is_that_of_scipy_and_agrees_with_the_interval(rng):
    for _ in range(20):
        a, b = rng.normal(size=(2, 5)) + np.array([[1.0], [0.0]])
        p = paired_p_value(a, b)
        assert p == pytest.approx(stats.ttest_rel(a, b).pvalue)
        assert (p < 0.05) == (sign_verdict(paired_difference(a, b)) != "undecided")


def test_equal_values_have_no_width():
    interval = mean_interval([0.1] * 7)
    assert (interval.value, interval.low, interval.high) == (0.1, 0.1, 0.1)
    assert sign_verdict(interval) == "helped"
    same = paired_difference([0.3, 0.7], [0.3, 0.7])
    assert (same.low, same.high) == (0, 0)
    assert sign_verdict(same) == "undecided"
    assert paired_p_value([0.3, 0.7], [0.3, 0.7]) == 1
    assert paired_p_value([2.0, 3.0], [1.0, 2.0]) == 0


def test_one_seed_has_no_bounds_and_is_still_json():
    interval = mean_interval([0.4])
    assert (interval.value, interval.low, interval.high, interval.bounded) == (0.4, None, None, False)
    assert json.loads(json.dumps(dataclasses.asdict(interval), allow_nan=False))["low"] is None
    assert sign_verdict(interval) == "undecided"
    assert paired_p_value([1.0], [0.0]) is None
    assert bootstrap_difference([1, 0], [0, 0], groups=["g", "g"]).low is None


def test_bootstrap_of_few_items_is_the_exact_distribution(rng):
    a, b = np.array([3.0, 1.0, 0.5, 2.0]), np.array([1.0, 1.5, 0.0, 0.0])
    exact = [np.mean(draw) for draw in itertools.product(a - b, repeat=4)]
    interval = bootstrap_difference(a, b, resamples=20000, seed=1, level=0.8)
    low, high = np.quantile(exact, [0.1, 0.9])
    assert interval.value == pytest.approx((a - b).mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.05)


def test_bootstrap_agrees_with_the_normal_on_many_items(rng):
    a, b = rng.random(3000) < 0.7, rng.random(3000) < 0.6
    interval = bootstrap_difference(a, b, seed=3)
    error = (a.astype(float) - b).std() / np.sqrt(3000)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    assert interval.n == 3000


def test_bootstrap_draws_whole_groups(rng):
    group = np.repeat(np.arange(30), 10)
    a = np.repeat(rng.random(30) < 0.5, 10)  # items of a group are all right or all wrong
    b = np.zeros(300)
    items, groups = bootstrap_difference(a, b), bootstrap_difference(a, b, groups=group)
    assert items.value == groups.value
    assert groups.n == 30
    assert (groups.high - groups.low) / (items.high - items.low) == pytest.approx(np.sqrt(10), rel=0.15)
    single = bootstrap_difference(a, b, groups=np.arange(300))
    assert (single.low, single.high) == (items.low, items.high)


def test_many_comparisons_share_the_draws_of_one(rng, monkeypatch):
    monkeypatch.setattr("crossdistill.evaluation.statistics.CHUNK", 1000)
    a, b = rng.random((2, 60, 3)).round(1)
    for groups in (None, rng.integers(12, size=60), np.zeros(60)):
        together = bootstrap_differences(a - b, groups=groups, resamples=300, seed=4)
        for column, one in enumerate(together):
            alone = bootstrap_difference(a[:, column], b[:, column], groups=groups, resamples=300, seed=4)
            assert (one.n, one.kind, one.bounded) == (alone.n, alone.kind, alone.bounded)
            assert one.value == pytest.approx(alone.value)
            if one.bounded:
                assert (one.low, one.high) == pytest.approx((alone.low, alone.high))


def test_bootstrap_weights_groups_by_their_size():
    interval = bootstrap_difference([1, 1, 1, 0], [0, 0, 0, 0], groups=[0, 0, 0, 1])
    assert (interval.value, interval.low, interval.high) == (0.75, 0, 1)


def test_bootstrap_is_a_function_of_its_seed(rng, monkeypatch):
    a, b = rng.random((2, 50))
    one = bootstrap_difference(a, b, seed=5)
    assert one == bootstrap_difference(a, b, seed=5)
    assert one != bootstrap_difference(a, b, seed=6)
    monkeypatch.setattr("crossdistill.evaluation.statistics.CHUNK", 333)
    assert one == bootstrap_difference(a, b, seed=5)
    zero = bootstrap_difference(a, a)
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_minimum_detectable_difference_is_found_as_often_as_it_says(rng, n):
    difference = minimum_detectable_difference(2.0, n)
    draws = difference + 2.0 * rng.normal(size=(4000, n))
    found = np.abs(stats.ttest_1samp(draws, 0, axis=1).statistic) > stats.t.ppf(0.975, n - 1)
    assert abs(found.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 4000)


def test_minimum_detectable_difference_at_its_borders():
    assert minimum_detectable_difference(1.0, 1) is None
    assert minimum_detectable_difference(0.0, 3) == 0
    by_seeds = [minimum_detectable_difference(1.0, n) for n in range(2, 30)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    large = minimum_detectable_difference(1.0, 10_000)
    assert large == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / 100, rel=1e-3)


def slow_holm(p):
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def test_holm_follows_its_definition(rng):
    for m in (1, 2, 9):
        p = rng.random(m) ** 3
        assert holm(p) == pytest.approx(slow_holm(p))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_holm_keeps_the_familywise_error(rng):
    errors = np.mean([(holm(row) < 0.05).any() for row in rng.random((3000, 6))])
    assert errors < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 3000)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.2, "helped"), (-0.2, -0.1, "hurt"), (-0.1, 0.1, "undecided"), (0.0, 0.1, "undecided")],
)
def test_the_sign_is_decided_by_the_interval(low, high, verdict):
    assert sign_verdict(Interval((low + high) / 2, low, high, 5)) == verdict


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: mean_interval([]), DataError),
        (lambda: mean_interval([1.0, np.nan]), DataError),
        (lambda: mean_interval([1.0, 2.0], level=1.0), ConfigError),
        (lambda: paired_difference([1.0, 2.0], [1.0]), DataError),
        (lambda: bootstrap_difference([1, 0], [1]), DataError),
        (lambda: bootstrap_difference([1, 0], [1, 0], groups=[1]), DataError),
        (lambda: bootstrap_difference([1, 0], [1, 0], resamples=0), ConfigError),
        (lambda: bootstrap_differences([1.0, 0.0]), DataError),
        (lambda: bootstrap_differences([[1.0], [0.0]], groups=[1]), DataError),
        (lambda: bootstrap_differences([[1.0], [0.0]], resamples=0), ConfigError),
        (lambda: minimum_detectable_difference(-1.0, 3), ConfigError),
        (lambda: minimum_detectable_difference(1.0, 3, power=0.01), ConfigError),
        (lambda: holm([0.2, 1.2]), DataError),
    ],
)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error):
        call()
