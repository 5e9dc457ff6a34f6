"""Error bars by sub-samples without replacement: of pairs, or of groups where pairs come in groups.

A bootstrap with replacement repeats rows, which nearest neighbours take for information; sub-samples do not. A mean
over m of N units that are drawn without replacement spreads by sqrt(1 - m / N) of its error on m; so its error on all
is the spread times sqrt(m / (N - m)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from crossdistill.diagnostics.estimate import Estimate
from crossdistill.errors import ConfigError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole, label_column

LEAST_UNITS = 20
"""Pairs or groups below which there is no interval."""
DRAWS = 20
"""Sub-samples for an error bar, which then is known to some 16 %; Student's quantile allows for it."""
MOST_DRAWN = 2000
"""Units of a sub-sample at most; half of all below that. The error is scaled to all of them."""


class SubSamples:
    """Sub-samples of pairs, or of whole groups, without replacement, the same for all that is compared.

    Attributes:
        units: What is drawn: pairs or groups.
        rows: Whole numbers of the pairs of each draw.
    """

    def __init__(
        self, n: int, groups: ArrayLike | None, *, draws: int = DRAWS, most: int | None = MOST_DRAWN, seed: int = 0
    ):
        """Draw half of the units, `most` at most.

        Raises:
            DataError: If there is not one group for each pair.
            ConfigError: If `draws` is below 2.
            NotMeaningful: If there are fewer than 20 units.
        """
        if draws < 2:
            raise ConfigError(f"error bars need draws >= 2 sub-samples; received {draws}")
        code = np.arange(n) if groups is None else group_code(groups, n)
        self.units = int(code.max()) + 1
        self.name = "pairs" if groups is None else "groups"
        if self.units < LEAST_UNITS:
            raise NotMeaningful(f"an interval needs {LEAST_UNITS} {self.name} or more; received {self.units}")
        drawn = self.units // 2 if most is None else min(self.units // 2, most)
        rng = np.random.default_rng([seed, 1])
        self.rows: list[Whole] = []
        for _ in range(draws):
            held = np.zeros(self.units, dtype=bool)
            held[rng.permutation(self.units)[:drawn]] = True
            self.rows.append(np.flatnonzero(held[code]))
        self._scale = (drawn / (self.units - drawn)) ** 0.5  # a mean's spread over draws, times this, is its error

    def ask(self, at: Callable[[Whole], float]) -> Doubles:
        """Give what a function of rows says of each draw, (draws,)."""
        return np.array([at(rows) for rows in self.rows])

    def estimate(
        self,
        value: float,
        found: Doubles,
        level: float,
        *,
        fixed: str = "",
        settings: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> Estimate:
        """Give the interval value ± t times the error, from what was `found` of each draw, (draws,).

        Raises:
            NotMeaningful: If a value is not finite.
        """
        if not (math.isfinite(value) and np.isfinite(found).all()):
            raise NotMeaningful("the estimate is not finite on all sub-samples; rows are too few for it")
        error = float(found.std(ddof=1)) * self._scale
        half = float(stats.t.ppf((1 + level) / 2, len(found) - 1)) * error
        kind = f"{len(found)} sub-samples of {self.name} without replacement{', ' if fixed else ''}{fixed}"
        return Estimate(value, error, value - half, value + half, self.units, level, kind, settings or {}, note)


def group_code(groups: ArrayLike, n: int) -> Whole:
    """Give groups as 0 .. g - 1, (n,).

    Raises:
        DataError: If there is not one for each of n pairs.
    """
    return np.unique(label_column("groups", groups, n), return_inverse=True)[1].astype(np.int64)
