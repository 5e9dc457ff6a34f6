"""What methods and objectives there are, and every parameter of one: from their facts, signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, cast

from crossdistill.errors import ConfigError, suggest
from crossdistill.experiments.signatures import parameters_of
from crossdistill.experiments.specs import ROLES
from crossdistill.methods import Method
from crossdistill.objectives import Facts, Objective
from crossdistill.registry import discover, load_dotted
from crossdistill.training.settings import Settings

KINDS = {"methods": "stages.STAGE.method", "objectives": "stages.STAGE.objectives"}
"""Package to the key of an experiment file that names what is in it."""


def shown(name: str | None = None) -> str:
    """Give a line on every method and objective, or a page on one.

    Args:
        name: A name from the facts, "module:Class" for one of the user's own, or None for all.

    Raises:
        ConfigError: If there is none of that name; the message names the nearest.
    """
    found = _found(name)
    if name:
        return "\n\n".join(_page(kind, cls) for kind, classes in found.items() for cls in classes)
    blocks: list[str] = []
    for kind, classes in found.items():
        width = max(len(cls.facts.name) for cls in classes)
        lines = [
            f"  {cls.facts.name:<{width}}  {cls.facts.title} [{cls.facts.paper}]{_needing(cls)}" for cls in classes
        ]
        blocks.append("\n".join([f"{kind}, for {KINDS[kind]}:", *lines]))
    return "\n\n".join([*blocks, "crossdistill methods NAME shows the parameters of one"])


def described(name: str | None = None) -> str:
    """Give what `shown` does as JSON: {"methods": [...], "objectives": [...]}, all parameters included."""
    found = {kind: [_facts(cls) for cls in classes] for kind, classes in _found(name).items()}
    return json.dumps({kind: found.get(kind, []) for kind in KINDS}, indent=2)


def _found(name: str | None) -> dict[str, list[type[Any]]]:
    """Give the classes of a name, or all, by kind."""
    if name and ":" in name:
        cls: Any = load_dotted(name)
        kind = next((kind for kind, base in _BASES.items() if inspect.isclass(cls) and issubclass(cls, base)), "")
        if not kind or not isinstance(getattr(cls, "facts", None), Facts):
            raise ConfigError(
                f"'{name}' is no method and no objective: derive it from crossdistill.methods.Method or "
                "crossdistill.objectives.Objective, and give it `facts`"
            )
        return {kind: [cls]}
    known = {kind: discover(f"crossdistill.{kind}") for kind in KINDS}
    if name is None:
        return {kind: list(classes.values()) for kind, classes in known.items()}
    found = {kind: [classes[name]] for kind, classes in known.items() if name in classes}
    if not found:
        every = {word for classes in known.values() for word in classes}
        raise ConfigError(f"no method or objective is called '{name}'{suggest(name, every)}")
    return found


_BASES: Mapping[str, type[Any]] = types.MappingProxyType({"methods": Method, "objectives": Objective})


def _page(kind: str, cls: type[Any]) -> str:
    facts = _facts(cls)
    lines = [
        f"{facts['name']}: {facts['title']}",
        f"  paper   {facts['paper']}",
        f"  needs   {', '.join(facts['needs']) or 'nothing'}",
        *([f"  reads   {facts['reads']}"] if facts["reads"] else []),
        f"  serves  {', '.join(facts['modalities'])}",
        f"  class   {facts['class']}",
        f"  stands  in {KINDS[kind]}",
        "",
        "parameters" if facts["parameters"] else "no parameters",
    ]
    for parameter in facts["parameters"]:
        value = "required" if parameter["required"] else f"default {json.dumps(parameter['default'])}"
        lines.append(f"  {parameter['name']}: {parameter['type']}, {value}")
        lines += textwrap.wrap(parameter["about"], 110, initial_indent="      ", subsequent_indent="      ")
    if kind == "methods":
        settings = ", ".join(field.name for field in dataclasses.fields(Settings))
        lines += ["", *textwrap.wrap(f"and those of every stage: {settings}", 116, subsequent_indent="  ")]
    return "\n".join(lines)


def _facts(cls: type[Any]) -> dict[str, Any]:
    facts: Facts = cls.facts
    abouts = _abouts(cls)
    if issubclass(cls, Objective):
        fields: dict[str, tuple[Any, Any]] = {"weight": (float, 1.0), **parameters_of(cls)}
        abouts.setdefault("weight", "What its loss is multiplied by in the sum of a stage's objectives.")
    else:
        fields = dict(parameters_of(cls, ROLES))
    return {
        "name": facts.name,
        "title": facts.title,
        "paper": facts.paper,
        "needs": sorted(facts.needs),
        "reads": getattr(cls, "reads", ""),
        "modalities": list(facts.modalities),
        "tasks": list(facts.tasks),
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "parameters": [
            {
                "name": name,
                "type": _words(hint),
                "required": default is ...,
                "default": None if default is ... else _plain(default),
                "about": abouts.get(name, ""),
            }
            for name, (hint, default) in fields.items()
        ],
    }


def _needing(cls: type[Any]) -> str:
    return f"; needs {', '.join(sorted(cls.facts.needs))}" if cls.facts.needs else ""


def _abouts(cls: type[Any]) -> dict[str, str]:
    """Read the Args section of a class's own docstring: name to text in one line."""
    found: dict[str, str] = {}
    inside, name = False, ""
    for line in inspect.cleandoc(vars(cls).get("__doc__") or "").splitlines():
        if line and not line.startswith(" "):
            inside = line.rstrip() == "Args:"
        elif inside and (entry := re.match(r" {1,4}(\w+)(?: *\([^)]*\))?: *(.*)", line)):
            name = entry[1]
            found[name] = entry[2]
        elif inside and name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def _words(hint: Any) -> str:
    """Write a type in words: "float", "'within' | 'anchor'", "int | None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(json.dumps(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_words(part) for part in arguments)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if hint is types.NoneType:
        return "null"
    if inspect.isclass(hint) and not arguments:
        return hint.__name__
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(hint))


def _plain(value: Any) -> Any:
    """Give a default as JSON has it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast("list[Any]", value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in cast("Mapping[Any, Any]", value).items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
