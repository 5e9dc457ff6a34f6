"""`crossdistill bench`: its arguments, its progress, and what it says in the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from crossdistill.errors import ConfigError, CrossDistillError, DataError, shown, suggest
from crossdistill.experiments.yaml_lines import Document
from crossdistill.registry import Pairing

if TYPE_CHECKING:
    from crossdistill.experiments.suite_estimate import Cost, Estimate
    from crossdistill.experiments.suite_plan import Job, Plan
    from crossdistill.experiments.suites import Suite

TRACKS = ("label-free", "labelled")
MOST_READ = 6
"""Data sets of a suite whose modalities are shown."""

MOST_SKIPPED = 12
"""Lines on what cannot be served that are shown; the page has all of them."""


def suite_of(
    file: Path | None,
    data: str,
    source: str,
    target: str,
    methods: str,
    track: str,
    pairing: str,
    seeds: int | None,
    tune: int,
    kinds: Sequence[str] = (),
) -> Document:
    """Read the suite file, or write the standard suite of the user's own data.

    Raises:
        ConfigError: If there is neither or both, or an option is missing or wrong.
    """
    from crossdistill.data import available_sets
    from crossdistill.experiments.suites import standard
    from crossdistill.experiments.yaml_lines import read_document

    given = {"--data": data, "--source": source, "--target": target, "--methods": methods}
    if file is not None:
        others = {"--pairing": pairing, "--tune": tune, "--kind": kinds}
        if extra := [name for name, value in {**given, **others}.items() if value]:
            raise ConfigError(f"{extra[0]} goes without a suite file; write it into '{file}'")
        if file.suffix.lower() in (".npz", ".csv", ".parquet") or file.is_dir():
            raise ConfigError(f"'{file}' is data, not a suite file; write --data {file} --source A --target B")
        if not file.exists():
            raise ConfigError(f"there is no suite file '{file}'; give --data, --source and --target to do without one")
        return read_document(file)
    if missing := [name for name in ("--data", "--source", "--target") if not given[name]]:
        raise ConfigError(f"give a suite file, or --data, --source and --target; missing: {', '.join(missing)}")
    if track not in TRACKS:
        raise ConfigError(f"--track is '{track}'{suggest(track, TRACKS)}")
    if pairing not in ("", *get_args(Pairing)):
        raise ConfigError(f"--pairing is '{pairing}'{suggest(pairing, get_args(Pairing))}")
    own = {"--pairing": pairing, "--kind": kinds}
    said = [name for name, value in own.items() if value]
    if said and (data.startswith("synthetic:") or data in {facts.name for facts in available_sets()}):
        raise ConfigError(f"{said[0]} is for your own files; '{data}' knows what it holds")
    options: dict[str, Any] = {"pairing": pairing} if pairing else {}
    if kinds:
        options["kinds"] = dict(_kind(word) for word in kinds)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if methods and not names:
        raise ConfigError(f"--methods names none: {shown(methods)}; write a,b,c, or leave it out for all that apply")
    return standard(data, source, target, methods=names, track=track, seeds=seeds or 5, tune=tune, options=options)


def _kind(word: str) -> tuple[str, str]:
    name, equals, kind = word.partition("=")
    if not (name and equals and kind):
        raise ConfigError(f"--kind is {shown(word)}; write NAME=KIND, as in depth=image")
    return name, kind


def run_bench(
    document: Document, out: Path, *, jobs: int | None, threads: int | None, on: str, seeds: int | None, dry: bool
) -> None:
    """Run a suite, write its page and print its table.

    Raises:
        CrossDistillError: If something does not fit.
    """
    from crossdistill.cli.app import of_the_disk
    from crossdistill.cli.progress import odd
    from crossdistill.experiments.pool import limited_threads, shared_out
    from crossdistill.experiments.rows import told_of_absences
    from crossdistill.experiments.suite_estimate import estimate
    from crossdistill.experiments.suite_plan import plan
    from crossdistill.experiments.suite_run import run_suite
    from crossdistill.experiments.suite_tuning import with_trials
    from crossdistill.experiments.suites import Shelf, expand

    if on not in ("", "ray"):
        raise ConfigError(f"--on is '{on}'; it can be ray, or nothing for processes of this machine")
    shelf = Shelf()
    suite = expand(document, shelf, seeds=seeds)

    def read() -> list[str]:
        """Say how the data were read: modalities by kind and shape, and what is odd."""
        sets = list(shelf.loaded.values())
        lines: list[str] = []
        for data in sets[:MOST_READ]:
            found = dict.fromkeys(data.warnings)
            for entry in suite.entries:
                if shelf.get(entry.experiment.data.name, entry.experiment.data.options) is data:
                    found |= dict.fromkeys(told_of_absences(data, entry.experiment).warnings)
            lines += [f"{data!r}"[1:-1], *odd(tuple(found))]
        return lines

    costs: dict[str, Cost] = {}

    def guess(left: Sequence[Job], planned: Plan) -> Estimate:
        with limited_threads(shared_out(jobs, threads, len(left))[1]):  # a step is timed as the runs will take it
            return estimate(suite, planned, out, shelf, frozenset(left), costs)

    if dry:
        planned = plan(suite, out, shelf)
        if suite.trials:
            planned = with_trials(suite, planned, out, shelf)
        _show_plan(suite, planned, guess(planned.jobs, planned), read())
        return
    with BenchProgress(guess) as progress:
        for line in read():
            progress.say(line)
        try:
            results = run_suite(
                suite,
                out,
                shelf=shelf,
                jobs=jobs,
                threads=threads,
                on=on,
                listen=progress.listen,
                command=shlex.join(["crossdistill", *sys.argv[1:]]),
            )
            progress.say("working out the statistics and writing the page")
            page = _report(out)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CrossDistillError(of_the_disk(error, out)) from error
    _show_end(results, out, page)


class BenchProgress:
    """Listens to a suite: a bar where someone watches, a line a finished run where nobody does; use it as a context.

    Args:
        guess: From the jobs that are left and the plan, what they will cost.
    """

    def __init__(self, guess: Callable[[Sequence[Job], Any], Estimate]) -> None:
        self.console, self.guess = Console(stderr=True), guess
        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.expected: Mapping[Job, float] = {}
        self.done = self.total = 0.0
        self.before = 0.0
        self.count = self.left = 0

    def __enter__(self) -> BenchProgress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def listen(self, word: str, facts: Mapping[str, Any]) -> None:
        """Hear one piece of news of the suite."""
        if word == "planned":
            self._planned(facts)
        elif word == "run":
            self._run(facts)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _planned(self, facts: Mapping[str, Any]) -> None:
        jobs: Sequence[Job] = facts["left"]
        for line in _skipped(facts["plan"].skipped):
            self.say(line)
        self.say("timing a few steps of each kind of row")
        found = self.guess(jobs, facts["plan"])
        self.expected, self.total, self.left = found.seconds, found.total, len(jobs)
        self.done, self.count, self.before = 0.0, 0, facts["seconds"]
        self.say(
            f"{len(facts['plan'].jobs)} runs and teachers, {len(facts['plan'].jobs) - len(jobs)} done already; "
            f"{len(jobs)} to do, "
            f"about {_cost(found)}"
        )
        self.whole = self.bars.add_task("runs", total=len(jobs), note="")

    def _run(self, facts: Mapping[str, Any]) -> None:
        job, record = facts["job"], facts["record"]
        self.count += 1
        self.done += self.expected.get(job, 0.0)
        rest = (facts["seconds"] - self.before) * (self.total - self.done) / self.done if self.done else 0.0
        self.bars.update(self.whole, completed=self.count, note=f"{_time(rest)} left")
        if record["status"] == "failed":
            self.say(f"  failed  {job.entry}  {job.row}, seed {job.seed}: {record['reason']}")
        elif job.counts:
            scores = [
                f"{_count(row['labels_per_class'])}: {100 * row['value']:.1f}"
                for row in record["rows"]
                if row["metric"] == "accuracy" and row["evaluation"] == record["rows"][0]["evaluation"]
            ]
            left = f"  [{self.count}/{self.left}, {_time(rest)} left]"
            self.say(f"  {job.entry}  {job.row}, seed {job.seed}  {', '.join(scores)}{left}")


def _count(k: int | None) -> str:
    return "all labels" if k is None else f"{k} a class"


def _time(seconds: float) -> str:
    """Write a duration roughly: "40 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    """Write bytes roughly: "3 MB"."""
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _cost(found: Estimate) -> str:
    """Write an estimate: "12 min of one process, 3 MB"."""
    unknown = f" (without training {found.unknown} of them, whose steps could not be timed)" if found.unknown else ""
    return f"{_time(found.total)} of one process{unknown}, {_size(found.disk)}"


def _skipped(skipped: Sequence[tuple[str, str, str]]) -> list[str]:
    """Give a line for each reason why rows are left out, with the rows."""
    reasons: dict[str, list[str]] = {}
    for experiment, method, reason in skipped:
        names = reasons.setdefault(reason.removeprefix(f"{method} "), [])
        name = method or experiment
        if name not in names:
            names.append(name)
    lines = [f"left out: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    rest = len(lines) - MOST_SKIPPED
    return [*lines[:MOST_SKIPPED], *([f"and {rest} more reasons"] if rest > 0 else [])]


def _show_plan(suite: Suite, planned: Plan, found: Estimate, read: Sequence[str]) -> None:
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for line in read:
        say(line)
    for entry in suite.entries:
        spec, ks = entry.experiment.data, ", ".join(_count(k) for k in entry.labels_per_class)
        seconds = sum(found.seconds[job] for job in planned.jobs if job.entry == entry.name)
        rows = ", ".join(arm.name for arm in planned.rows[entry.name])
        say(f"{entry.name} ({entry.track}): {spec.name}, {spec.source} -> {spec.target}; labels {ks}; {_time(seconds)}")
        say(f"  {rows}")
    for line in _skipped(planned.skipped):
        say(line)
    trials = sum(job.trial is not None for job in planned.jobs)
    tuning = f", {trials} of them trials, whose tuned rows come on top" if trials else ""
    say(
        f"{len(planned.jobs)} runs and teachers over {len(suite.seeds)} seeds{tuning}, {planned.kept} done already; "
        f"about {_cost(found)}; nothing was kept"
    )


def _report(out: Path) -> Path:
    from crossdistill.report import write_league

    return write_league(out)


def _show_end(results: Mapping[str, Any], out: Path, page: Path) -> None:
    from crossdistill.report import league_markdown

    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    try:
        say(league_markdown(out))
    except DataError as error:  # the page and the other files are there
        say(f"no table: {error}")
    lost = [run for run in results["runs"] if run["status"] == "failed"]
    if lost:
        say(f"{len(lost)} runs failed; the page has their reasons, and the same command tries them again")
    say(f"page: {page}")
