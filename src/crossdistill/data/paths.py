"""Paths as users write them and as they lie on disks: `~`, links, names that are no text, and one a row of a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from crossdistill.data.checks import Problems
from crossdistill.errors import DataError


@dataclass(frozen=True, eq=False)
class Files:
    """The files of one modality, one a row; a file that many rows share is kept, looked at and decoded once.

    Attributes:
        paths: The different files, in the order of the first rows that have them.
        of: Place in `paths` of each row's file (n,) int64; -1 where a row lacks the modality.
    """

    paths: Sequence[str]
    of: np.ndarray

    @classmethod
    def gather(cls, cells: Iterable[str], folder: str | Path = "") -> Files:
        """Read one path a row, relative to a folder; an empty one is none."""
        place: dict[str, int] = {}
        base = "" if str(folder) == "." else str(folder)
        of = np.fromiter((place.setdefault(cell, len(place)) if cell else -1 for cell in cells), dtype=np.int64)
        return cls([os.path.join(base, cell) for cell in place], of)  # noqa: PTH118 - a million of them

    def __len__(self) -> int:
        return len(self.of)

    def path(self, row: int) -> str:
        """Give a row's file, empty where it has none."""
        return self.paths[place] if (place := int(self.of[row])) >= 0 else ""

    def first_rows(self) -> np.ndarray:
        """Give the first row (k,) int64 of each different file."""
        first = np.empty(len(self.paths), dtype=np.int64)
        rows = np.flatnonzero(self.of >= 0)[::-1]
        first[self.of[rows]] = rows  # of equal places the last one stays, which is the first row
        return first


class Names(Sequence[str]):
    """Names of rows, for messages, written when one is asked for: a million of them would take memory for nothing.

    Args:
        count: Rows.
        name: Gives the name of a row.
    """

    def __init__(self, count: int, name: Callable[[int], str]) -> None:
        self.rows, self.name = range(count), name

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        """Give the name of a row, or of some."""
        return [self.name(i) for i in self.rows[row]] if isinstance(row, slice) else self.name(self.rows[row])


def expanded(path: str | Path) -> Path:
    """Put the home folder in the place of `~`.

    Raises:
        DataError: If there is no such home folder, or the name is no text.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"'{path}': nobody has that home folder; write the path out, or begin it with ./") from None
    if not is_text(found):
        raise DataError(f"{shown(found)}: the name is not UTF-8 text; rename it")
    return found


def is_text(path: str | Path) -> bool:
    """Whether a name can be written into a report; names on disks may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(path: Path) -> str:
    """Give a name that is no text as one that can be printed: odd bytes become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def listed(folder: Path) -> list[Path]:
    """Give what is in a folder, sorted; hidden things, and what macOS puts into archives, apart.

    Raises:
        DataError: If it cannot be read, or a name in it is no text.
    """
    try:
        found = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__MACOSX")
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from None
    for path in found:
        if not is_text(path):
            raise DataError(f"{shown(path)}: the name is not UTF-8 text; rename it")
    return found


def files_below(root: Path, problems: Problems) -> list[Path]:
    """Give all files below a folder, sorted; links are followed, and those that lead nowhere become problems."""
    files: list[Path] = []

    def visit(folder: Path, above: frozenset[str]) -> None:
        real = os.path.realpath(folder)
        if real in above:
            problems.add(f"{folder} is a link to a folder that it lies in; remove it")
            return
        for path in listed(folder):
            if path.is_dir():
                visit(path, above | {real})
            elif path.is_file():
                files.append(path)
            elif path.is_symlink():
                problems.add(f"{path} is a link to {path.readlink()}, which is not there")

    visit(root, frozenset())
    return sorted(files)
