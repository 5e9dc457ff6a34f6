"""`crossdistill diagnose`: its arguments, and what it says in the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crossdistill.errors import ConfigError, CrossDistillError, shown, steers

if TYPE_CHECKING:
    from crossdistill.diagnostics import Diagnosis, Estimate
    from crossdistill.experiments.diagnosing import Question

COLOURS = {"help": "green", "no help": "red", "undecided": "yellow"}
SIGNS = {"stop": "stop", "warn": "look"}
NONE = "\N{EN DASH}"


def question_of(
    file: Path | None,
    sources: Sequence[str],
    target: Path | None,
    labels: Path | None,
    groups: Path | None,
    splits: Path | None,
    out: Path,
) -> Question:
    """Read the arrays, or make them from an experiment file.

    Raises:
        ConfigError: If there is neither or both, or an option is missing or wrong.
        DataError: If a file cannot be used.
    """
    from crossdistill.experiments import read_experiment
    from crossdistill.experiments.diagnosing import from_experiment, from_files

    given = {"--source": sources, "--target": target, "--labels": labels, "--groups": groups, "--splits": splits}
    if file is not None:
        if extra := [name for name, value in given.items() if value]:
            raise ConfigError(f"{extra[0]} goes without an experiment file; '{file}' says what the data are")
        from crossdistill.cli.progress import Progress

        with Progress() as progress:
            return from_experiment(read_experiment(file), out, listen=progress.listen)
    if missing := [name for name in ("--source", "--target") if not given[name]]:
        raise ConfigError(f"give an experiment file, or --source and --target; missing: {', '.join(missing)}")
    assert target is not None
    return from_files(_named(sources), target, labels=labels, groups=groups, splits=splits)


def run_diagnose(question: Question, out: Path, *, training: bool, pilot: bool, level: float, seed: int) -> None:
    """Diagnose, write DIR/diagnosis.json and DIR/diagnosis.html, and print the verdict with its reasons.

    Raises:
        CrossDistillError: If arrays or parameters do not fit, or the folder cannot be written.
    """
    from crossdistill.cli.app import of_the_disk
    from crossdistill.diagnostics import diagnose
    from crossdistill.files import only_one, write_checked
    from crossdistill.report import write_diagnosis

    console = Console(stderr=True)
    with console.status("diagnosing"):
        found = diagnose(
            question.sources,
            question.target,
            labels=question.labels,
            groups=question.groups,
            splits=question.splits,
            training=training,
            pilot=pilot,
            level=level,
            seed=seed,
        )
    try:
        with only_one(out):
            write_checked(out / "diagnosis.json", {**found.as_json(), "about": dict(question.about)})
            page = write_diagnosis(out)
    except OSError as error:
        raise CrossDistillError(of_the_disk(error, out)) from error
    _show(found, page)


def _named(sources: Sequence[str]) -> dict[str, Path]:
    """Read NAME=FILE; a file without a name is called by its stem."""
    found: dict[str, Path] = {}
    for text in sources:
        name, equals, file = text.partition("=")
        path = Path(file if equals else text)
        name = name if equals else path.stem
        if not name or not (file if equals else text):  # str(Path("")) is "."
            raise ConfigError(f"--source takes FILE or NAME=FILE; received '{text}'")
        if steers(name) or "\t" in name:
            raise ConfigError(f"a source is called {shown(name)}, which cannot be printed; name it with NAME=FILE")
        if name in found:
            raise ConfigError(f"two sources are called '{name}'; name them with --source NAME=FILE")
        found[name] = path
    return found


def _show(found: Diagnosis, page: Path) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("teacher", "forecast gain, points", "interval", "verdict"):
        table.add_column(column, justify="right" if column in ("forecast gain, points", "interval") else "left")
    for one in found.teachers:
        gain = None if one.forecast is None else one.forecast.gain
        value, bounds = (NONE, NONE) if gain is None else (f"{100 * gain.value:+.1f}", _bounds(gain))
        table.add_row(escape(one.name), value, bounds, one.verdict)
    console.print(table)
    several = len(found.teachers) > 1
    whose = [("", found.findings), *((f"'{one.name}': " if several else "", one.findings) for one in found.teachers)]
    for name, findings in whose:
        for finding in findings:
            line = f"{SIGNS[finding.severity]}: {name}{finding.what}; {finding.do}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for warning in found.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False, soft_wrap=True)
    left: dict[tuple[str, str], list[str]] = {}
    for one in found.withheld:
        left.setdefault((one.teacher, one.reason), []).append(one.what)
    for (teacher, reason), names in left.items():
        of = f" of '{teacher}'" if teacher and several else ""
        console.print(f"withheld: {', '.join(names)}{of}: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.print(found.sentence, style=COLOURS[found.verdict], markup=False, highlight=False, soft_wrap=True)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)


def _bounds(gain: Estimate) -> str:
    return NONE if gain.low is None or gain.high is None else f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
