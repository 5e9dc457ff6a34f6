"""One NPZ file as a data set: an array a modality, and `label`, `group`, `split`, `class_names`.

A label of -1 or NaN, or an empty word, is a missing one. Where rows lack a modality, `present_<modality>` (n,) says
which have it; what its array holds in the others does not matter.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.data import checks
from crossdistill.data.assemble import assemble
from crossdistill.data.checks import Contents, Problems
from crossdistill.data.dataset import PairedDataset
from crossdistill.data.decode import check_finite, check_plain, why_unread
from crossdistill.data.modality import Modality, check_name
from crossdistill.data.options import ReadOptions
from crossdistill.data.paths import Names
from crossdistill.data.probe import array_modality, told_of_axes
from crossdistill.data.tables import RESERVED, Table
from crossdistill.errors import DataError, suggest

PRESENT = "present_"
"""What the names of arrays begin with that say which rows have a modality."""


def load_archive(
    path: Path,
    wanted: Sequence[str] | None,
    options: ReadOptions,
    problems: Problems,
    name: str,
    seed: int,
    duplicates: str,
) -> PairedDataset:
    """Read one archive: an array a modality, and `label`, `group`, `split`, `class_names`."""
    arrays = read_archive(path)
    columns = {key: arrays.pop(key) for key in (*RESERVED, "class_names") if key in arrays}
    present = _present(arrays, problems)
    problems.raise_if_any()  # else what they excuse would be told of too
    for key in wanted or ():
        if key not in arrays:
            raise DataError(f"{path}: no array is called '{key}'{suggest(key, arrays)}")
    arrays = {key: array for key, array in arrays.items() if not wanted or key in wanted}
    options.check_names(arrays)
    counts = {key: len(array) if array.ndim else 0 for key, array in {**arrays, **columns}.items()}
    counts.pop("class_names", None)
    if not arrays or len(set(counts.values())) != 1 or not max(counts.values()):
        told = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise DataError(f"{path}: all arrays need one row a pair, as many in each; found rows: {told or 'no arrays'}")
    modalities: dict[str, Modality] = {}
    contents: dict[str, Contents] = {}
    present = {key: here for key, here in present.items() if key in arrays}
    for key in list(arrays):
        check_name(key)
        if key in present and arrays[key].dtype.kind in "biuf":
            arrays[key][~present[key]] = 0
        try:
            arrays[key], modalities[key] = array_modality(key, arrays[key], options)
        except DataError as error:
            meant = suggest(key, [*RESERVED, "class_names"]) if arrays[key].ndim == 1 else ""
            problems.add(f"{error}{meant if 'did you mean' in meant else ''}")
            continue
        if doubt := told_of_axes(modalities[key], options):
            problems.warn(doubt)
        for i, sample in enumerate(arrays[key]):
            wrong = "" if problems.full else check_finite(sample)
            if wrong:
                problems.add(f"'{key}', row {i}: {wrong}")
        contents[key] = checks.hash_rows(arrays[key])
    if len(modalities) == len(arrays):
        options.check_used()
    rows = Names(max(counts.values()), lambda row: f"row {row}")
    label, group, split = (column_words(key, columns.get(key), problems) for key in RESERVED)
    table = Table(rows=rows, label=label, group=group, split=split, present=present)
    _name_classes(table, columns.get("class_names"), problems)
    if len(contents) < len(arrays):
        problems.raise_if_any()
    return assemble(
        arrays,
        modalities,
        contents,
        dict.fromkeys(arrays, rows),
        table,
        problems,
        name=name,
        seed=seed,
        digests={},
        duplicates=duplicates,
    )


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a NPZ file once; nothing is ever unpickled.

    Raises:
        DataError: If it is missing, broken, or holds Python objects.
    """
    arrays: dict[str, np.ndarray] = {}
    key = ""
    try:
        check_plain(path)
        with contextlib.ExitStack() as opened:
            archive: Any = np.load(opened.enter_context(path.open("rb")), allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path}: one array, not an archive of several; save them with numpy.savez")
            opened.enter_context(archive)
            for key in archive.files:
                if key.startswith("__MACOSX/"):  # what macOS puts into archives
                    continue
                if key in arrays:
                    raise DataError(f"{path}: holds '{key}' more than once, and only one can be meant; save it anew")
                array: Any = archive[key]
                if not isinstance(array, np.ndarray):  # numpy gives members that are no NPY as bytes
                    raise DataError(f"{path}: '{key}' is no array; save arrays alone with numpy.savez")
                arrays[key] = array
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for broken archives
        what = f"array '{key}'" if key else "the archive"
        raise DataError(
            f"{path}: {what} cannot be read: {why_unread(error)}; save plain arrays with numpy.savez"
        ) from None
    return arrays


