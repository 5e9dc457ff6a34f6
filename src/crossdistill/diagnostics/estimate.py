"""What every diagnostic gives: a number with its error, what it was made from, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from crossdistill.errors import ConfigError, NotMeaningful


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty; made by every diagnostic.

    Attributes:
        value: The estimate, in the unit that its maker's docstring names.
        standard_error: Of `value`, >= 0; None where nothing is known of it.
        low: Lower bound of the interval; None where there is none.
        high: Upper bound, None likewise.
        n: What was counted for the error: pairs, groups or labelled rows, as `kind` says.
        level: Of the interval, in (0, 1).
        kind: How error and interval were made, for the reader: "sub-sampling of pairs", "bootstrap of 30 groups", ...
        settings: Every choice that the number depends on, by name; written to `diagnosis.json` as it is.
        note: What a reader must know beside the number (a bias, a cap that was reached); empty where nothing.
    """

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int
    level: float = 0.95
    kind: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    note: str = ""

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None and self.high is not None

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain values for a JSON file."""
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "level": self.level,
            "kind": self.kind,
            "settings": dict(self.settings),
            "note": self.note,
        }


def normal_estimate(
    value: float,
    standard_error: float,
    n: int,
    *,
    level: float = 0.95,
    kind: str,
    settings: Mapping[str, Any] | None = None,
    note: str = "",
) -> Estimate:
    """Make an estimate whose interval is value ± z times its standard error.

    Raises:
        ConfigError: If `level` is not in (0, 1).
        NotMeaningful: If the value or its error is not finite.
    """
    check_level(level)
    if not (abs(value) < float("inf") and 0 <= standard_error < float("inf")):
        raise NotMeaningful(f"{kind}: the estimate {value} with standard error {standard_error} is not finite")
    half = float(stats.norm.ppf((1 + level) / 2)) * standard_error
    return Estimate(value, standard_error, value - half, value + half, n, level, kind, settings or {}, note)


def wilson_estimate(value: float, standard_error: float, n: int, *, level: float = 0.95, kind: str) -> Estimate:
    """Make an estimate of a share, with an interval that stays in [0, 1] and has a width where all draws agree.

    Wilson's interval (1927; from memory, unverified) for as many independent draws as the standard error speaks of,
    value (1 - value) / standard_error^2: n where no error was seen. There, it is half the width by z.

    Raises:
        ConfigError: If `level` is not in (0, 1).
    """
    check_level(level)
    z, seen = float(stats.norm.ppf((1 + level) / 2)), value * (1 - value)
    known = seen > 0 and standard_error > 0
    draws = seen / standard_error**2 if known else float(n)
    middle = (value + z**2 / (2 * draws)) / (1 + z**2 / draws)
    half = z * (seen / draws + z**2 / (4 * draws**2)) ** 0.5 / (1 + z**2 / draws)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Estimate(value, standard_error if known else (high - low) / (2 * z), low, high, n, level, kind)


def check_level(level: float) -> None:
    """Refuse a confidence level that is none.

    Raises:
        ConfigError: If `level` is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError(f"level, the confidence of an interval, must be in (0, 1); received {level}")
