"""Finding objectives, methods and networks by name: whatever class in a package carries `facts` is there.

No list is kept anywhere: adding a system is adding a file, and the command line's choices, the docs table and the
checks at the border follow from the facts on the class.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from crossdistill.errors import ConfigError, shown, spot_of, suggest, told

Need = Literal[
    "labels",
    "labels_or_teacher",
    "pairs",
    "views",
    "teacher_logits",
    "fused_teacher",
    "feature_maps",
    "equal_widths",
    "index",
    "group",
]
"""A method that needs "labels" learns from labelled rows alone; one with "labels_or_teacher" from all, and is told the
labels that are known where no teacher is named. "views" are two of a modality that must differ. With "fused_teacher" a
teacher, where one is named, reads all modalities."""


Pairing = Literal["natural", "class"]
"""Whether two samples are partners as they are of one event, or as they are of one class."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a machine may know of a system without running it.

    Attributes:
        name: The word for it in an experiment file.
        title: One line that says what it does.
        paper: Authors and year; "ours" where it is our own. A reconstruction says so.
        needs: What it cannot do without; the runner skips it, and says why, where that is missing.
        modalities: The kinds it serves, ("any",) for all.
        tasks: The tasks its student is evaluated on.
    """

    name: str
    title: str
    paper: str
    needs: frozenset[Need] = frozenset()
    modalities: tuple[str, ...] = ("any",)
    tasks: tuple[str, ...] = ("classification",)


@functools.cache
def discover(package: str) -> Mapping[str, type[Any]]:
    """Map names to the classes in `package` that carry facts of their own, sorted by name.

    Args:
        package: Dotted name of a package, for example "crossdistill.objectives".

    Returns:
        Name in an experiment file to class.

    Raises:
        ConfigError: If two classes claim one name.
    """
    found: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        module = importlib.import_module(info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            facts = vars(cls).get("facts")
            if cls.__module__ != info.name or not isinstance(facts, Facts):
                continue
            if facts.name in found:
                other = found[facts.name].__module__
                raise ConfigError(f"'{facts.name}' names a class in {other} and one in {info.name}; rename one of them")
            found[facts.name] = cls
    return MappingProxyType(dict(sorted(found.items())))


def lookup(package: str, name: str) -> type[Any]:
    """Give the class called `name`: one of `package`, or a user's own as "module.path:Class".

    Args:
        package: Where our own classes live, for example "crossdistill.objectives".
        name: A name from the facts, or a dotted path with a colon.

    Returns:
        The class.

    Raises:
        ConfigError: If there is none; the message names the nearest.
    """
    if ":" in name:
        loaded = load_dotted(name)
        if not inspect.isclass(loaded):
            raise ConfigError(f"{shown(name)} is not a class")
        return loaded
    known = discover(package)
    if name not in known:
        kind = package.rpartition(".")[2].removesuffix("s")
        raise ConfigError(
            f"no {kind} is called {shown(name)}{suggest(name, known)}; or write your own as 'module:Class'"
        )
    return known[name]


_ALONE = ContextVar("library alone", default=False)


@contextlib.contextmanager
def library_alone(wanted: bool = True) -> Generator[None]:
    """Refuse every name inside that is not the library's own: what a file from elsewhere names is then never imported.

    Experiments that were checked inside name nothing else, so worker processes need no word of it.

    Args:
        wanted: False changes nothing.
    """
    token = _ALONE.set(_ALONE.get() or wanted)
    try:
        yield
    finally:
        _ALONE.reset(token)


def refuse_foreign(name: str) -> None:
    """Refuse "module:name" and "timm:name" within `library_alone`.

    Raises:
        ConfigError: Saying what would be imported, and what to do.
    """
    if ":" in name and _ALONE.get():
        raise ConfigError(
            f"'{name}' would import '{name.partition(':')[0]}', and --safe takes the library's own names alone "
            "(`crossdistill list`); choose one of them, or leave out --safe if you trust the file"
        )


def load_dotted(path: str) -> Any:
    """Import what "package.module:name" names.

    Raises:
        ConfigError: If the module or the name in it does not exist, or `library_alone` forbids it.
    """
    refuse_foreign(path)
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if spot := spot_of(error):  # the module is there; what it imports is not
            raise ConfigError(f"cannot import '{module_name}' of '{path}': {error}, which {spot} imports") from None
        raise ConfigError(f"cannot import '{module_name}' of '{path}': {error}; is it on the Python path?") from None
    except (Exception, SystemExit) as error:  # whatever a user's own module does when it is imported
        raise ConfigError(f"importing '{module_name}' of '{path}' fails: {told(error)}") from error
    if not hasattr(module, name):
        raise ConfigError(f"'{module_name}' has no '{name}'{suggest(name, (n for n in dir(module) if n[0] != '_'))}")
    return getattr(module, name)