def _present(arrays: dict[str, np.ndarray], problems: Problems) -> dict[str, np.ndarray]:
    """Take the arrays that say who has a modality out of all arrays, as (n,) bool by modality."""
    present: dict[str, np.ndarray] = {}
    for key in [key for key in arrays if key.startswith(PRESENT)]:
        here, modality = arrays.pop(key), key.removeprefix(PRESENT)
        known = [name for name in arrays if not name.startswith(PRESENT)]
        if modality not in known:
            problems.add(f"'{key}' says who has '{modality}', and no array is called that{suggest(modality, known)}")
        elif here.shape != (rows := arrays[modality].shape[:1]) or not np.isin(here, (False, True)).all():
            problems.add(f"'{key}' must hold true or false for each row, {rows}; it is {here.dtype} {here.shape}")
        elif not here.all():
            present[modality] = here.astype(bool)
    return present


def column_words(key: str, column: np.ndarray | None, problems: Problems) -> list[str] | None:
    """Turn a column of an archive into words, as a manifest has them."""
    if column is None:
        return None
    column = _text(column)
    if key == "label" and column.ndim == 1 and column.dtype.kind == "f":  # integers that NaN has made floats
        known = np.where(np.isnan(column), -1, column)
        if np.isfinite(known).all() and (known == np.round(known)).all():
            column = known.astype(np.int64)
    if column.ndim != 1 or column.dtype.kind not in "biuU":
        problems.add(f"'{key}' must be one whole number or word a row; it is {column.dtype} {column.shape}")
        return None
    if key == "split" and column.dtype.kind in "biu":
        words = dict(enumerate(checks.SPLITS))
        return [words.get(int(v), str(v)) for v in column.tolist()]
    if key == "label" and column.dtype.kind == "i":
        return ["" if v == -1 else str(v) for v in column.tolist()]
    return [str(v) for v in column.tolist()]


def _text(column: np.ndarray) -> np.ndarray:
    """Turn bytes into words, where they are UTF-8."""
    if column.dtype.kind != "S":
        return column
    try:
        return np.char.decode(column, "utf-8")
    except UnicodeDecodeError:
        return column


def _check_class_names(class_names: np.ndarray, problems: Problems) -> np.ndarray | None:
    """Give the class names as words (c,), or note what is wrong with them."""
    names = _text(class_names)
    if names.ndim != 1 or names.dtype.kind not in "iuU":
        problems.add(f"'class_names' must be one word a class; it is {class_names.dtype} {class_names.shape}")
        return None
    words, counts = np.unique(names.astype(str), return_counts=True)
    for word in words[counts > 1].tolist():
        problems.add(f"'class_names' holds '{word}' more than once; every class needs a name of its own")
    return names.astype(str)


def _name_classes(table: Table, class_names: np.ndarray | None, problems: Problems) -> None:
    """Check that numbers for classes run from 0 without gaps, and put the class names in their place."""
    if class_names is not None:
        class_names = _check_class_names(class_names, problems)
    given = {i: word for i, word in enumerate(table.label or ()) if word}
    if not given or not all(word.removeprefix("-").isdecimal() and len(word) < checks.LONG for word in given.values()):
        return
    numbers = {i: int(word) for i, word in given.items()}
    count = len(class_names) if class_names is not None else max(numbers.values()) + 1
    for i, number in numbers.items():
        if not 0 <= number < count:
            problems.add(f"{table.rows[i]}: label {number} is not in 0..{count - 1}")
    gaps = _missing(set(numbers.values()), count)
    if gaps:
        problems.add(f"labels must run from 0 to {count - 1} without gaps; {', '.join(map(str, gaps))} never occur")
    if class_names is not None:
        table.class_names = tuple(str(v) for v in class_names)


def _missing(numbers: set[int], count: int) -> list[int]:
    """Give the first five of 0..count-1 that are not among the numbers; count may be that of a hash, 2**64."""
    return list(itertools.islice((i for i in range(min(count, len(numbers) + 5)) if i not in numbers), 5))
