"""What diagnostics of labelled pairs have in common: their checks, and means with the error of pairs or of groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.estimate import Estimate, check_level, normal_estimate
from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, label_column

LEAST_ROWS = 10
"""Of a class; fewer tell nothing."""
UNKNOWN = -1
"""The label of a row whose class is not known."""


class Counted:
    """Means over rows, with the error of rows or of groups."""

    def __init__(self, group: np.ndarray | None, n: int, level: float) -> None:
        check_level(level)
        self.unit = np.arange(n) if group is None else np.unique(group, return_inverse=True)[1]
        self._units, self._level, self._n = int(self.unit.max()) + 1, level, n
        self._kind = "pairs" if group is None else "groups"
        if self._units < 2:
            raise NotMeaningful(f"an error needs two {self._kind} or more; received {self._units}")

    def mean(self, rows: Doubles, kind: str, settings: Mapping[str, Any] | None = None, note: str = "") -> Estimate:
        """Give the mean of rows (n,)."""
        return self._estimate(float(rows.mean()), rows - rows.mean(), kind, settings, note)

    def share(self, part: Doubles, whole: Doubles, kind: str) -> Estimate:
        """Give mean(part) / mean(whole), with the error of a ratio."""
        if not whole.mean():
            raise NotMeaningful("the joint network has nothing right; there is nothing to take shares of")
        value = float(part.mean() / whole.mean())
        return self._estimate(value, (part - value * whole) / whole.mean(), kind, None, "")

    def _estimate(
        self, value: float, off: Doubles, kind: str, settings: Mapping[str, Any] | None, note: str
    ) -> Estimate:
        total = np.bincount(self.unit, weights=off, minlength=self._units)
        error = float((np.square(total).sum() * self._units / (self._units - 1)) ** 0.5) / self._n
        kind = f"{kind}; normal, error over {self._kind}"
        return normal_estimate(value, error, self._units, level=self._level, kind=kind, settings=settings, note=note)


def labelled_pairs(
    first: str, x: ArrayLike, second: str, y: ArrayLike, labels: ArrayLike, groups: ArrayLike | None, seed: int
) -> tuple[Doubles, Doubles, np.ndarray, np.ndarray | None]:
    """Check pairs of features with labels, and keep those of known class."""
    if seed < 0:
        raise ConfigError(f"seed must be >= 0; received {seed}")
    a, b = feature_rows(first, x), feature_rows(second, y)
    if len(a) != len(b):
        raise DataError(f"row i of {first} and {second} must be one pair; received {len(a)} and {len(b)} rows")
    label = label_column("labels", labels, len(a))
    group = None if groups is None else label_column("groups", groups, len(a))
    if label.dtype.kind in "iu":
        known = label != UNKNOWN
        a, b, label, group = a[known], b[known], label[known], None if group is None else group[known]
    classes, counts = np.unique(label, return_counts=True)
    check_classes(classes, counts)
    return a, b, label, group


def check_classes(classes: np.ndarray, counts: Whole) -> None:
    """Withhold what needs classes (c,), from their counts of rows (c,).

    Raises:
        NotMeaningful: If there are fewer than two, or one has fewer than 10 rows.
    """
    if len(classes) < 2:
        raise NotMeaningful(f"two classes or more are needed; received {len(classes)}")
    if counts.min() < LEAST_ROWS:
        name = classes[counts.argmin()]
        raise NotMeaningful(f"{LEAST_ROWS} rows of each class are needed; class {name} has {counts.min()}")
