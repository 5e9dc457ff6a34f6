"""One door to all data: a named set, a synthetic world, or the user's own files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crossdistill.data.dataset import PairedDataset
from crossdistill.data.named import available_sets, load_named, set_facts
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
        ConfigError: If an option is unknown; the message names the nearest.

    Example:
        >>> load("synthetic:shared_latent", rho=0.8, seed=0)
        <synthetic:shared_latent: 6500 natural pairs of a vector (64,), b vector (64,); 10 classes>
    """
    word = str(source)
    if word.startswith("synthetic:"):
        world = word.removeprefix("synthetic:")
        if world not in WORLDS:
            raise DataError(f"no world is called '{world}'{suggest(world, WORLDS)}")
        _check_options(word, WORLDS[world], options)
        return WORLDS[world](**options)
    names = [facts.name for facts in available_sets()]
    if isinstance(source, str) and word in names:
        _check_options(word, set_facts(word).build, options)
        return load_named(word, **options)
    path = Path(source).expanduser()
    if not path.exists():
        worlds = [f"synthetic:{world}" for world in WORLDS]
        raise DataError(f"'{word}' is neither a file, a folder nor a set{suggest(word, [*names, *worlds])}")
    if path.is_file() and path.suffix.lower() not in (".csv", ".parquet", ".npz"):
        raise DataError(f"{path}: data are a folder, or a .csv, .parquet or .npz file")
    _check_options(word, load_files, options)
    return load_files(path, **options)


def _check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ConfigError(f"'{name}' has no option '{option}'{suggest(option, known)}")
