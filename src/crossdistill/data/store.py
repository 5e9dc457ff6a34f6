"""The store: files decoded once, kept as arrays that are memory-mapped, found again by what they were made from.

CACHE/<key>/samples.npy   samples (n, *shape)
            rows.npy      content hash and constancy of each sample, (n, 2) int64
            store.json    the modality and the content hash

`crossdistill.rowfiles` says how several processes decode together, and what is left by one that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.data.checks import Contents, Problems, hash_sample
from crossdistill.data.columns import hash_array
from crossdistill.data.modality import Modality
from crossdistill.data.paths import expanded
from crossdistill.data.tables import NO_FILE
from crossdistill.errors import DataError
from crossdistill.files import digest
from crossdistill.rowfiles import Made, fill, open_rows, sweep

FORMAT = 3
"""Raised when decoding or files change, so that what older versions stored is not taken for the new."""

PART = 256
"""Files that are decoded at a time, so that memory stays small."""


@dataclass(frozen=True)
class Stored:
    """A modality's decoded samples.

    Attributes:
        array: (n, *shape), memory-mapped and read-only.
        contents: What the pass over them found.
        digest: Content hash, as `hash_array` gives it.
    """

    array: np.ndarray
    contents: Contents
    digest: str


def cache_folder(folder: str | Path | None = None) -> Path:
    """Give the store's folder: the argument, CROSSDISTILL_CACHE, or ~/.cache/crossdistill."""
    try:
        return expanded(folder or os.environ.get("CROSSDISTILL_CACHE") or "~/.cache/crossdistill")
    except DataError as error:
        raise DataError(f"no place for the cache: {error}, or set CROSSDISTILL_CACHE to a folder") from None


def store_key(paths: Sequence[Path], modality: Modality) -> str:
    """Hash what decoded samples are made from: files by path, size and time of change, and how they are decoded."""
    files: list[tuple[str, int, int]] = []
    for path in paths:
        if path is NO_FILE:
            files.append(("", 0, 0))
            continue
        facts = path.stat()
        files.append((str(path.resolve()), facts.st_size, facts.st_mtime_ns))
    how = {"kind": modality.kind, "shape": modality.shape, "dtype": modality.dtype, "decode": dict(modality.decode)}
    return digest(FORMAT, files, how)


def decoded(
    paths: Sequence[Path], rows: Sequence[str], modality: Modality, problems: Problems, cache: str | Path | None = None
) -> Stored | None:
    """Give the decoded samples of files, from the store where they are there, else decoding each once.

    Args:
        paths: One file a row; a row without one (`NO_FILE`) is stored as zeros.
        rows: Names of the rows, for messages.
        modality: How to decode; mean and std do not matter.
        problems: Where broken files are noted.
        cache: The store's folder, see `cache_folder`.

    Returns:
        The samples, or None when a file is broken; nothing is stored then.
    """
    there = True
    for path, row in zip(paths, rows, strict=True):
        if path is not NO_FILE and not path.is_file():
            there = False
            problems.add(f"{row}: {path}: there is no such file")
    if not there:  # look for whatever else is wrong, to say it all at once
        _look(paths, rows, modality, problems)
        return None
    base = cache_folder(cache)
    folder = base / store_key(paths, modality)
    found = _open(folder, (len(paths), *modality.shape))
    if found is not None:
        return found
    sweep(base, 86400, but=folder)
    before = len(problems.errors)

    def make(part: range) -> Made | None:
        array, facts = np.empty((len(part), *modality.shape), modality.dtype), np.empty((len(part), 2), np.int64)
        for i, sample in _samples(paths, rows, modality, problems, part):
            array[i - part.start], facts[i - part.start] = sample, hash_sample(sample)
        return None if len(problems.errors) > before else ({"samples": array, "rows": facts}, {})

    def about(_: object, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"format": FORMAT, "digest": hash_array(arrays["samples"]), "modality": modality.to_json()}

    with _writing(base):
        there = fill(folder, len(paths), lambda: iter(_parts(len(paths))), make, about)
    if not there:  # something is broken; look for whatever else is, to say it all at once
        del problems.errors[before:]
        _look(paths, rows, modality, problems)
        return None
    found = _open(folder, (len(paths), *modality.shape))
    if found is None:
        raise DataError(f"{folder} was written and cannot be read again: the cache's disk is damaged")
    return found


@contextlib.contextmanager
def _writing(base: Path) -> Generator[None]:
    """Say that it is the cache which cannot be written; what is decoded so far stays, to be gone on with.

    Raises:
        DataError: Naming the folder and the variable that chooses it.
    """
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "its disk is full",
            errno.EDQUOT: "your share of its disk is full",
            errno.EEXIST: "it is a file, not a folder",
            errno.ENOTDIR: "it lies below a file, not a folder",
        }.get(error.errno or 0, error.strerror or str(error))
        raise DataError(
            f"the cache {base} cannot be written: {reason}. Set CROSSDISTILL_CACHE to a folder that can, or make room"
        ) from None


def _parts(rows: int) -> list[range]:
    """Cut rows into parts that are decoded at a time."""
    return [range(start, min(start + PART, rows)) for start in range(0, rows, PART)]


def _look(paths: Sequence[Path], rows: Sequence[str], modality: Modality, problems: Problems) -> None:
    """Note all broken files, until too many are."""
    for part in _parts(len(paths)):
        for _ in _samples(paths, rows, modality, problems, part):
            pass
        if problems.full:
            return


def _samples(
    paths: Sequence[Path], rows: Sequence[str], modality: Modality, problems: Problems, part: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode the files of a part in threads: Pillow and soundfile let others run meanwhile."""
    blank = np.zeros(modality.shape, modality.dtype)

    def read(i: int) -> np.ndarray | str:
        try:
            return blank if paths[i] is NO_FILE else modality.read(paths[i])
        except DataError as error:
            return str(error)

    there = [i for i in part if paths[i] is NO_FILE or paths[i].is_file()]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for i, result in zip(there, pool.map(read, there), strict=True):
            if isinstance(result, str):
                problems.add(f"{rows[i]}: {result}")
            else:
                yield i, result


def _open(folder: Path, shape: tuple[int, ...]) -> Stored | None:
    """Give what is stored, or None where it is not there, or damaged, and must be decoded (anew)."""
    found = open_rows(folder)
    if found is None:
        return None
    arrays, about = found
    try:
        array, facts, content = arrays["samples"], arrays["rows"], str(about["digest"])
    except KeyError:
        return None
    if array.shape != shape or facts.shape != (len(array), 2):
        return None
    return Stored(array, Contents(np.ascontiguousarray(facts[:, 0]), facts[:, 1].astype(bool)), content)
