"""From what is measured before training to a forecast of the gain, with an interval learned from gains that came true.

    gain = c0 + c1 a + c2 b  ±  q sqrt(se^2 + floor^2)

a and b are bounded terms of the measured parts, on purpose: a shallow student collapses under a useless teacher where a
trained one keeps the target's structure, and a teacher's head start beyond five points says nothing more. The floor is
the model error, of the stand-in against the trained student, which no number of labels removes.

Source: our own, and so are all coefficients: of a first study on six data sets, small networks, 150 to 1800 pairs, 3 to
40 classes. Coverage on other data sets is not guaranteed: errors are exchangeable within a data set, not between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

from crossdistill.diagnostics.estimate import Estimate, check_level
from crossdistill.diagnostics.few_labels import PROBE
from crossdistill.errors import ConfigError, DataError, NotMeaningful, suggest

Proxy = Literal["pilot", "ridge", "episodes", "source"]
Loss = Literal["similarity", "contrastive"]

FLOOR = 0.04
LEAST_SETS, LEAST_ROWS = 3, 30
"""Data sets and results below which nothing is refitted."""
SIX = ("mfeat", "har", "tcga", "omniglot", "emoji", "synthetic")
GAIN_PROBE = "logistic regression, C = 10, unit rows"


def _bent(value: float, scale: float) -> float:
    return scale * math.tanh(value / scale)


TERMS: Mapping[Proxy, Callable[[Mapping[str, float]], tuple[float, float]]] = MappingProxyType(
    {
        "ridge": lambda parts: (_bent(parts["p_max"], 0.2), min(max(parts["p_tea"], -0.3), 0.05)),
        "pilot": lambda parts: (parts["p_pilot"], min(max(parts["p_tea"], -0.3), 0.05)),
        "episodes": lambda parts: (_bent(parts["e"], 0.2), _bent(parts["t"], 0.1)),
        "source": lambda parts: (parts["a_source"] - parts["a_reference"], 0.0),
    }
)
"""The two terms a and b of each stand-in for the student, from the parts of a forecast."""


@dataclass(frozen=True)
class Calibration:
    """Coefficients and interval of a forecast, and what they were learned from; made by `calibrate`, or a default.

    Attributes:
        proxy: What stands for the student: "pilot" (the pilot student), "ridge" (the ridge student), and with one label
            per class "episodes" (of pseudo-labels) or "source" (of labels of the source).
        coefficients: c0, c1 and c2, for gains as fractions.
        quantiles: (level of the interval, q) for each level that was calibrated.
        loss: Of the students whose gains it was learned from.
        data_sets: Those it was learned from.
        n: Results it was learned from; 0 where that is not recorded.
        floor: Model error, as a fraction.
        probe: Of the measured parts.
        gain_probe: Of the gains, whose accuracies are balanced.
        note: What a reader must know; empty where nothing.
    """

    proxy: Proxy
    coefficients: tuple[float, float, float]
    quantiles: tuple[tuple[float, float], ...]
    loss: Loss
    data_sets: tuple[str, ...]
    n: int = 0
    floor: float = FLOOR
    probe: str = PROBE
    gain_probe: str = GAIN_PROBE
    note: str = ""

    def quantile(self, level: float) -> float:
        """Give q at a level.

        Raises:
            ConfigError: If the level was not calibrated.
        """
        check_level(level)
        known = dict(self.quantiles)
        if level not in known:
            levels = ", ".join(f"{one:g}" for one in sorted(known))
            raise ConfigError(f"level {level:g} of the forecast was not calibrated; take one of {levels}")
        return known[level]

    def forecast(
        self, parts: Mapping[str, float], standard_error: float | None, *, n: int, level: float = 0.9
    ) -> Estimate:
        """Forecast the gain, as a fraction of balanced accuracy.

        Args:
            parts: At least those that `proxy` needs: "p_max" and "p_tea", "p_pilot" and "p_tea", "e" and "t", or
                "a_source" and "a_reference".
            standard_error: Of the stand-in's part; None where none is known, and the interval is of the floor alone.
            n: Labelled rows.
            level: Of the interval; one that was calibrated.

        Raises:
            ConfigError: If the level was not calibrated, or a part is missing.
        """
        quantile = self.quantile(level)
        first, second = _terms(self.proxy, parts)
        c0, c1, c2 = self.coefficients
        value, half = c0 + c1 * first + c2 * second, quantile * math.hypot(standard_error or 0.0, self.floor)
        settings = {"coefficients": self.coefficients, "quantile": quantile, "floor": self.floor}
        return Estimate(
            value,
            standard_error,
            value - half,
            value + half,
            n,
            level,
            f"calibrated on {len(self.data_sets)} data sets",
            settings | {"proxy": self.proxy, "loss": self.loss, "data_sets": self.data_sets},
            self.note,
        )


@dataclass(frozen=True)
class Realised:
    """A forecast's parts and the gain that came true; a row of `calibrate`.

    Attributes:
        data_set: Where; what is left out goes by it, never by row.
        parts: Of the forecast, as `Calibration.forecast` needs them; others are not looked at.
        standard_error: Of the stand-in's part.
        gain: Student less the best of its references, as a fraction of balanced accuracy; a mean over draws of labels
            where there are several.
    """

    data_set: str
    parts: Mapping[str, float] = field(repr=False)
    standard_error: float
    gain: float


def calibrate(
    rows: Sequence[Realised],
    *,
    proxy: Proxy = "pilot",
    loss: Loss = "similarity",
    levels: Sequence[float] = (0.8, 0.9, 0.95),
    floor: float = FLOOR,
) -> Calibration:
    """Refit coefficients and interval from gains that came true.

    Coefficients are least squares over all rows. Each level's q is the mean over data sets of that quantile of
    |gain - forecast| / sqrt(se^2 + floor^2), where the coefficients of a data set's forecasts are fitted without it.

    Args:
        rows: Of one loss, from 3 data sets or more, 30 or more in all.
        proxy: What stood for the student.
        loss: Of the students.
        levels: Of the intervals, each in (0, 1).
        floor: Model error, as a fraction.

    Raises:
        NotMeaningful: If there are too few rows or data sets.
        DataError: If a number is not finite, or an error negative.
        ConfigError: If a parameter is out of range, or a row lacks a part that the proxy needs.
    """
    for level in levels:
        check_level(level)
    if not levels or not 0 < floor < math.inf:
        raise ConfigError(f"calibrate needs a level or more and floor > 0; received {tuple(levels)} and {floor}")
    names = sorted({row.data_set for row in rows})
    if len(names) < LEAST_SETS or len(rows) < LEAST_ROWS:
        raise NotMeaningful(
            f"a calibration needs {LEAST_ROWS} results of {LEAST_SETS} data sets or more; "
            f"received {len(rows)} of {len(names)}"
        )
    terms = np.array([(1.0, *_terms(proxy, row.parts)) for row in rows])
    gain, errors = np.array([row.gain for row in rows]), np.array([row.standard_error for row in rows])
    if not (np.isfinite(terms).all() and np.isfinite(gain).all() and np.isfinite(errors).all()) or errors.min() < 0:
        raise DataError("calibrate: parts, errors and gains must be finite, errors not negative")
    of, scale = np.array([row.data_set for row in rows]), np.hypot(errors, floor)
    quantiles = np.zeros(len(levels))
    for name in names:
        inside = of == name
        missed = np.abs(gain - terms @ _least_squares(terms[~inside], gain[~inside]))[inside] / scale[inside]
        quantiles += np.quantile(missed, levels) / len(names)
    c0, c1, c2 = _least_squares(terms, gain).tolist()
    return Calibration(
        proxy,
        (c0, c1, c2),
        tuple(zip(levels, quantiles.tolist(), strict=True)),
        loss,
        tuple(names),
        len(rows),
        floor,
    )


def left_out_forecasts(
    rows: Sequence[Realised],
    *,
    level: float = 0.9,
    proxy: Proxy = "pilot",
    loss: Loss = "similarity",
    floor: float = FLOOR,
) -> list[Estimate]:
    """Forecast each row by the calibration on all data sets but its own: what `calibrate` is worth on a new one.

    Args:
        rows: As of `calibrate`, which must do with one data set fewer.
        level: Of the intervals.
        proxy: What stood for the student.
        loss: Of the students.
        floor: Model error, as a fraction.

    Returns:
        A forecast for each row, in their order.

    Raises:
        NotMeaningful: If too few rows or data sets are left.
        DataError: As of `calibrate`.
        ConfigError: As of `calibrate`.
    """
    without = {
        name: calibrate(
            [row for row in rows if row.data_set != name], proxy=proxy, loss=loss, levels=(level,), floor=floor
        )
        for name in sorted({row.data_set for row in rows})
    }
    return [without[row.data_set].forecast(row.parts, row.standard_error, n=len(rows), level=level) for row in rows]


def default_calibration(proxy: Proxy, loss: Loss = "similarity") -> Calibration:
    """Give the coefficients of the first study, on six data sets.

    Raises:
        ConfigError: If there is no such proxy or loss.
    """
    known = {f"{p}, {o}": found for (p, o), found in DEFAULTS.items()}
    if (word := f"{proxy}, {loss}") not in known:
        raise ConfigError(f"calibration: '{word}' is none of the proxies and losses{suggest(word, known)}")
    return known[word]


def _terms(proxy: Proxy, parts: Mapping[str, float]) -> tuple[float, float]:
    if proxy not in TERMS:
        raise ConfigError(f"proxy: '{proxy}' is none of the words allowed{suggest(proxy, TERMS)}")
    try:
        return TERMS[proxy](parts)
    except KeyError as missing:
        raise ConfigError(f"a forecast by {proxy} needs the part {missing}; received {sorted(parts)}") from None


def _least_squares(terms: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Solve for the coefficients; one of a term that does not vary is 0, or shares with the constant."""
    return np.linalg.lstsq(terms, gain)[0]


