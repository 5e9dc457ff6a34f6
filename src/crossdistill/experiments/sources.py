"""Hashes of source code: ours, and that of a user's own parts, so that changed code makes new products."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from crossdistill.errors import is_users
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
    "experiments/rows.py",
    "experiments/untaught.py",
    "files.py",
    "nearest.py",
)
"""The sources that decide what a stage makes: a changed loss makes a new product."""

JUDGING = (*MAKING, "evaluation", "experiments/judge.py", "experiments/suite_job.py")
"""Those that decide its scores too."""


@functools.cache
def code_version(parts: tuple[str, ...] = MAKING) -> str:
    """Hash our own sources: packages and single files, relative to the package."""
    root = Path(__file__).parents[1]
    files = [path for part in parts for path in ([root / part] if part.endswith(".py") else (root / part).glob("*.py"))]
    return digest(*(path.read_bytes() for path in sorted(files)))


def own_code(*names: str) -> list[str]:
    """Hash the sources behind a user's own "module:name": its file, and those of the user's that it imports.

    Names of ours count in `code_version`, installed packages by being installed. Modules whose name is made when the
    program runs (`import_module(word)`) are not seen.
    """
    found: dict[str, bytes] = {}
    for name in names:
        if ":" in name and not name.startswith("timm:"):
            load_dotted(name)
            _follow(name.partition(":")[0], found)
    return [digest(found[file]) for file in sorted(found)]


def _follow(module: str, found: dict[str, bytes]) -> bool:
    """Collect the user's file of a module and of all that it imports, at its top or within a function, each once.

    Args:
        module: Dotted name; one that is no module, as `consts.WIDTH`, is passed over.
        found: File to content; filled here.

    Returns:
        Whether modules of the user's may lie below this one.
    """
    package = module.rpartition(".")[0]
    if package and not _follow(package, found):  # importing a.b runs a first
        return False
    file, folders = _place(module)
    if file is None or file in found:
        return bool(folders)
    if not is_users(Path(file)):
        return False
    found[file] = Path(file).read_bytes()
    for name in _imports(found[file], module if folders else package):
        _follow(name, found)
    return bool(folders)


@functools.lru_cache(maxsize=256)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Name all that an import statement anywhere in a source may import, relative ones as seen from its package."""
    names: list[str] = []
    try:
        with warnings.catch_warnings(action="ignore"):  # Python has shown them when it read the file itself
            nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # compiled, or not Python
        return ()
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # above the topmost package: Python will say so itself
                start = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                names += [start, *(f"{start}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _place(module: str) -> tuple[str | None, list[str]]:
    """Find a module's file and, of a package, its folders, importing nothing; (None, []) where there is none."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        return getattr(loaded, "__file__", None), list(getattr(loaded, "__path__", ()))
    package = module.rpartition(".")[0]
    spec: ModuleSpec | None = None
    if not package:
        spec = importlib.util.find_spec(module)
    elif folders := _place(package)[1]:
        spec = PathFinder.find_spec(module, folders)
    if spec is None:
        return None, []
    return spec.origin if spec.has_location else None, list(spec.submodule_search_locations or ())
