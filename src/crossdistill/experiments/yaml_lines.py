"""Reading YAML so that every key knows the line it stands on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossdistill.errors import ConfigError, shown, steers

Place = tuple[str | int, ...]

NO_YAML = "not valid YAML: "
DEEPEST = 30
"""Levels of keys and lists within each other; an experiment needs six."""

MOST_LETTERS = 1000
"""Letters of a word: more than any path or title, and few enough for a message to repeat."""

MOST_BYTES = 1 << 20
"""Of an experiment or suite file: a hundred times a long one, and few enough to be parsed in seconds."""

MOST_NODES = 100_000
"""Keys and values once every alias is written out; a few aliases of aliases would make billions."""

TOO_DEEP = f"keys and lists stand more than {DEEPEST} deep within each other; flatten them"


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
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # no more: a device has no end
        if len(content) > MOST_BYTES:
            raise ConfigError(
                f"'{path}' is larger than {MOST_BYTES >> 20} MiB, which no experiment file is; give the YAML file"
            )
        text = content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise ConfigError(f"there is no experiment file '{path}'; `crossdistill init {path}` writes one") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read '{path}': it is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise ConfigError(f"cannot read '{path}': {error}") from None
    return parse_document(text, name=path.name)


def parse_document(text: str, *, name: str) -> Document:
    """Parse YAML text that holds one mapping; `name` is what messages call it.

    Raises:
        ConfigError: If it is no YAML or no mapping, or a key stands twice.
    """
    lines: dict[Place, int] = {}
    try:
        values = _parsed(text, lines)
    except _Wrong as wrong:
        raise ConfigError(f"{name}{f', line {wrong.line}' if wrong.line else ''}: {wrong}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: an experiment file is a mapping of keys to values; `crossdistill init` writes one")
    return Document(name, values, lines)  # pyright: ignore[reportUnknownArgumentType] - whatever the file holds


def override(document: Document, assignments: Sequence[str]) -> Document:
    """Change values from the command line, each "key.path=value" with the value in YAML.

    Raises:
        ConfigError: If an assignment has no "=", an empty key, or steps through something that holds no keys.
    """
    values, lines = document.values, dict(document.lines)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path: Place = tuple(int(part) if _is_number(part) else part for part in key.split("."))
        if not equals or "" in path:
            raise ConfigError(f"{shown(assignment)}: write key.path=value, for example stages.student.epochs=10")
        try:
            value = _parsed(text, {})
        except _Wrong as wrong:
            reason = f"{shown(text)} is not valid YAML; quote it" if str(wrong).startswith(NO_YAML) else wrong
            raise ConfigError(f"{shown(assignment)}: {reason}") from None
        values = _with(values, path, value, assignment)
        lines = {place: line for place, line in lines.items() if place[: len(path)] != path}
        lines[path] = 0
    return Document(document.name, values, lines)


class _Wrong(Exception):
    """What is wrong with a YAML text, and in which line, 0 where that is not known."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.line = line


class _Loader(yaml.SafeLoader):
    """The safe loader, with a place for words that look like a date or a number and are none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)  # pyright: ignore[reportUnknownMemberType]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # what int("x") and dates raise
            problem = f"{shown(str(node.value))} is no {node.tag.rpartition(':')[2]}; put text into quotes"
            raise _Wrong(problem, node.start_mark.line + 1) from None


def _parsed(text: str, lines: dict[Place, int]) -> Any:
    """Give the value of a YAML text, and fill in the line of each of its keys.

    Raises:
        _Wrong: If it is none, or a key stands twice.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _walk(node, (), lines, ())
            return loader.construct_document(node)  # pyright: ignore[reportUnknownMemberType]
        finally:
            loader.dispose()  # pyright: ignore[reportUnknownMemberType]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _Wrong(f"{NO_YAML}the character {text[error.position]!r} is not allowed", line) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _Wrong(f"{NO_YAML}{getattr(error, 'problem', None) or error}", mark.line + 1 if mark else 0) from None
    except RecursionError:
        raise _Wrong(TOO_DEEP) from None


def _is_number(part: str) -> bool:
    return part.isdecimal() and len(part) < 10  # Python refuses to read numbers of thousands of digits


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
    raise ConfigError(f"{shown(assignment)}: there is nothing called '{key}' to step into")


def _walk(node: yaml.Node, path: Place, lines: dict[Place, int], above: tuple[yaml.Node, ...]) -> None:
    """Note the lines of all keys below a node; `above` are the nodes that hold it."""
    line = node.start_mark.line + 1
    if len(lines) > MOST_NODES:
        raise _Wrong(f"more than {MOST_NODES:,} keys and values with all aliases (*) written out; use fewer", line)
    if isinstance(node, yaml.ScalarNode):
        _check_word(node)
    if node in above:
        raise _Wrong("an anchor (&) holds its own alias (*), which never ends; write the value out", line)
    if len(above) > DEEPEST:
        raise _Wrong(TOO_DEEP, line)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _Wrong("a key must be a word or a number, no list or mapping", line)
            _check_word(key)
            if key.tag.endswith(":bool"):  # a key is a word, even "on", which YAML 1.1 takes for true
                key.tag = "tag:yaml.org,2002:str"
            place = (*path, key.value)
            if place in lines:
                raise _Wrong(f"'{key.value}' stands twice; keep one", line)
            lines[place] = line
            _walk(value, place, lines, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[*path, number] = value.start_mark.line + 1
            _walk(value, (*path, number), lines, (*above, node))


def _check_word(node: yaml.ScalarNode) -> None:
    line = node.start_mark.line + 1
    if len(node.value) > MOST_LETTERS:
        raise _Wrong(f"a word of {len(node.value)} letters; write at most {MOST_LETTERS}", line)
    if steers(node.value.replace("\n", "")):
        raise _Wrong(f"{shown(node.value)} holds control characters; leave them out", line)
    if re.search("[\ud800-\udfff]", node.value):
        raise _Wrong(f"{shown(node.value)} holds half a character (\\ud800 to \\udfff); write the whole one", line)
    number = node.style is None and node.tag.endswith((":int", ":float"))
    if number and re.fullmatch(r"[-+]?0[0_]*[1-7][0-7_]*|.*:.*", node.value):
        words = "is another number in YAML 1.1; quote it if it is text, or write it without leading zeros and colons"
        raise _Wrong(f"'{node.value}' {words}", line)
