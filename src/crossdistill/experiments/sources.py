"""Hashes of source code: ours, and that of a user's own parts, so that changed code makes new products."""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
from pathlib import Path

from crossdistill.files import digest
from crossdistill.registry import load_dotted

MAKING = (
    "data",
    "methods",
    "networks",
    "objectives",
    "training",
    "experiments/arms.py",
    "experiments/bench.py",
    "experiments/untaught.py",
    "files.py",
)
"""The sources that decide what a stage makes: a changed loss makes a new product."""

JUDGING = (*MAKING, "evaluation", "experiments/judge.py")
"""Those that decide its scores too."""


@functools.cache
def code_version(parts: tuple[str, ...] = MAKING) -> str:
    """Hash our own sources: packages and single files, relative to the package."""
    root = Path(__file__).parents[1]
    files = [path for part in parts for path in ([root / part] if part.endswith(".py") else (root / part).glob("*.py"))]
    return digest(*(path.read_bytes() for path in sorted(files)))


def own_code(*names: str) -> list[str]:
    """Hash the sources behind a user's own "module:name": its file, and those of the user's that it imports.

    Names of ours count in `code_version`, installed packages by being installed.
    """
    found: set[str] = set()
    for name in names:
        if ":" in name and not name.startswith("timm:"):
            load_dotted(name)
            _sources(name.partition(":")[0], found)
    return [digest(Path(file).read_bytes()) for file in sorted(found)]


def _sources(module: str, found: set[str]) -> None:
    file = getattr(sys.modules.get(module), "__file__", None)
    elsewhere = ("site-packages", "dist-packages", sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))
    if file is None or file in found or not Path(file).is_file() or any(part in file for part in elsewhere):
        return
    found.add(file)
    for value in list(vars(sys.modules[module]).values()):
        home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if isinstance(home, str):
            _sources(home, found)
