"""Files written whole or not at all, and the hashes that tell whether two things are the same."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TextIO

from crossdistill.errors import ConfigError

_BEGUN = ".begun"
"""What the names of files end in that are being written."""


@contextlib.contextmanager
def whole_file(path: str | Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on an error it disappears.

    The content is on the disk (fsync) before the name changes hands, so a reader, a crash or a power cut sees the old
    file or the new one and nothing between.

    Args:
        path: The file to write; missing folders are made.

    Yields:
        The path to write to.

    Raises:
        OSError: If the disk refuses; its `filename` is then `path`, not the temporary one.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_BEGUN)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; ours are like any other file of the user's
        temporary.replace(path)
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).name.startswith(f".{path.name}."):
            error.filename, error.filename2 = str(path), None  # no word for a full disk, or one that nobody knows
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(folder: str | Path) -> Generator[None]:
    """Hold a folder for this process alone, by a lock on its `.lock` that ends with the process, however it ends.

    Where the system knows no such locks (Windows, some network disks) everybody gets it. Else whatever a process that
    was killed had begun to write (`whole_file`) is nobody's any more, and is removed.

    Args:
        folder: Made if it is not there.

    Raises:
        ConfigError: If another process has it, naming that: number, machine, and since when.
        OSError: If the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(folder) / ".lock"
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the name of the folder {str(folder)!a} is not UTF-8 text; choose another") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise ConfigError(f"'{path}' is no file, and the folder cannot be locked without; remove it")
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ConfigError(
                    f"another process works in '{folder}': {_owner(file)}; wait for it or stop it, or choose another "
                    "folder"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        file.truncate(0)
        json.dump({"process": os.getpid(), "machine": platform.node(), "since": time.time()}, file)
        file.flush()
        _sweep(path.parent)
        yield


def _sweep(folder: Path) -> None:
    """Remove what was begun in a folder and will not be finished."""
    for path in folder.rglob(f".*{_BEGUN}"):
        if re.search(rf"\.[a-z0-9_]{{8}}{_BEGUN}$", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _owner(file: TextIO) -> str:
    """Say who holds a lock, as far as its file tells; the clock of another machine may be another."""
    try:
        file.seek(0)
        facts = json.load(file)
        age = max(0.0, time.time() - float(facts["since"]))
        size, unit = next(pair for pair in ((86400, "days"), (3600, "h"), (60, "min"), (0, "s")) if age >= 2 * pair[0])
        return f"process {int(facts['process'])} on {facts['machine']}, for {age / max(size, 1):.0f} {unit}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has just begun"


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file, of a stranger perhaps.

    Raises:
        ValueError: If it is none, or lists stand in lists too deep for Python.
        OSError: If it cannot be read, or is a pipe or a device, where a reader might wait for ever.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its lists stand too deep in each other") from None


def write_checked(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as `write_json` does, with the SHA-256 of what it holds as its last entry, "sha256"."""
    write_json(path, {**value, "sha256": _checksum(value)})


def unchecked(value: Mapping[str, Any]) -> dict[str, Any]:
    """Give what `write_checked` was given, from what was read; without a checksum it is taken as it stands.

    Raises:
        ValueError: If it is not what was written.
    """
    kept = {key: entry for key, entry in value.items() if key != "sha256"}
    if "sha256" in value and value["sha256"] != _checksum(kept):
        raise ValueError("its checksum is another")
    return kept


def _checksum(value: Mapping[str, Any]) -> str:
    """Hash JSON values, in their order: what is read back has the same words, and Python writes floats to the bit."""
    return hashlib.sha256(json.dumps(value, allow_nan=False).encode()).hexdigest()


def filed(name: str) -> str:
    """Make any name one part of a path: what a path may not hold becomes "_", with a hash so that no two names meet."""
    plain = "".join(c if c.isalnum() or c in "+-_.@ " else "_" for c in name).strip(". ")
    return plain if plain == name else f"{plain[:80]}-{digest(name)[:8]}"


def digest(*parts: Any) -> str:
    """Hash JSON-like values and bytes into 16 hexadecimal digits; equal parts give equal digests, on any machine."""
    state = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:16]
