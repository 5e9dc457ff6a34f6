"""Every error that a user can cause, below one root, so that the command line can tell them from bugs.

And the telling, in one line, of what a user's own code raised: a network, an objective, a module that is imported.
"""

from __future__ import annotations

import difflib
import os
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import CodeType


class CrossDistillError(Exception):
    """Root of all errors of this package: what was wrong, where, and what to do, in one or two lines."""


class ConfigError(CrossDistillError):
    """An experiment file, a command line or a constructor's argument is wrong."""


class DataError(CrossDistillError):
    """A data set, a file of one, or a batch is wrong."""


class NotMeaningful(DataError):
    """The data are in order, but too few or too degenerate for the number that was asked for; it is withheld."""


class NetworkError(CrossDistillError):
    """A network, its weights or the name of one of its parts is wrong."""


class ObjectiveError(CrossDistillError):
    """The tensors handed to an objective do not fit it, or it fails on them.

    Attributes:
        objective: What the method calls it, where that is known; empty otherwise.
    """

    objective: str = ""


class TrainingError(CrossDistillError):
    """Training cannot go on: a term that is not finite, a checkpoint that does not belong to the run."""


class Interrupted(CrossDistillError):
    """The user stopped the run; everything finished so far is saved."""


MOST_KNOWN = 12
"""Words that an error lists; of more, the nearest are said and the number."""

LONGEST = 80
"""Letters of a user's value that an error shows."""

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, among them what begins a terminal's commands, line breaks, and marks that turn text around."""

_WANTED = re.compile("[\u202a-\u202c\u2066-\u2069]")
"""Marks that words copied from right-to-left text bring along; they are no reason to refuse a name."""


def steers(text: str) -> bool:
    """Whether a name holds what would steer a terminal, a line break too, and so is damaged or worse."""
    return "\n" in text or _STEERING.search(_WANTED.sub("", text)) is not None


def shown(value: object) -> str:
    """Quote a user's value for a message, its beginning if it is long; control characters are escaped."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def printable(text: str) -> str:
    """Escape what would steer a terminal, or turn its text around; line breaks and tabs stay."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def suggest(word: str, known: Iterable[str]) -> str:
    """Say what is allowed, the nearest first: ``; did you mean 'cmc'? known: cmc, cmd``.

    Args:
        word: What the user wrote.
        known: What would have been right.

    Returns:
        The tail of an error message, empty when nothing is known.
    """
    word, names = str(word)[:LONGEST], sorted(map(str, known))  # a key of a file may be a number
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    if len(names) > MOST_KNOWN:
        nearest = difflib.get_close_matches(word, names, n=MOST_KNOWN, cutoff=0.0)
        return f"; {hint}known: {', '.join(nearest)} and {len(names) - MOST_KNOWN} more"
    return f"; {hint}known: {', '.join(names)}" if names else ""


def told(error: BaseException, function: object = None) -> str:
    """Tell of any exception in a line: its type, what it says, and where in the user's code it was raised, if there.

    Args:
        error: What was raised.
        function: A function of theirs that was called, named where none of their lines was reached.
    """
    says, spot = str(error).strip().partition("\n")[0], spot_of(error) or defined_at(function)
    return f"{type(error).__name__}{': ' if says else ''}{says}{f' ({spot})' if spot else ''}"


def spot_of(error: BaseException) -> str:
    """Give file:line of the innermost frame in the user's own code, empty where there is none."""
    users = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(Path(frame.filename))]
    return f"{_short(users[-1].filename)}:{users[-1].lineno}" if users else ""


def defined_at(function: object) -> str:
    """Give file:line where a function of the user's own is defined, empty where it is nobody's or not theirs."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or not is_users(Path(code.co_filename)):
        return ""
    return f"{_short(code.co_filename)}:{code.co_firstlineno}"


def is_users(file: Path) -> bool:
    """Tell whether a file is neither installed, nor Python's, nor ours."""
    given = (Path(os.__file__).parent, Path(__file__).parent)
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return file.is_file() and not installed and not any(file.is_relative_to(folder) for folder in given)


def _short(file: str) -> str:
    """Give a path as seen from the current folder, where it lies below that."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
