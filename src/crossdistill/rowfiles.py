"""Rows of arrays on the disk: made by several processes at once, gone on with after a kill, seen whole or not at all.

FOLDER/NAME.npy      an array (n, ...) each, memory-mapped
FOLDER/store.json    what they are
.FOLDER.part/        the same while it is made; log.jsonl has a line for every block of rows that is on the disk

Two processes share a block list without talking: who locks a block's bytes of the log makes it, the other takes the
next. A lock ends with its process, so that what a killed one was at is made by whoever comes. Threads of one process,
which such locks do not part, take turns.

    process 1   [0 made][1 made][3 locked]
    process 2           [2 made][4 locked]        log: 0, 1, 2
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from crossdistill.files import filed, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows: every process makes every block then, and all write the same
    fcntl = None

ABOUT = "store.json"
_LOG = "log.jsonl"
_MAPPED = 1 << 29  # bytes of an array that may come to lie in this process's memory: 512 MiB
_CHECKED = 1 << 28  # bytes of an array up to which it has a checksum, which costs a pass a process: 256 MiB, 0.3 s
_SAY = 1.0  # seconds of work that a killed process may have done in vain; to wait for the disk takes time too
_READ = 1 << 26  # bytes of neighbouring rows that are read at once; the system gives no more than 2 GiB

_TURN = threading.RLock()
_GONE = (FileNotFoundError, FileExistsError)
"""What a folder that another process takes away raises; the second, where `mkdir` finds it and then does not."""

Made = tuple[Mapping[str, np.ndarray], Mapping[str, Sequence[float]]]
"""A block's rows (b, ...) by array, and numbers about them by array, of which the largest over all blocks are kept."""

About = Callable[[Mapping[str, list[float]], Mapping[str, np.ndarray]], Mapping[str, Any]]
"""From the largest numbers by array, and the finished arrays, to what `store.json` is to say; more of an array as
"arrays"."""

_Block = TypeVar("_Block", bound=Sized)


class RowCountError(ValueError):
    """Blocks have another number of rows than was said."""

    def __init__(self, found: int, due: int) -> None:
        super().__init__(f"{found} rows where {due} are due")
        self.found = found


