"""Telling of an exception that a user's own code raised: what, and where, in one line."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from crossdistill.experiments.sources import is_users
from crossdistill.registry import lookup


def told(error: BaseException) -> str:
    """Tell of any exception in a line: its type, what it says, and where in the user's code it was raised, if there."""
    says = str(error).strip().partition("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    spot = spot_of(error) or (f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "")
    return f"{type(error).__name__}{': ' if says else ''}{says}{f' ({spot})' if spot else ''}"


def spot_of(error: BaseException) -> str:
    """Give file:line of the innermost frame in the user's own code, empty where there is none."""
    users = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users(Path(frame.filename))]
    return f"{_short(users[-1].filename)}:{users[-1].lineno}" if users else ""


def definition_of(name: str) -> str:
    """Give file:line of a user's objective."""
    code: Any = getattr(lookup("crossdistill.objectives", name).parts, "__code__", None)
    if ":" not in name or code is None:
        return ""
    return f"{_short(code.co_filename)}:{code.co_firstlineno}"


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