def _first_study(
    proxy: Proxy, loss: Loss, coefficients: tuple[float, float, float], q80: float, q90: float, note: str = ""
) -> Calibration:
    return Calibration(proxy, coefficients, ((0.8, q80), (0.9, q90)), loss, SIX, note=note)


# One label per class: an 80 % half width of 13.6 points was measured, and is told as a multiple of the floor.
DEFAULTS: Mapping[tuple[Proxy, Loss], Calibration] = MappingProxyType(
    {
        ("pilot", "similarity"): _first_study("pilot", "similarity", (0.02, 0.61, 0.2), 1.05, 1.4),
        ("ridge", "similarity"): _first_study("ridge", "similarity", (0.04, 0.6, 0.3), 1.5, 1.9),
        ("ridge", "contrastive"): _first_study(
            "ridge",
            "contrastive",
            (0.03, 0.92, 0.38),
            1.7,
            2.15,
            "the 90 % quantile was not measured: the 80 % one times 1.9 / 1.5, as for similarity",
        ),
        ("pilot", "contrastive"): _first_study(
            "pilot",
            "contrastive",
            (0.02, 0.94, 0.25),
            1.65,
            2.2,
            "coefficients were not kept: those for similarity times the ridge student's ratio of the two losses, "
            "quantiles times that of the two half widths measured (10.1 / 6.4)",
        ),
        ("episodes", "similarity"): _first_study(
            "episodes",
            "similarity",
            (0.10, 1.05, 0.37),
            3.4,
            4.3,
            "the 90 % quantile was not measured: the 80 % one times 1.9 / 1.5, as with more labels",
        ),
        ("source", "similarity"): _first_study(
            "source",
            "similarity",
            (-0.14, 0.60, 0.0),
            3.4,
            4.3,
            "the interval is that of episodes without source labels; its 90 % quantile was not measured",
        ),
        ("episodes", "contrastive"): _first_study(
            "episodes",
            "contrastive",
            (0.10, 1.05, 0.37),
            3.4,
            4.3,
            "one label per class was calibrated for similarity alone; its coefficients are taken",
        ),
        ("source", "contrastive"): _first_study(
            "source",
            "contrastive",
            (-0.14, 0.60, 0.0),
            3.4,
            4.3,
            "one label per class was calibrated for similarity alone; its coefficients are taken",
        ),
    }
)
"""Coefficients of the first study by stand-in and loss."""
