"""NPY files whose rows are pairs: features, and columns of labels and groups; what `crossdistill diagnose` is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.data import checks
from crossdistill.data.archive import column_words
from crossdistill.data.checks import Problems
from crossdistill.data.decode import load_array
from crossdistill.errors import DataError


def read_features(path: Path) -> NDArray[np.float64]:
    """Read features, or raw samples that are laid out flat, as float64 (n, d); a column (n,) becomes (n, 1).

    Raises:
        DataError: If the file is missing, broken or holds Python objects, has no rows, or a value is not finite.
    """
    array = load_array(path)
    if array.ndim == 0 or 0 in array.shape:
        raise DataError(
            f"{path}: the array has shape {array.shape}; features are (pairs, columns), one of each or more"
        )
    rows = array.reshape(len(array), -1).astype(np.float64)
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0].tolist()
        more = f", and {len(bad) - 1} more are like it" if len(bad) > 1 else ""
        raise DataError(f"{path}: row {row}, column {column} is {rows[row, column]}{more}; leave out or fill such rows")
    return rows


def read_labels(path: Path, rows: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Read labels of pairs: whole numbers with -1 (or NaN) where there is none, or words with an empty one there.

    Args:
        path: A NPY file, (n,).
        rows: The pairs.

    Returns:
        (n,) int64, 0 to classes - 1 or -1, and the classes' names.

    Raises:
        DataError: If the file is no such column, has another number of rows, or has -1 cast to an unsigned type.
    """
    column = _column(path)
    _check_cast(path, column)
    words = _words("label", path, column, rows)
    for i, word in enumerate(words):
        if word.startswith("-") and word[1:].isdecimal():
            raise DataError(f"{path}: row {i}: label {word}; classes are 0, 1, 2, ... or words, and -1 is for none")
    return checks.read_labels(words)


def read_groups(path: Path, rows: int) -> NDArray[np.int64]:
    """Read groups (a person, a scene) of pairs: whole numbers or words, (n,), as numbers from 0.

    Raises:
        DataError: If the file is no such column, has another number of rows, or a row has no group.
    """
    words, problems = _words("group", path, _column(path), rows), Problems(str(path))
    numbers = checks.read_groups(words, [f"row {i}" for i in range(rows)], problems)
    problems.raise_if_any()
    return numbers


def _column(path: Path) -> np.ndarray:
    column = load_array(path, words=True)
    return column.ravel() if column.ndim == 2 and 1 in column.shape else column


def _check_cast(path: Path, column: np.ndarray) -> None:
    """Refuse what is probably -1 as an unsigned number: the largest there is, where all others are in the lower half.

    Raises:
        DataError: With the first such row.
    """
    if column.dtype.kind != "u":
        return
    most = np.iinfo(column.dtype).max
    cast = np.flatnonzero(column == most)
    if len(cast) and column[column != most].max(initial=0) <= most // 2:
        raise DataError(
            f"{path}: row {cast[0]}: label {most} is probably -1, for none, cast to {column.dtype}; save labels as "
            "int64, and if it is a class give it another number"
        )


def _words(key: str, path: Path, column: np.ndarray, rows: int) -> list[str]:
    problems = Problems(str(path))
    words = column_words(key, column, problems)
    problems.raise_if_any()
    assert words is not None
    if len(words) != rows:
        raise DataError(f"{path}: {len(words)} rows, and there are {rows} pairs; every pair needs one")
    return words
