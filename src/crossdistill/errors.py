"""Every error that a user can cause, below one root, so that the command line can tell them from bugs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CrossDistillError(Exception):
    """Root of all errors of this package: what was wrong, where, and what to do, in one or two lines."""


class ConfigError(CrossDistillError):
    """An experiment file, a command line or a constructor's argument is wrong."""


class DataError(CrossDistillError):
    """A data set, a file of one, or a batch is wrong."""


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


def suggest(word: str, known: Iterable[str]) -> str:
    """Say what is allowed, the nearest first: ``; did you mean 'cmc'? known: cmc, cmd``.

    Args:
        word: What the user wrote.
        known: What would have been right.

    Returns:
        The tail of an error message, empty when nothing is known.
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"; {hint}known: {', '.join(names)}" if names else ""
