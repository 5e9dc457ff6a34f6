"""Paths as users write them and as they lie on disks: `~`, links, names that are no text."""

from __future__ import annotations

import os
from pathlib import Path

from crossdistill.data.checks import Problems
from crossdistill.errors import DataError


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
