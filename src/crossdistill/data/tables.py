"""Where a user's files are: a folder by layout, or a manifest (CSV or Parquet), as one table of paths."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.data.checks import ALIASES, SHOWN, Problems
from crossdistill.data.decode import ARRAYS, PICTURES, SOUNDS
from crossdistill.data.paths import Files, Names, files_below, listed
from crossdistill.errors import DataError, suggest

READABLE = PICTURES | SOUNDS | ARRAYS
RESERVED = ("label", "group", "split")
LINES = 1 << 14
"""Lines of a manifest that are taken apart at a time: as single cells they need many times the memory of columns."""


@dataclass
class Table:
    """One line a pair.

    Attributes:
        files: By modality, one a row.
        present: Which rows have a modality (n,) bool, of the modalities that some row lacks.
        rows: Names of the rows, for messages.
        label: Class names, or None; an empty word is a missing label.
        group: Names of groups, or None.
        split: Words for splits, or None.
        class_names: Where labels are numbers that stand for these names.
    """

    files: dict[str, Files] = field(default_factory=dict[str, Files])
    rows: Sequence[str] = ()
    label: list[str] | None = None
    group: list[str] | None = None
    split: list[str] | None = None
    class_names: tuple[str, ...] = ()
    present: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])


def read_folder(folder: Path, problems: Problems, wanted: Sequence[str] | None = None) -> Table:
    """Read FOLDER/<modality>/[<split>/][<class>/]<stem>.<ending>; equal paths below the modality make a pair.

        road/image/train/cat/001.png  ┐
        road/depth/train/cat/001.npy  ┘ one pair of class "cat" in the training split

    Splits are known by their names (train, validation, val, test); any other folder is a class. Files beside class
    folders have no label. Links are followed. Names that begin with a dot and __MACOSX are passed over, other files
    that cannot be read are told of as a warning.

    Args:
        folder: Whose subfolders are the modalities.
        problems: Where unpaired files and mixed layouts are noted.
        wanted: Modalities to use; default: all. The others are not looked into.

    Returns:
        The table of complete pairs, sorted by path.

    Raises:
        DataError: If there are no modalities at all, or not those that are wanted.
    """
    there = [p.name for p in listed(folder) if p.is_dir()]
    names = sorted(set(wanted or there))
    missing = [name for name in names if name not in there]
    if not there or any(name.lower() in ALIASES for name in (there if missing else names)):
        raise DataError(
            f"{folder}: expected FOLDER/<modality>/[<split>/][<class>/]<file>, the modalities outermost; "
            f"found {', '.join(there) if there else 'no folders'}"
        )
    if missing:
        raise DataError(f"{folder}: no modality folder is called '{missing[0]}'{suggest(missing[0], there)}")
    found: dict[str, dict[str, Path]] = {name: _stems(folder / name, problems) for name in names}
    every = {stem for files in found.values() for stem in files}
    paired = sorted(stem for stem in every if all(stem in files for files in found.values()))
    unpaired = sorted(every.difference(paired))
    counts = ", ".join(f"{len(files)} {name}" for name, files in found.items())
    for stem in unpaired[:SHOWN]:
        has = [name for name in names if stem in found[name]]
        lacks = [name for name in names if stem not in found[name]]
        problems.add(f"{found[has[0]][stem]} has no partner in {', '.join(lacks)} (files: {counts})")
    table = Table({name: Files.gather(str(files[s]) for s in paired) for name, files in found.items()}, paired)
    _places(table, problems)
    return table


def _stems(root: Path, problems: Problems) -> dict[str, Path]:
    """Map paths below a modality's folder, without their endings, to files."""
    stems: dict[str, Path] = {}
    others: list[Path] = []
    for path in files_below(root, problems):
        inside = path.relative_to(root)
        if path.suffix.lower() not in READABLE:
            others.append(path)
            continue
        stem = inside.with_suffix("").as_posix()
        if stem in stems:
            problems.add(f"{path} and {stems[stem]} have the same name; which of them is the sample?")
        if len(inside.parts) > 3:
            problems.add(f"{path} lies too deep: expected {root.name}/[<split>/][<class>/]<file>")
        stems[stem] = path
    if others:
        problems.warn(f"'{root.name}': {len(others)} files are passed over, as their endings are unknown: {others[0]}")
    return stems


