"""One door to all data: a named set, a synthetic world, or the user's own files."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from crossdistill.data.dataset import PairedDataset
from crossdistill.data.decode import check_plain
from crossdistill.data.named import available_sets, load_named, set_facts
from crossdistill.data.options import number, whole
from crossdistill.data.paths import expanded
from crossdistill.data.readers import load_files
from crossdistill.data.synthetic import WORLDS
from crossdistill.errors import ConfigError, DataError, suggest


def load(source: str | Path, **options: Any) -> PairedDataset:
    """Read data.

    Args:
        source: A named set ("omniglot-small"), a world ("synthetic:shared_latent"), a folder, a CSV or Parquet
            manifest, or a NPZ file. What exists as a file or folder and has a dot or a slash in it is one.
        options: Those of `load_files`, of the set's builder, or of the world.

    Returns:
        The data set, checked.

    Raises:
        DataError: If there is nothing of that name, or the data are wrong.
        ConfigError: If an option is unknown (the message names the nearest), of another type, out of range, or of no
            use with these data.

    Example:
        >>> load("synthetic:shared_latent", rho=0.8, seed=0)
        <synthetic:shared_latent: 6500 natural pairs of a vector (64,), b vector (64,); 10 classes>
    """
    word = str(source)
    if word.startswith("synthetic:"):
        world = word.removeprefix("synthetic:")
        if world not in WORLDS:
            raise DataError(f"no world is called '{world}'{suggest(world, WORLDS)}")
        return WORLDS[world](**_checked(word, WORLDS[world], options))
    names = [facts.name for facts in available_sets()]
    if isinstance(source, str) and word in names:
        return load_named(word, **_checked(word, set_facts(word).build, options))
    path = expanded(source)
    if path.is_symlink() and not path.exists():
        raise DataError(f"'{word}' is a link to '{path.readlink()}', which is not there or leads back to it")
    if not path.exists():
        worlds = [f"synthetic:{world}" for world in WORLDS]
        raise DataError(f"'{word}' is neither a file, a folder nor a set{suggest(word, [*names, *worlds])}")
    if not path.is_dir():
        check_plain(path)
    if path.is_file() and path.suffix.lower() not in (".csv", ".parquet", ".npz"):
        raise DataError(f"{path}: data are a folder, or a .csv, .parquet or .npz file")
    return load_files(path, **_checked(word, load_files, options))


def _checked(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against a function's signature and convert numbers; what takes mappings checks itself."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    checked: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"'{name}' has no option '{option}'{suggest(option, known)}")
        hint = hints[option]
        either = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        kinds = [typing.get_origin(t) or t for t in either]
        checked[option] = value
        if Mapping in kinds or (value is None and type(None) in kinds):
            continue
        for kind, convert, words in _TYPES:
            if kind in kinds:
                checked[option] = convert(value)
                if checked[option] is None:
                    raise ConfigError(f"'{name}': {option} is {words}; received {value!r}")
                break
    return checked


def _names(value: Any) -> list[str] | None:
    if not isinstance(value, (list, tuple)) or not value:
        return None
    names = [name for name in cast("Sequence[Any]", value) if isinstance(name, str)]
    return names if len(names) == len(cast("Sequence[Any]", value)) else None


_TYPES: tuple[tuple[Any, Callable[[Any], Any], str], ...] = (
    (int, lambda value: whole(value, 0), "a whole number of at least 0"),
    (float, number, "a number"),
    (Sequence, _names, "a list of names, as in [rich, poor]"),
    (str, lambda value: value if isinstance(value, (str, Path)) else None, "a word"),
)
"""Types of options with what makes a value one (None: it is none), and what they are called."""
