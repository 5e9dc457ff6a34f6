"""The store: files decoded once, kept as arrays that are memory-mapped, found again by what they were made from.

CACHE/<key>.npy         samples (n, *shape)
CACHE/<key>.rows.npy    content hash and constancy of each sample
CACHE/<key>.json        the modality and the content hash; written last, so that its presence means "complete"
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossdistill.data.checks import Contents, Problems, hash_sample
from crossdistill.data.columns import hash_array
from crossdistill.data.modality import Modality
from crossdistill.data.paths import expanded
from crossdistill.data.tables import NO_FILE
from crossdistill.errors import DataError
from crossdistill.files import digest, whole_file, write_json

FORMAT = 2
"""Raised when decoding changes, so that what older versions stored is not taken for the new."""


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
        for _ in _samples(paths, rows, modality, problems):
            pass
        return None
    base, key = cache_folder(cache), store_key(paths, modality)
    found = _open(base, key, (len(paths), *modality.shape))
    if found is not None:
        return found
    _sweep(base)
    before = len(problems.errors)
    with _writing(base, key):
        try:
            with whole_file(base / f"{key}.npy") as temporary:
                contents = _decode_into(temporary, paths, rows, modality, problems)
                if len(problems.errors) > before:
                    raise _BrokenFilesError
        except _BrokenFilesError:
            return None
        _finish(base, key, contents, modality)
    found = _open(base, key, (len(paths), *modality.shape))
    if found is None:
        raise DataError(f"{base / key}.npy was written and cannot be read again: the cache's disk is damaged")
    return found


@contextlib.contextmanager
def _writing(base: Path, key: str) -> Generator[None]:
    """Say that it is the cache which cannot be written, and leave nothing half done in it.

    Raises:
        DataError: Naming the folder and the variable that chooses it.
    """
    try:
        yield
    except OSError as error:
        for ending in ("json", "rows.npy", "npy"):
            with contextlib.suppress(OSError):
                (base / f"{key}.{ending}").unlink()
        reason = {
            errno.ENOSPC: "its disk is full",
            errno.EDQUOT: "your share of its disk is full",
            errno.EEXIST: "it is a file, not a folder",
            errno.ENOTDIR: "it lies below a file, not a folder",
        }.get(error.errno or 0, error.strerror or str(error))
        raise DataError(
            f"the cache {base} cannot be written: {reason}. Set CROSSDISTILL_CACHE to a folder that can, or make room"
        ) from None


def _sweep(base: Path) -> None:
    """Remove what decodes that were killed left half done: hidden files that nobody wrote to for a day."""
    for half in base.glob(".*.npy.*"):
        with contextlib.suppress(OSError):  # another process sweeps too
            if time.time() - half.stat().st_mtime > 86400:
                half.unlink()


class _BrokenFilesError(Exception):
    """Makes `whole_file` drop what was decoded; what is broken stands among the problems."""


def _decode_into(
    file: Path, paths: Sequence[Path], rows: Sequence[str], modality: Modality, problems: Problems
) -> Contents:
    """Decode all files into a NPY file; broken ones become problems, and what is written is then of no use."""
    descr = np.lib.format.dtype_to_descr(np.dtype(modality.dtype))
    facts = {"descr": descr, "fortran_order": False, "shape": (len(paths), *modality.shape)}
    hashes, constant = np.zeros(len(paths), dtype=np.int64), np.zeros(len(paths), dtype=bool)
    with file.open("wb") as stream:  # no memory map: on a full disk that is a bus error, and no exception
        np.lib.format.write_array_header_1_0(stream, facts)
        for i, sample in _samples(paths, rows, modality, problems):
            stream.write(np.ascontiguousarray(sample).data)
            hashes[i], constant[i] = hash_sample(sample)
    return Contents(hashes, constant)


def _samples(
    paths: Sequence[Path], rows: Sequence[str], modality: Modality, problems: Problems
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode files, some at a time in threads (Pillow and soundfile let others run meanwhile), until too many fail."""
    blank = np.zeros(modality.shape, modality.dtype)

    def read(i: int) -> np.ndarray | str:
        try:
            return blank if paths[i] is NO_FILE else modality.read(paths[i])
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(paths), 256):  # a part at a time, so that memory stays small
            part = range(start, min(start + 256, len(paths)))
            part = [i for i in part if paths[i] is NO_FILE or paths[i].is_file()]
            for i, result in zip(part, pool.map(read, part), strict=True):
                if isinstance(result, str):
                    problems.add(f"{rows[i]}: {result}")
                else:
                    yield i, result
            if problems.full:
                return


def _finish(base: Path, key: str, contents: Contents, modality: Modality) -> None:
    facts = np.stack([contents.hashes, contents.constant.astype(np.int64)])
    with whole_file(base / f"{key}.rows.npy") as temporary, temporary.open("wb") as file:
        np.save(file, facts)
    content = hash_array(np.load(base / f"{key}.npy", mmap_mode="r"))
    write_json(base / f"{key}.json", {"format": FORMAT, "digest": content, "modality": modality.to_json()})


def _open(base: Path, key: str, shape: tuple[int, ...]) -> Stored | None:
    """Give what is stored, or None where it is not there, or damaged, and must be decoded (anew)."""
    try:
        facts = json.loads((base / f"{key}.json").read_text(encoding="utf-8"))
        array = np.load(base / f"{key}.npy", mmap_mode="r", allow_pickle=False)
        hashes, constant = np.load(base / f"{key}.rows.npy", allow_pickle=False)
        fits = array.shape == shape and hashes.shape == constant.shape == shape[:1]
        return Stored(array, Contents(hashes, constant.astype(bool)), str(facts["digest"])) if fits else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):  # JSON's and Unicode's errors are ValueErrors
        return None
