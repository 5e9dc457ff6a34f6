"""A constructor's signature as a model that checks values from a file: the one place where a parameter is defined."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from crossdistill.errors import ConfigError, shown, suggest, told
from crossdistill.experiments.yaml_lines import Document, Place

FORBID = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@functools.cache
def parameters_of(factory: Callable[..., Any], skip: frozenset[str] = frozenset()) -> Mapping[str, tuple[Any, Any]]:
    """Give a class's or function's parameters as name to (type, default), `...` for a required one.

    Args:
        factory: What will be called.
        skip: Parameters that do not come from a file, networks for example.
    """
    target = factory.__init__ if inspect.isclass(factory) else factory  # pyright: ignore[reportUnknownMemberType]
    try:
        hints = typing.get_type_hints(target)
    except Exception as error:  # of a user's own class: names that exist for type checkers alone
        name = getattr(factory, "__name__", str(factory))
        raise ConfigError(f"the annotations of {name} cannot be read: {told(error, target)}") from error
    found: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name in skip or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        found[name] = (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
    return found


def loop_fields(
    raw: Mapping[str, Any], like: Mapping[str, Any], document: Document, place: Sequence[str | int]
) -> dict[str, tuple[Any, Any]]:
    """Give the loop's settings as name to (type, default).

    Args:
        raw: What stands in the file of a stage; its `epochs` go before the `steps` of what it is like.
        like: Defaults in place of the loop's own.
        document: The file, for messages.
        place: Of the stage.

    Raises:
        ConfigError: If both epochs and steps are said.
    """
    from crossdistill.training.settings import Settings

    said = raw.get("epochs") is not None
    if said and raw.get("steps") is not None:
        raise ConfigError(
            f"{document.where((*place, 'epochs'))}: epochs and steps are two budgets; make one of them null"
        )
    defaults = {**like, **({"steps": None} if said else {})}
    return {key: (kind, defaults.get(key, value)) for key, (kind, value) in parameters_of(Settings).items()}


def check(
    fields: Mapping[str, tuple[Any, Any]], values: Any, document: Document, place: Sequence[str | int]
) -> dict[str, Any]:
    """Check a mapping from a file against typed fields and fill in defaults.

    Args:
        fields: Name to (type, default).
        values: What stands in the file.
        document: The file, for messages.
        place: Path of the mapping in it.

    Returns:
        Name to converted value, defaults included.

    Raises:
        ConfigError: Naming file, line, key, what is allowed and the nearest right one.
    """
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{document.where(place)}: expected keys and values; received {shown(values)}")
    given = cast("dict[str, Any]", values)
    for name, value in given.items():
        if isinstance(value, bool) and name in fields and not _may_be_bool(fields[name][0]):
            raise ConfigError(
                f"{document.where((*place, name))}: expected no true or false; received {str(value).lower()}"
            )
    definitions: dict[str, Any] = dict(fields)
    model = create_model("Section", __config__=FORBID, **definitions)
    try:
        checked: BaseModel = model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, document, place, fields)) from None
    return {name: getattr(checked, name) for name in fields}


def _may_be_bool(kind: Any) -> bool:
    """Say whether a type has a place for true and false, which pydantic takes for the number 1 otherwise."""
    return kind in (bool, Any) or any(_may_be_bool(part) for part in typing.get_args(kind))


def explain(error: ValidationError, document: Document, place: Sequence[str | int], known: Collection[str]) -> str:
    """Turn pydantic's errors into one line: where, what was wrong, what is allowed."""
    problems = error.errors()
    first = problems[0]
    inner: list[str | int] = []
    for key in first["loc"]:  # pydantic puts the names of a union's members between the keys; they are no keys
        tag = isinstance(key, str) and ("[" in key or "-" in key or key in ("str", "int", "float", "bool"))
        if not tag or (*place, *inner, key) in document.lines:
            inner.append(key)
    path: Place = (*place, *inner)
    where = document.where(path)
    more = f" (and {len(problems) - 1} more)" if len({p["loc"][:1] for p in problems}) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{document.where(path)}: unknown key{suggest(str(inner[-1]), known)}{more}"
    if first["type"] == "missing":
        return f"{document.where(place)}: the key '{inner[-1]}' is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}; received {shown(first['input'])}{more}"


def at(document: Document, place: Sequence[str | int], error: Exception, keys: Collection[str] = ()) -> ConfigError:
    """Give a constructor's error its place in the file: at the key that its message names, if it names one."""
    message = str(error)
    words = [word.strip("'`,;:()") for word in message.split()]
    named = next((word for word in words if word in keys and (*place, word) in document.lines), None)
    return ConfigError(f"{document.where((*place, named) if named else place)}: {message}")
