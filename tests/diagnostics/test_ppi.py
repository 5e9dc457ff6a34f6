"""Prediction-powered means: their limits, and a simulation of mean, spread and coverage."""

import numpy as np
import pytest

from crossdistill.diagnostics.ppi import ppi_mean
from crossdistill.errors import DataError, NotMeaningful


def draws(n=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(size=n)


def test_pseudo_labels_that_are_the_truth_give_the_mean_of_all_rows():
    d, _ = draws()
    found = ppi_mean(d, d, 0.3, 10**9)
    assert found.value == pytest.approx(0.3, abs=1e-6)
    assert found.settings["lam"] == pytest.approx(1)
    assert found.standard_error == pytest.approx(0, abs=1e-3)


def test_pseudo_labels_that_say_nothing_leave_the_plain_mean():
    d, p = draws()
    plain = d.std(ddof=1) / 50**0.5
    for found in (
        ppi_mean(d, np.full(50, 0.7), 0.1, 1000),  # constant
        ppi_mean(d, p, 0.1, 0),  # none
        ppi_mean(d, -d, 0.1, 1000),  # against the truth: lam is clipped
    ):
        assert found.value == pytest.approx(d.mean())
        assert found.standard_error == pytest.approx(plain)
        assert found.settings["lam"] == 0


def test_equal_embeddings_differ_by_exactly_nothing():
    zero = ppi_mean(np.zeros(9), np.zeros(9), 0.0, 100)
    assert (zero.value, zero.standard_error, zero.low, zero.high, zero.settings["lam"]) == (0, 0, 0, 0, 0)


def test_the_mean_stays_the_spread_falls_and_the_interval_covers():
    """corr(d, p) = 0.64, n = 50, 1000 unlabelled: sd 0.090 -> 0.071, an 80 % interval covers 0.775 (first study)."""
    rng = np.random.default_rng(0)
    n, more, correlation, spread, mean = 50, 1000, 0.64, 0.64, 0.1
    plain, powered, covered = [], [], []
    for _ in range(4000):
        d = rng.normal(size=n)
        p = correlation * d + (1 - correlation**2) ** 0.5 * rng.normal(size=n)
        p_bar = 0.05 + spread * rng.normal() / more**0.5  # the mean of 1000 has this law
        found = ppi_mean(mean + spread * d, 0.05 + spread * p, p_bar, more, level=0.8)
        plain.append(mean + spread * d.mean())
        powered.append(found.value)
        covered.append(found.low <= mean <= found.high)
    assert np.mean(powered) == pytest.approx(mean, abs=0.005)  # 4 standard errors
    assert np.std(plain) == pytest.approx(0.090, abs=0.004)
    assert np.std(powered) == pytest.approx(0.071, abs=0.004)
    assert np.mean(covered) == pytest.approx(0.775, abs=0.02)


def test_wrong_input_is_refused():
    d, p = draws()
    for bad in ((d, p[:-1], 0.0, 9), (d, np.full(50, np.nan), 0.0, 9), (d, p, np.inf, 9), (d, p, 0.0, -1)):
        with pytest.raises(DataError):
            ppi_mean(*bad)
    with pytest.raises(NotMeaningful, match="two rows"):
        ppi_mean([1.0], [1.0], 0.0, 9)
