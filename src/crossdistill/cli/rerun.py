"""`crossdistill rerun`: repeats a run from what its folder keeps, and says whether the numbers are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from crossdistill.errors import ConfigError, printable

MOST_SHOWN = 10
"""Lines on numbers that differ."""

MOST_PROCESSES = 1024
"""Processes or threads that a folder, of a stranger perhaps, may ask for."""


def again(
    folder: Path,
    out: Path | None,
    jobs: int | None,
    run: Callable[[Path, Path, int | None, int | None], object],
    suite: Callable[[Path, Path, int | None, int | None], object],
) -> bool:
    """Repeat what is in a folder into another, and print how the numbers compare.

    Args:
        folder: Of a finished run or suite.
        out: Where to; FOLDER-again if nothing is said.
        jobs: Processes; as many as then if nothing is said.
        run: Runs an experiment file into a folder with so many processes, of so many threads each.
        suite: The same for a suite file.

    Returns:
        Whether every number is equal to the bit.

    Raises:
        CrossDistillError: If the folder keeps too little, the data have changed, or `out` is no other folder.
    """
    from crossdistill.experiments.repeat import changed_since, check_data_are_those, compare_runs, read_kept

    out = folder.parent / f"{folder.resolve().name}-again" if out is None else out
    if out.resolve() == folder.resolve():
        raise ConfigError(f"--out '{out}' is the run itself; choose another folder")
    kept = read_kept(folder)
    check_data_are_those(kept)
    _say([f"differs from then: {line}" for line in changed_since(kept)], error=True)
    then: Mapping[str, Any] = kept.results["environment"]
    (suite if kept.suite else run)(kept.file, out, jobs or _whole(then, "jobs"), _whole(then, "threads"))
    found = compare_runs(folder, out)
    if found.same:
        student = ", and the student's weights," if found.student else ""
        _say([f"repeated: all {found.numbers} numbers{student} are equal to the bit"])
        return True
    _say([f"not repeated: {len(found.differing)} of {found.numbers} numbers differ"])
    _say(found.differing[:MOST_SHOWN])
    if (rest := len(found.differing) - MOST_SHOWN) > 0:
        _say([f"and {rest} more"])
    if found.student is False:
        _say(["the student's weights differ"])
    environment = found.environment or ("nothing that is recorded; please report it",)
    _say([f"differs in the environment: {line}" for line in environment])
    return False


def _whole(facts: Mapping[str, Any], name: str) -> int | None:
    value = facts.get(name)
    return value if isinstance(value, int) and 0 < value <= MOST_PROCESSES else None


def _say(lines: Sequence[str], *, error: bool = False) -> None:
    console = Console(stderr=error)
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