def _places(table: Table, problems: Problems) -> None:
    """Take split and class from the folders of each pair."""
    splits, labels = [""] * len(table.rows), [""] * len(table.rows)
    for i, row in enumerate(table.rows):
        folders = row.split("/")[:-1]
        if folders and folders[0].lower() in ALIASES:
            splits[i] = folders.pop(0)
        if len(folders) > 1:
            problems.add(f"{row}: '{folders[0]}' is no split; expected <modality>/[<split>/][<class>/]<file>")
        labels[i] = folders[0] if folders else ""
    table.split = splits if any(splits) else None
    table.label = labels if any(labels) else None


def read_manifest(path: Path, modalities: Sequence[str] | None, problems: Problems) -> Table:
    """Read a CSV or Parquet table: a column a modality with paths relative to it, and `label`, `group`, `split`.

    An empty `label` and -1 are missing ones; a row lacks a modality whose cell is empty.

    Args:
        path: The manifest.
        modalities: Columns to use; default: every column but the reserved ones.
        problems: Where unknown columns are noted; rows count from 1, the header apart.

    Returns:
        The table.

    Raises:
        DataError: If it cannot be read or has no such columns.
    """
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    free = [name for name in columns if name not in RESERVED]
    for name in modalities or ():
        if name not in free:
            raise DataError(f"{path}: no column is called '{name}'{suggest(name, free)}")
    count = len(next(iter(columns.values()), list[str]()))
    table = Table(rows=Names(count, lambda row: f"row {row + 1}"))
    for name in modalities or free:
        cells = columns[name]
        if not modalities and cells and not any(map(_readable, cells)):
            row = next((i for i, cell in enumerate(cells) if cell), 0)
            problems.add(
                f"unknown column '{name}' ({table.rows[row]}: '{cells[row]}'): not paths of files that can be read"
                f"{suggest(name, RESERVED)}; or choose columns with modalities=[...]"
            )
            continue
        table.files[name] = Files.gather(cells, path.parent)
        if not all(cells):
            table.present[name] = table.files[name].of >= 0
    if not table.files and not problems.errors:
        raise DataError(f"{path}: no column holds files; columns: {', '.join(columns) or 'none'}")
    table.label, table.group, table.split = (columns.get(name) for name in RESERVED)
    if table.label is not None:
        table.label = ["" if word == "-1" else word for word in table.label]
    return table


def _readable(cell: str) -> bool:
    """Whether a cell ends like a file that can be read."""
    return os.path.splitext(cell)[1].lower() in READABLE  # noqa: PTH122 - for every cell of a column


def _csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets begin with a mark
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            comma = max(",;\t", key=first.count)  # some spreadsheets write semicolons or tabs
            return _columns(path, filter(None, csv.reader(file, strict=True, delimiter=comma)), comma)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a CSV table in UTF-8 ({error.reason}); save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table that can be read: {error}") from None


def _columns(path: Path, lines: Iterator[list[str]], comma: str) -> dict[str, list[str]]:
    """Take lines apart into columns, some at a time, in which equal words are one object."""
    header = [name.strip() for name in next(lines, list[str]())]
    if not header:
        raise DataError(f"{path}: the table is empty; its first line names the columns")
    if len(set(header)) < len(header) or not all(header):
        raise DataError(f"{path}: every column needs a name of its own; received {', '.join(header)}")
    columns: list[list[str]] = [[] for _ in header]
    known: list[dict[str, str]] = [{} for _ in header]
    while part := list(itertools.islice(lines, LINES)):
        for number, line in enumerate(part, start=len(columns[0]) + 1):
            if len(line) != len(header):
                raise DataError(
                    f"{path}, row {number}: {len(line)} cells for {len(header)} columns (cells are separated by "
                    f"{comma!r})"
                )
        for k, (column, words) in enumerate(zip(columns, known, strict=True)):
            column += [words.setdefault(word, word) for word in [line[k].strip() for line in part]]
    return dict(zip(header, columns, strict=True))


def _parquet(path: Path) -> dict[str, list[str]]:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs] - pyarrow has none
    except ImportError:
        raise DataError("reading Parquet needs pyarrow; install it with: pip install 'crossdistill[parquet]'") from None
    parquet: Any = pyarrow.parquet
    try:
        columns: dict[str, Iterable[Any]] = parquet.read_table(path).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path}: not a Parquet table that can be read: {error}") from None
    known: dict[str, str] = {}
    return {name: [known.setdefault(word, word) for word in map(_word, cells)] for name, cells in columns.items()}


def _word(cell: Any) -> str:
    """Write a cell as a CSV table would have it; integers that a missing one made floats are integers again."""
    if cell is None or cell != cell:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
