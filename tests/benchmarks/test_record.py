"""Rows of benchmarks are judged by the interval of measured less claimed, and only where it can be."""

import numpy as np
import pytest
from benchmarks.record import MARGIN, Reference, add_difference, apart, row, table, verdict
from scipy import stats

VALUES = [50.0, 51.0, 49.5, 50.5, 49.0]


def claimed(value, sd=None, seeds=5, values=VALUES, name="some row"):
    return row(name, values, Reference(value, sd, seeds))


def test_the_interval_is_that_of_welch():
    theirs = np.array([52.0, 55.0, 50.0, 56.0])
    found = apart(claimed(theirs.mean(), theirs.std(ddof=1), 4))
    interval = stats.ttest_ind(VALUES, theirs, equal_var=False).confidence_interval(0.95)
    assert found[0] - found[1] == pytest.approx(interval.low)
    assert found[0] + found[1] == pytest.approx(interval.high)


def test_without_a_spread_of_the_claim_the_measured_one_stands_for_both():
    difference, half = apart(claimed(49.0, seeds=20))
    assert difference == pytest.approx(1)
    sd = np.std(VALUES, ddof=1)
    assert half == pytest.approx(stats.t.ppf(0.975, 4) * sd * np.sqrt(1 / 5 + 1 / 20))


def test_verdicts():
    assert verdict(claimed(60)) == "differs"
    assert verdict(claimed(50.2, seeds=50)) == "agrees"
    assert verdict(claimed(50.2, 20.0)) == "open"
    assert verdict(claimed(50 - MARGIN + 1, 1.0, 500)) == "differs"  # near, yet told apart
    assert verdict(claimed(0.5, 0.001, 50, [0.5, 0.501, 0.499], "TV")) == "agrees"
    assert verdict(claimed(0.5, 0.1, 5, [0.5, 0.6, 0.4], "TV")) == "open"  # of shares, 3 points are 0.03


@pytest.mark.parametrize("kept", [claimed(50, seeds=2), claimed(50, values=VALUES[:2]), row("r", VALUES, None)])
def test_less_than_three_seeds_on_a_side_are_not_judged(kept):
    assert apart(kept) is None
    assert verdict(kept) == "-"
    assert table([kept]).splitlines()[-1].endswith("| - | - |")


def test_equal_values_on_both_sides_agree():
    assert verdict(claimed(50, 0.0, 3, [50.0, 50.0, 50.0])) == "agrees"
    assert verdict(claimed(51, 0.0, 3, [50.0, 50.0, 50.0])) == "differs"
    assert verdict(claimed(51, None, 3, [50.0, 50.0, 50.0])) == "-"


def test_a_row_of_differences_is_paired_and_claims_the_difference_of_claims():
    found, known = {"a": [3.0, 5.0], "b": [1.0, 2.0]}, {"a": Reference(4, 1, 8), "b": Reference(3, 1, 5)}
    add_difference(found, known, "a", "b")
    assert found["a less b"] == [2.0, 3.0]
    assert known["a less b"] == Reference(1, None, 5)
