"""Calibration: coefficients found again, data sets left out, intervals that cover, and what is refused."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from crossdistill.diagnostics.calibration import (
    DEFAULTS,
    TERMS,
    Calibration,
    Realised,
    calibrate,
    default_calibration,
    left_out_forecasts,
)
from crossdistill.errors import ConfigError, DataError, NotMeaningful

TRUTH = (0.02, 0.7, 0.3)
NAMES = {"ridge": ("p_max", "p_tea"), "pilot": ("p_pilot", "p_tea"), "episodes": ("e", "t")}


def rows(proxy="pilot", *, sets=6, each=40, noise=0.0, bias=0.0, seed=0):
    """Gains that follow the rule; each data set has its own bias."""
    rng, found = np.random.default_rng(seed), []
    for number in range(sets):
        own = bias * rng.normal()
        for _ in range(each):
            parts = {name: float(rng.normal(scale=0.2)) for name in NAMES[proxy]}
            error = float(rng.uniform(0.02, 0.08))
            gain = (
                float(np.dot(TRUTH, (1, *TERMS[proxy](parts)))) + own + noise * math.hypot(error, 0.04) * rng.normal()
            )
            found.append(Realised(f"set {number}", parts, error, gain))
    return found


@pytest.mark.parametrize("proxy", list(NAMES))
def test_coefficients_of_the_rule_are_found_again(proxy):
    found = calibrate(rows(proxy), proxy=proxy, loss="contrastive")
    assert found.coefficients == pytest.approx(TRUTH)
    assert max(found.quantile(level) for level in (0.8, 0.9, 0.95)) == pytest.approx(0, abs=1e-9)
    assert (found.n, found.loss, found.data_sets) == (240, "contrastive", tuple(f"set {i}" for i in range(6)))


def test_quantiles_are_those_of_the_noise_and_intervals_cover():
    known, new = rows(noise=1.0, each=200), rows(noise=1.0, each=200, seed=1)
    found = calibrate(known)
    assert found.quantile(0.8) == pytest.approx(1.28, abs=0.08)
    assert found.quantile(0.95) == pytest.approx(1.96, abs=0.15)
    inside = 0
    for row in new:
        forecast = found.forecast(row.parts, row.standard_error, n=50, level=0.8)
        inside += forecast.low <= row.gain <= forecast.high
    assert inside / len(new) == pytest.approx(0.8, abs=0.04)


def test_left_out_forecasts_know_nothing_of_their_data_set():
    known = rows(noise=0.5, bias=0.02)
    before = left_out_forecasts(known, level=0.8)
    wild = [dataclasses.replace(row, gain=row.gain + 9 * (row.data_set == "set 0")) for row in known]
    after = left_out_forecasts(wild, level=0.8)
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert same == [row.data_set == "set 0" for row in known]
    # and their order is the rows'
    mixed = left_out_forecasts(known[::-1], level=0.8)[::-1]
    assert [f.value for f in mixed] == pytest.approx([f.value for f in before])


def test_data_sets_that_differ_widen_the_interval_that_rows_alone_would_not():
    apart, alike = calibrate(rows(noise=0.3, bias=0.15)), calibrate(rows(noise=0.3))
    assert apart.quantile(0.9) > 2 * alike.quantile(0.9)


def test_a_forecast_is_bounded_and_says_where_it_comes_from():
    ridge = default_calibration("ridge")
    found = ridge.forecast({"p_max": -5.0, "p_tea": 7.0}, 0.03, n=50, level=0.8)
    assert found.value == pytest.approx(0.04 - 0.6 * 0.2 + 0.3 * 0.05)
    assert found.high - found.low == pytest.approx(2 * 1.5 * 0.05)  # hypot(0.03, 0.04) = 0.05
    assert found.kind == "calibrated on 6 data sets"
    pilot = default_calibration("pilot").forecast({"p_pilot": 0.3, "p_tea": -1.0}, 0.0, n=50)
    assert pilot.value == pytest.approx(0.02 + 0.61 * 0.3 - 0.2 * 0.3)
    assert (pilot.high - pilot.low) / 2 == pytest.approx(1.4 * 0.04)
    one = default_calibration("episodes").forecast({"e": 0.1, "t": 0.1}, 0.0, n=10, level=0.8)
    assert one.value == pytest.approx(0.10 + 1.05 * 0.2 * math.tanh(0.5) + 0.37 * 0.1 * math.tanh(1))
    assert (one.high - one.low) / 2 == pytest.approx(0.136)
    source = default_calibration("source").forecast({"a_source": 0.9, "a_reference": 0.4}, 0.0, n=10, level=0.8)
    assert source.value == pytest.approx(-0.14 + 0.6 * 0.5)


def test_every_default_is_frozen_and_says_what_it_was_not_measured_for():
    assert len(DEFAULTS) == 8
    for (proxy, loss), found in DEFAULTS.items():
        assert (found.proxy, found.loss, len(found.data_sets)) == (proxy, loss, 6)
        measured = loss == "similarity" and proxy in ("pilot", "ridge")
        assert bool(found.note) != measured
        assert found == pickle.loads(pickle.dumps(found))  # as it travels between the processes of a bench
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.floor = 0.0


def test_wrong_input_is_refused():
    good = rows()
    for few in (good[:29], [row for row in good if row.data_set < "set 2"]):
        with pytest.raises(NotMeaningful):
            calibrate(few)
    three = [row for row in good if row.data_set < "set 3"]
    assert calibrate(three).n == 120
    with pytest.raises(NotMeaningful):
        left_out_forecasts(three)  # two are left
    for bad in ({"gain": math.nan}, {"standard_error": -1.0}, {"parts": {"p_pilot": math.inf, "p_tea": 0.0}}):
        with pytest.raises(DataError):
            calibrate([*good, dataclasses.replace(good[0], **bad)])
    for bad in ({"levels": ()}, {"levels": (1.0,)}, {"floor": 0.0}, {"proxy": "ridge"}, {"proxy": "pilots"}):
        with pytest.raises(ConfigError):
            calibrate(good, **bad)
    for proxy, loss in (("pilots", "similarity"), ("pilot", "kd")):
        with pytest.raises(ConfigError, match="did you mean"):
            default_calibration(proxy, loss)
    with pytest.raises(ConfigError, match=r"take one of 0\.8, 0\.9"):
        default_calibration("pilot").forecast({"p_pilot": 0.0, "p_tea": 0.0}, 0.0, n=9, level=0.95)


def test_a_calibration_of_ones_own_can_be_written_down():
    own = Calibration("pilot", TRUTH, ((0.9, 2.0),), "similarity", ("a", "b", "c"))
    assert own.forecast({"p_pilot": 0.0, "p_tea": 0.0}, 0.0, n=9).low == pytest.approx(0.02 - 0.08)
