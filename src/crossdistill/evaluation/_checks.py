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
    given = as_array(name, x)
    try:
        if given.dtype.kind not in "biufO":
            raise TypeError
        rows = given.astype(np.float64, copy=False)
    except (TypeError, ValueError):  # of objects that are no numbers
        raise DataError(f"{name} must be features (n, d) of real numbers; received {_entries(given)}") from None
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
    column = as_array(name, label)
    if column.ndim != 1 or len(column) == 0:
        raise DataError(f"{name} must be (n,) with n >= 1; received shape {column.shape}")
    if rows is not None and len(column) != rows:
        raise DataError(f"{name} must have one entry for each of {rows} rows; received {len(column)}")
    if column.dtype.kind != "O":
        return column
    entries: list[Any] = column.tolist()  # words or numbers of a table come as objects
    kinds = [kind for kind in (str, (int, float)) if all(isinstance(entry, kind) for entry in entries)]
    if not kinds:
        raise DataError(f"{name} must be words throughout, or numbers; received {_entries(column)}")
    return np.array(entries)


def as_array(name: str, x: ArrayLike) -> NDArray[Any]:
    """Give an array of what entries it has.

    Raises:
        DataError: If rows are of unequal length, or it cannot be read as an array.
    """
    try:
        return np.asarray(x)
    except (TypeError, ValueError):
        what = f"a {type(x).__name__} with rows of unequal length, or that numpy cannot read"
        raise DataError(f"{name} must be an array; received {what}") from None


def _entries(x: NDArray[Any]) -> str:
    if x.dtype.kind in "US":
        return "words"
    if x.dtype.kind != "O":
        return f"entries of {x.dtype}"
    return f"objects: {', '.join(sorted({type(entry).__name__ for entry in x.ravel().tolist()}))}"


def unit_rows(x: Doubles) -> Doubles:
    """Scale rows (n, d) to unit length; a zero row stays zero."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1.0)  # squares then neither overflow nor vanish
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)
