"""The checks that evaluation makes of features and labels, with one wording."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossdistill.errors import DataError

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Labels = NDArray[Any]
Whole = NDArray[np.int64]


def feature_rows(name: str, x: ArrayLike, *, width: int | None = None) -> Doubles:
    """Give features as float64 (n, d), finite, n >= 1, and `width` columns where that is said.

    Raises:
        DataError: With the rule and what was received, or the first row that is not finite.
    """
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(f"{name} must be features (n, d) with n, d >= 1; received shape {rows.shape}")
    if width is not None and rows.shape[1] != width:
        raise DataError(f"{name} must have {width} columns as in training; received {rows.shape[1]}")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise DataError(f"{name} has a value that is not finite in row {bad}; the encoder or its input is broken")
    return rows


def label_column(name: str, label: ArrayLike, rows: int | None = None) -> Labels:
    """Give labels as an array (n,), one for each of `rows` where that is said.

    Raises:
        DataError: With the rule and what was received.
    """
    column = np.asarray(label)
    if column.ndim != 1 or len(column) == 0:
        raise DataError(f"{name} must be (n,) with n >= 1; received shape {column.shape}")
    if rows is not None and len(column) != rows:
        raise DataError(f"{name} must have one entry for each of {rows} rows; received {len(column)}")
    return column


def unit_rows(x: Doubles) -> Doubles:
    """Scale rows (n, d) to unit length; a zero row stays zero."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1.0)  # squares then neither overflow nor vanish
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)
