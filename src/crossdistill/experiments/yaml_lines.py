"""Reading YAML so that every key knows the line it stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossdistill.errors import ConfigError

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed YAML mapping and where its keys stand.

    Attributes:
        name: What to call the file in messages.
        values: The content.
        lines: Path of keys to line, counted from 1; keys set on the command line have line 0.
    """

    name: str
    values: dict[str, Any]
    lines: Mapping[Place, int]

    def where(self, place: Sequence[str | int]) -> str:
        """Say where a key, or the nearest key above it, stands: "file.yaml, line 7, stages.student.lr"."""
        path = tuple(place)
        dotted = ".".join(str(key) for key in path)
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path, 0)
        spot = f"{self.name}, line {line}" if line else f"{self.name}, command line" if path else self.name
        return f"{spot}, {dotted}" if dotted else spot


def read_document(path: Path) -> Document:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: If the file is missing, unreadable, no YAML or no mapping, or a key stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no experiment file '{path}'; `crossdistill init {path}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{path}': {error}") from None
    return parse_document(text, name=path.name)


def parse_document(text: str, *, name: str) -> Document:
    """Parse YAML text that holds one mapping; `name` is what messages call it.

    Raises:
        ConfigError: If it is no YAML or no mapping, or a key stands twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{name}: an experiment file is a mapping of keys to values; `crossdistill init` writes one"
            )
        lines: dict[Place, int] = {}
        _walk(node, (), lines, name)
        values: dict[str, Any] = loader.construct_document(node)  # pyright: ignore[reportUnknownMemberType]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        spot = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{spot}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()  # pyright: ignore[reportUnknownMemberType]
    return Document(name, values, lines)


def override(document: Document, assignments: Sequence[str]) -> Document:
    """Change values from the command line, each "key.path=value" with the value in YAML.

    Raises:
        ConfigError: If an assignment has no "=", an empty key, or steps through something that holds no keys.
    """
    values, lines = document.values, dict(document.lines)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path: Place = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        if not equals or "" in path:
            raise ConfigError(f"'{assignment}': write key.path=value, for example stages.student.epochs=10")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"'{assignment}': '{text}' is not valid YAML; quote it") from None
        values = _with(values, path, value, assignment)
        lines = {place: line for place, line in lines.items() if place[: len(path)] != path}
        lines[path] = 0
    return Document(document.name, values, lines)


def _with(container: Any, path: Place, value: Any, assignment: str) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(container, dict):
        held: dict[Any, Any] = dict(container)  # pyright: ignore[reportUnknownArgumentType]
        held[key] = _with(held.get(key, {}), rest, value, assignment)
        return held
    if isinstance(container, list):
        items: list[Any] = list(container)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(key, int) and key < len(items):
            items[key] = _with(items[key], rest, value, assignment)
            return items
    raise ConfigError(f"'{assignment}': there is nothing called '{key}' to step into")


def _walk(node: yaml.Node, path: Place, lines: dict[Place, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*path, key.value)
            if place in lines:
                raise ConfigError(f"{name}, line {key.start_mark.line + 1}: '{key.value}' stands twice; keep one")
            lines[place] = key.start_mark.line + 1
            _walk(value, place, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[*path, number] = value.start_mark.line + 1
            _walk(value, (*path, number), lines, name)
