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
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.data.checks import Contents, Problems, hash_sample
from crossdistill.data.columns import hash_array
from crossdistill.data.modality import Modality
from crossdistill.data.paths import Files, expanded
from crossdistill.errors import DataError
from crossdistill.files import digest
from crossdistill.rowfiles import Made, fill, open_rows, sweep

FORMAT = 3
"""Raised when decoding or files change, so that what older versions stored is not taken for the new."""

PART = 256
"""Files that are decoded at a time, so that memory stays small."""

KEPT = 1 << 28
"""Bytes of decoded samples that are kept for further rows with the same file; what is beyond is decoded again."""


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


def store_key(facts: Sequence[Any], of: np.ndarray, modality: Modality) -> str:
    """Hash what decoded samples are made from: facts of the files, which row has which, and how they are decoded."""
    how = {"kind": modality.kind, "shape": modality.shape, "dtype": modality.dtype, "decode": dict(modality.decode)}
    return digest(FORMAT, facts, of.tobytes(), how)


def _facts(paths: Sequence[str]) -> list[tuple[str, int, int] | str]:
    """Give the real path, the size and the time of change of each file, or why it cannot be read."""
    homes: dict[str, str] = {}
    return [_fact(path, homes) for path in paths]


def _fact(path: str, homes: dict[str, str]) -> tuple[str, int, int] | str:
    # plain words and one call of the system where it will do: there may be a million files
    try:
        facts = os.lstat(path)
        if stat.S_ISLNK(facts.st_mode):
            facts, real = os.stat(path), os.path.realpath(path)  # noqa: PTH116
        else:
            folder, name = os.path.split(path)
            if folder not in homes:
                homes[folder] = os.path.realpath(folder)
            real = os.path.join(homes[folder], name)  # noqa: PTH118
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with a zero byte is a ValueError
        return "there is no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(facts.st_mode):
        return f"is {'a folder' if stat.S_ISDIR(facts.st_mode) else 'a pipe or a device'}, not a file"
    return real, facts.st_size, facts.st_mtime_ns


def decoded(
    files: Files, rows: Sequence[str], modality: Modality, problems: Problems, cache: str | Path | None = None
) -> Stored | None:
    """Give the decoded samples of files, from the store where they are there, else decoding them.

    Args:
        files: One a row; a row without one is stored as zeros.
        rows: Names of the rows, for messages.
        modality: How to decode; mean and std do not matter.
        problems: Where broken files are noted, by the first row that has them.
        cache: The store's folder, see `cache_folder`.

    Returns:
        The samples, or None when a file is broken; nothing is stored then.
    """
    facts = _facts(files.paths)
    first = files.first_rows()
    missing = [k for k, fact in enumerate(facts) if isinstance(fact, str)]
    for k in missing:
        problems.add(f"{rows[int(first[k])]}: {Path(files.paths[k])}: {facts[k]}")
    there = np.setdiff1d(np.arange(len(facts)), missing)
    if missing:  # look for whatever else is wrong, to say it all at once
        _look(files, there, rows, modality, problems)
        return None
    base = cache_folder(cache)
    folder = base / store_key(facts, files.of, modality)
    found = _open(folder, (len(files), *modality.shape))
    if found is not None:
        return found
    sweep(base, 86400, but=folder)
    before = len(problems.errors)

    decode = _Decoder(files, rows, modality, problems)

    def make(part: range) -> Made | None:
        array, facts = decode.rows(part)
        return None if len(problems.errors) > before else ({"samples": array, "rows": facts}, {})

    def about(_: object, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"format": FORMAT, "digest": hash_array(arrays["samples"]), "modality": modality.to_json()}

    with _writing(base):
        whole = fill(folder, len(files), lambda: iter(_parts(len(files))), make, about)
    if not whole:  # something is broken; look for whatever else is, to say it all at once
        del problems.errors[before:]
        _look(files, there, rows, modality, problems)
        return None
    found = _open(folder, (len(files), *modality.shape))
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


def _look(files: Files, there: np.ndarray, rows: Sequence[str], modality: Modality, problems: Problems) -> None:
    """Note all broken files, of those that are there, until too many are."""
    decode = _Decoder(files, rows, modality, problems)
    for part in _parts(len(there)):
        for _ in decode.files(there[part.start : part.stop].tolist()):
            pass
        if problems.full:
            return


class _Decoder:
    """Decodes files for rows; samples of files that further rows have are kept, as far as there is room.

    Args:
        files: One a row.
        rows: Names of the rows, for messages.
        modality: How to decode.
        problems: Where broken files are noted.
    """

    def __init__(self, files: Files, rows: Sequence[str], modality: Modality, problems: Problems) -> None:
        self._files, self._names, self._modality, self._problems = files, rows, modality, problems
        self._first, shape, dtype = files.first_rows(), modality.shape, modality.dtype
        self._left = np.bincount(files.of[files.of >= 0], minlength=len(files.paths))
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        room = min(int((self._left > 1).sum()), KEPT // size)
        self._kept, self._kept_facts = np.empty((room, *shape), dtype), np.empty((room, 2), np.int64)
        self._slot, self._free = np.full(len(files.paths), -1), list(range(room))[::-1]

    def rows(self, part: range) -> tuple[np.ndarray, np.ndarray]:
        """Give the samples (m, *shape) of some rows, and hash and constancy of each (m, 2) int64; zeros if broken."""
        of = self._files.of[part.start : part.stop]
        wanted, place, count = np.unique(of[of >= 0], return_inverse=True, return_counts=True)
        samples, facts = (
            np.zeros((len(wanted) + 1, *self._kept.shape[1:]), self._kept.dtype),
            np.zeros((len(wanted) + 1, 2), np.int64),
        )
        facts[-1] = hash_sample(samples[-1])  # the last is that of rows without a file
        here = np.flatnonzero(self._slot[wanted] >= 0)
        samples[here], facts[here] = self._kept[self._slot[wanted[here]]], self._kept_facts[self._slot[wanted[here]]]
        new = np.flatnonzero(self._slot[wanted] < 0)
        for i, sample in self.files(wanted[new].tolist()):
            at = np.searchsorted(wanted, i)
            samples[at], facts[at] = sample, hash_sample(sample)
        self._left[wanted] -= count
        self._keep(wanted, samples, facts)
        row = np.full(len(of), len(wanted))
        row[of >= 0] = place
        return samples[row], facts[row]

    def _keep(self, places: np.ndarray, samples: np.ndarray, facts: np.ndarray) -> None:
        """Keep samples of files that further rows have, in the room of those that none has."""
        done = places[(self._left[places] <= 0) & (self._slot[places] >= 0)]
        self._free += self._slot[done].tolist()
        self._slot[done] = -1
        more = np.flatnonzero((self._left[places] > 0) & (self._slot[places] < 0))[: len(self._free)]
        for i in more.tolist():
            slot = self._slot[places[i]] = self._free.pop()
            self._kept[slot], self._kept_facts[slot] = samples[i], facts[i]

    def files(self, which: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode files by their places, in threads: Pillow and soundfile let others run meanwhile."""

        def read(k: int) -> np.ndarray | str:
            try:
                return self._modality.read(self._files.paths[k])
            except DataError as error:
                return str(error)

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for k, result in zip(which, pool.map(read, which), strict=True):
                if isinstance(result, str):
                    self._problems.add(f"{self._names[int(self._first[k])]}: {result}")
                else:
                    yield k, result


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