class Rows:
    """An array of rows on the disk or in memory, read by position in memory that does not grow with the array.

    Small arrays stay mapped. A look at one row of a large one could map megabytes, and a pass over it all of it: its
    rows are read, each by itself.

    Attributes:
        array: (n, ...), read-only where it is memory-mapped.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array, self._file = array, -1
        self._plain = array.view(np.ndarray)  # numpy wraps what it takes of a memory map once more
        if isinstance(array, np.memmap) and array.nbytes > _MAPPED and hasattr(os, "pread"):
            self._file, self._offset = os.open(str(array.filename), os.O_RDONLY), array.offset
            weakref.finalize(self, os.close, self._file)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Give a copy of the rows at `index` (b,), (b, ...).

        Raises:
            IndexError: If there is no such row.
        """
        if self._file < 0 or not len(index):
            return np.take(self._plain, index, axis=0)
        if not 0 <= index.min() <= index.max() < len(self.array):
            raise IndexError(f"rows are 0..{len(self.array) - 1}; received {index.min()}..{index.max()}")
        size, at = self.array[:1].nbytes, self._offset
        step = 1  # rows a read
        if index[-1] - index[0] == len(index) - 1 and bool((np.diff(index) == 1).all()):
            step = max(1, _READ // max(1, size))
        starts, left = index[::step].tolist(), len(index) % step
        counts = [step] * (len(starts) - bool(left)) + [left] * bool(left)
        data = b"".join([os.pread(self._file, size * k, at + size * i) for i, k in zip(starts, counts, strict=True)])
        return np.frombuffer(bytearray(data), self.array.dtype).reshape(-1, *self.array.shape[1:])


def open_rows(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Map the arrays of a finished folder, read-only, and read what they are; None if it is not there, or damaged."""
    try:
        about: dict[str, Any] = read_json(folder / ABOUT)
        arrays: dict[str, np.ndarray] = {}
        for name, facts in about["arrays"].items():
            arrays[name] = np.load(_file(folder, name), mmap_mode="r", allow_pickle=False)
            if [str(arrays[name].dtype), list(arrays[name].shape)] != [facts["stored_as"], facts["shape"]]:
                return None
            if "sha256" in facts and (found := _checksum(_file(folder, name))) != facts["sha256"]:
                _warn(_file(folder, name), found)
                return None
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        return None
    return arrays, about


def _checksum(path: Path) -> str:
    """Give the SHA-256 of a file, worked out once a process for as long as it stays what it is."""
    facts = path.stat()
    return _checksum_of(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _checksum_of(path: Path, inode: int, size: int, changed: int) -> str:
    del inode, size, changed  # another file is another entry
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=4096)
def _warn(path: Path, found: str) -> None:
    """Name a damaged file, once."""
    del found
    logging.getLogger("crossdistill").warning("%s is not what was written, so it is made again", path)


def fill(
    folder: Path,
    rows: int,
    blocks: Callable[[], Iterator[_Block]],
    make: Callable[[_Block], Made | None],
    about: About,
) -> bool:
    """Bring about a folder of arrays, alone or together with other processes that were told the same.

    Args:
        folder: Where the finished arrays will be. What is there already, and damaged, goes.
        rows: Rows of each array, n.
        blocks: Gives what blocks are made of, in order; its length is the number of rows. Asked again where another
            process ended before its block was made. Blocks that others make, or made before, are passed by.
        make: Turns one into arrays; None says that nothing is to be stored after all, and what there is goes.
        about: Gives what else is to be known, once all arrays are there.

    Returns:
        Whether there are arrays now.

    Raises:
        RowCountError: If the blocks have more or fewer than n rows.
        OSError: If the disk refuses; what is written stays and is gone on with.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _TURN:
        while open_rows(folder) is None:
            try:
                writer = _Writer(folder, rows)
            except _GONE:  # another process finished between two lines of ours
                if _part(folder).is_file():
                    raise
                continue
            with contextlib.closing(writer):
                try:
                    if open_rows(folder) is None:
                        if not writer.fill(blocks, make):
                            discard(folder)
                            return False
                        writer.finish(about)
                except _GONE:
                    writer.say()
                    if writer.ours():
                        raise  # else another process finished, or gave up, and took away what this one was at
                except BaseException:  # what was made before it stays
                    writer.say()
                    raise
                finally:
                    writer.drop()
    return True


def discard(folder: Path) -> None:
    """Remove what was made of a folder's arrays so far."""
    shutil.rmtree(_part(folder), ignore_errors=True)


def sweep(parent: Path, seconds: float, *, but: Path) -> None:
    """Remove what was begun in a folder and is not finished, where nobody has written to it for so long.

    Args:
        parent: The folder.
        seconds: How long.
        but: What is about to be gone on with, and stays.
    """
    for log in parent.glob(f"{_part(parent / '*').name}/{_LOG}"):
        with contextlib.suppress(OSError):  # another process sweeps too
            if log.parent != _part(but) and time.time() - log.stat().st_mtime > seconds:
                shutil.rmtree(log.parent, ignore_errors=True)


class _Writer:
    """One process's part in making a folder of arrays."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self.part = _part(folder)
        self.part.mkdir(parents=True, exist_ok=True)
        self._opened = contextlib.ExitStack()
        self._log = self._opened.enter_context((self.part / _LOG).open("a+b", buffering=0))
        self._read, self._rest = 0, b""
        self._done: set[tuple[int, int]] = set()
        self._largest: dict[str, list[float]] = {}
        self._files: dict[str, tuple[FileIO, int]] = {}
        self._unsaid: list[tuple[int, int, Mapping[str, Sequence[float]]]] = []  # written, not in the log
        self._said = time.monotonic()

    def close(self) -> None:
        self._opened.close()

    def drop(self) -> None:
        """Remove what was begun, if nothing has come of it and nobody else is at it."""
        self._look()
        if not self._done and self._lock(0, self.rows + 1, wait=False) and self.ours():
            shutil.rmtree(self.part, ignore_errors=True)

    def fill(self, blocks: Callable[[], Iterator[_Block]], make: Callable[[_Block], Made | None]) -> bool:
        """Make what nobody else makes, until all is made."""
        missing = True
        while missing:
            start, others = 0, list[tuple[int, int]]()
            for block in blocks():
                begin, start = start, start + len(block)
                if start > self.rows:
                    break
                if not self._claim(begin, start):
                    others.append((begin, start))
                    continue
                made = make(block)
                if made is None:
                    return False
                self._write(begin, start, *made)
            self.say()
            if start != self.rows:
                raise RowCountError(start, self.rows)
            for begin, end in others:
                if (begin, end) not in self._done:
                    self._lock(begin, end, wait=True)
                    self._unlock(begin, end)
                    self._look()
            missing = any(block not in self._done for block in others)
        return True

    def finish(self, about: About) -> None:
        """Let the arrays be seen, unless another process has."""
        self._lock(self.rows, self.rows + 1, wait=True)
        if not self.ours():
            return
        arrays = {name: np.load(_file(self.part, name), mmap_mode="r", allow_pickle=False) for name in self._largest}
        known: dict[str, dict[str, Any]] = {}
        for name, array in arrays.items():
            known[name] = {"shape": list(array.shape), "stored_as": str(array.dtype)}
            if array.nbytes <= _CHECKED:
                known[name]["sha256"] = _checksum(_file(self.part, name))
        more = about(self._largest, arrays)
        of = more.get("arrays", {})
        write_json(self.part / ABOUT, {**more, "arrays": {name: {**known[name], **of.get(name, {})} for name in known}})
        try:
            self.part.rename(self.folder)
        except OSError:
            if open_rows(self.folder) is not None:  # made meanwhile, where there are no locks
                if not self.ours():  # `write_json` brought it back
                    shutil.rmtree(self.part, ignore_errors=True)
                return
            shutil.rmtree(self.folder)  # damaged
            self.part.rename(self.folder)
        (self.folder / _LOG).unlink(missing_ok=True)

    def _claim(self, start: int, stop: int) -> bool:
        """Lock a block for this process; False if it is made, or another process is at it."""
        if (start, stop) in self._done or not self._lock(start, stop, wait=False):
            return False
        self._look()
        if (start, stop) in self._done:
            self._unlock(start, stop)
            return False
        return True

    def _write(
        self, start: int, stop: int, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Sequence[float]]
    ) -> None:
        for name, values in arrays.items():
            if name not in self._files:
                self._files[name] = self._open(name, values)
            file, offset = self._files[name]
            file.seek(offset + start * (values.nbytes // len(values)))
            left = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            while len(left):
                left = left[file.write(left.data) :]
        self._unsaid.append((start, stop, {name: facts.get(name, ()) for name in arrays}))
        if time.monotonic() - self._said > _SAY:
            self.say()

    def say(self) -> None:
        """Bring what is written to the disk, then say so in the log, and let go of its blocks."""
        for file, _ in self._files.values() if self._unsaid else ():
            os.fsync(file.fileno())
        for start, stop, facts in self._unsaid:
            line = json.dumps({"rows": [start, stop], "facts": {name: list(values) for name, values in facts.items()}})
            self._log.write(f"\n{line}\n".encode())  # a line that a killed process left half done stays by itself
        self._look()
        for start, stop, _ in self._unsaid:
            self._unlock(start, stop)
        self._unsaid, self._said = [], time.monotonic()

    def _open(self, name: str, values: np.ndarray) -> tuple[FileIO, int]:
        """Open an array's file, as long as it will be, and give where its rows begin; several processes may."""
        path, shape = _file(self.part, name), (self.rows, *values.shape[1:])
        path.touch()
        file = self._opened.enter_context(path.open("r+b", buffering=0))
        descr = np.lib.format.dtype_to_descr(values.dtype)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        offset = file.tell()
        file.truncate(offset + self.rows * (values.nbytes // len(values)))
        return file, offset

    def _look(self) -> None:
        """Read what all processes have added to the log."""
        self._log.seek(self._read)
        while more := self._log.read(1 << 20):
            self._read += len(more)
            *lines, self._rest = (self._rest + more).split(b"\n")
            for line in filter(None, lines):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line
                    entry: dict[str, Any] = json.loads(line)
                    start, stop = entry["rows"]
                    facts: dict[str, list[float]] = entry["facts"]
                    for name, values in facts.items():
                        before = self._largest.get(name) or values
                        self._largest[name] = [max(pair) for pair in zip(values, before, strict=True)]
                    self._done.add((start, stop))

    def ours(self) -> bool:
        """Say whether the log lies where it lay, so that nobody else has finished."""
        try:
            return os.path.samestat(os.fstat(self._log.fileno()), (self.part / _LOG).stat())
        except FileNotFoundError:
            return False

    def _lock(self, start: int, stop: int, *, wait: bool) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._log, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), stop - start, start)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EAGAIN)  # else a file system that knows no locks
        return True

    def _unlock(self, start: int, stop: int) -> None:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._log, fcntl.LOCK_UN, stop - start, start)


def _part(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{filed(name)}.npy"
