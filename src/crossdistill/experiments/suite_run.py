"""Running a suite: every experiment, row and seed once, on as many processes as are asked for, never twice the same.

DIR/results.json                  all rows that are there, rewritten whole while the suite runs
DIR/runs.csv                      one line a run: status, time, accuracy
DIR/suite.yaml                    the suite file, with its seeds
DIR/data.json                     hashes of the data at the last start
DIR/runs/EXPERIMENT/ROW-SEED.json what one run gave; a run that is there is not done again
DIR/predictions/EXPERIMENT/ROW-SEED.npz   predicted classes of every test row
DIR/stages, DIR/store             trained networks and teachers' outputs, shared by all experiments
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from crossdistill.errors import TrainingError
from crossdistill.experiments.listening import LISTEN
from crossdistill.experiments.pool import WorkerLost, Workers, limited_threads, shared_out
from crossdistill.experiments.results import refuse_other_kind
from crossdistill.experiments.same_data import note_data
from crossdistill.experiments.schema import parse_experiment, to_yaml
from crossdistill.experiments.suite_book import Book
from crossdistill.experiments.suite_job import failed, perform
from crossdistill.experiments.suite_plan import Hall, Job, Record, plan
from crossdistill.experiments.suite_tuning import with_trials, with_tuned
from crossdistill.experiments.suites import Entry, Shelf, Suite
from crossdistill.files import only_one, write_text

ATTEMPTS = 2
"""How often a run is tried whose process dies."""


def run_suite(
    suite: Suite,
    folder: str | Path,
    *,
    shelf: Shelf | None = None,
    jobs: int | None = 1,
    threads: int | None = None,
    on: Literal["", "ray"] = "",
    listen: LISTEN | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run a suite, and write its results into a folder while it runs.

    Started again in the same folder it goes on where it was: what is done is kept, and more seeds, methods or
    experiments add their own runs alone. A run that fails is recorded with its reason, and tried again at the next
    start.

    Args:
        suite: Checked.
        folder: DIR; made if it is not there.
        shelf: Data sets that are at hand.
        jobs: Processes; None takes as many as there are cores for. The results do not depend on it.
        threads: Of each process, which the last bits of results depend on; None takes one on a CPU.
        on: "ray" shares the runs among a Ray cluster, one core each; `jobs` then bounds how many run at once.
        listen: Told what happens.
        command: What the user typed, for the record.

    Returns:
        The content of results.json.

    Raises:
        CrossDistillError: If something does not fit, or another process works in the folder; `Interrupted` if the user
            stops it.
    """
    folder, shelf, listen = Path(folder), shelf or Shelf(), listen or _nobody
    with only_one(folder):
        refuse_other_kind(folder, suite=True)
        return _run(suite, folder, shelf, jobs=jobs, threads=threads, on=on, listen=listen, command=command)


def _run(
    suite: Suite,
    folder: Path,
    shelf: Shelf,
    *,
    jobs: int | None,
    threads: int | None,
    on: Literal["", "ray"],
    listen: LISTEN,
    command: str,
) -> dict[str, Any]:
    started, clock = datetime.now(UTC), time.monotonic()
    planned = plan(suite, folder, shelf)
    if suite.trials:
        planned = with_trials(suite, planned, folder, shelf)
    book = Book(suite, folder, shelf, {"started": started.isoformat(timespec="seconds"), "command": command})
    specs = [entry.experiment.data for entry in suite.entries]
    note_data(folder, [(spec, shelf.get(spec.name, spec.options)) for spec in specs])
    waiting = book.open(planned)
    write_text(folder / "suite.yaml", yaml.safe_dump(dict(suite.values), sort_keys=False, allow_unicode=True))

    def go_on() -> None:
        listen("planned", {"plan": book.planned, "left": waiting, "seconds": time.monotonic() - clock})
        how = {"jobs": jobs, "threads": threads}
        for job, record in _outcomes(suite, folder, shelf, waiting, book, **how, on=on, listen=listen):
            book.add(job, record)
            listen("run", {"job": job, "record": record, "seconds": time.monotonic() - clock})

    try:
        go_on()
        if suite.trials:
            waiting = book.open(with_tuned(suite, planned, book.records, folder, shelf))
            go_on()
    finally:
        book.environment["seconds"] = round(time.monotonic() - clock, 1)
        book.write()
    return book.results()


def _outcomes(
    suite: Suite,
    folder: Path,
    shelf: Shelf,
    waiting: Sequence[Job],
    book: Book,
    *,
    jobs: int | None,
    threads: int | None,
    on: str,
    listen: LISTEN,
) -> Iterator[tuple[Job, Record]]:
    """Do the jobs that wait, here, in processes or on a cluster."""
    workers: Callable[..., Any] = Workers
    if on == "ray":
        from crossdistill.experiments.ray_workers import RayWorkers, slots

        threads = threads or 1
        width, workers = min(jobs or slots(threads), max(1, len(waiting))), RayWorkers
        most = width if jobs else 2 * width  # what waits at Ray tells a cluster that can grow to do so
    else:
        width, threads = shared_out(jobs, threads, len(waiting))
        most = width
    book.environment |= {"jobs": width, "threads": threads, "on": on or "processes"}
    if width == 1 and not on:
        with limited_threads(threads):
            yield from _alone(Hall(suite.entries, folder, shelf), waiting, listen)
        return
    texts = [(e.name, e.family, e.track, e.labels_per_class, to_yaml(e.experiment)) for e in suite.entries]
    setting = (texts, str(folder.resolve()))
    crew = functools.partial(workers, _worker, setting, jobs=most, threads=threads, listen=listen)
    yield from _shared(crew, waiting, width)


def _nobody(word: str, facts: Mapping[str, Any]) -> None:
    del word, facts


def _alone(hall: Hall, jobs: Sequence[Job], listen: LISTEN) -> Iterator[tuple[Job, Record]]:
    """Do all jobs in this process, one after the other; teachers stand before those who need them."""
    line = _Line(jobs, 1)
    for job in jobs:
        reason = line.broken.get(job.needs)
        record = failed(job, f"its teacher failed: {reason}") if reason else perform(hall, job, listen=listen)
        line.finish(job, record)
        yield job, record


def _worker(
    texts: Sequence[tuple[Any, ...]], folder: str, tell: LISTEN, stop: Callable[[], bool]
) -> Callable[[Job], Record]:
    """Set up what a worker process does with each job: without news of steps, which would keep the parent busy."""
    del tell
    entries = [
        Entry(name, family, track, ks, parse_experiment(text, name=name)) for name, family, track, ks, text in texts
    ]
    return functools.partial(perform, Hall(entries, Path(folder), Shelf()), stop=stop)


def _shared(crew: Callable[[], Any], jobs: Sequence[Job], width: int) -> Iterator[tuple[Job, Record]]:
    """Share jobs among workers, a few ahead.

    Where a process dies, those that were in flight are tried again one by one, so that the next death has one suspect;
    it is recorded as failed when it has had its attempts.
    """
    line = _Line(jobs, width)
    while line.waiting:
        try:
            with crew() as workers:
                yield from line.refused()
                line.fill(workers)
                for job, future in workers.finished():
                    try:
                        record = future.result()
                    except WorkerLost as lost:
                        record = failed(job, str(lost))
                    line.finish(job, record)
                    yield job, record
                    yield from line.refused()
                    line.fill(workers)
        except TrainingError as error:  # a process died, and took the pool with it
            if not line.flying:
                raise
            for job in sorted(line.flying, key=jobs.index, reverse=True):
                line.tried[job] += 1
                if line.tried[job] < ATTEMPTS:
                    line.waiting.insert(0, job)
                else:
                    record = failed(job, str(error).partition(";")[0])
                    line.finish(job, record)
                    yield job, record
            line.flying.clear()


class _Line:
    """Jobs that wait for their turn: for their teacher, and for whoever trains one of their stages just now.

    Args:
        jobs: In order.
        width: Workers.
    """

    def __init__(self, jobs: Sequence[Job], width: int) -> None:
        self.waiting, self.width = list(jobs), width
        self.flying: set[Job] = set()
        self.tried: Counter[Job] = Counter()
        self.broken: dict[str, str] = {}
        self.open = Counter(key for job in jobs for key in job.makes)

    def finish(self, job: Job, record: Record) -> None:
        """Note how a job ended."""
        self.flying.discard(job)
        self.open.subtract(job.makes)
        if record["status"] == "failed":
            self.broken.update((key, str(record["reason"])) for key in job.makes)

    def refused(self) -> Iterator[tuple[Job, Record]]:
        """Give the jobs whose teacher failed."""
        for job in [job for job in self.waiting if job.needs in self.broken]:
            self.waiting.remove(job)
            record = failed(job, f"its teacher failed: {self.broken[job.needs]}")
            self.finish(job, record)
            yield job, record

    def fill(self, workers: Any) -> None:
        """Submit what can go, until every worker has one to spare; a job that was tried before goes alone."""
        busy = {key for job in self.flying for key in job.makes}
        while job := self._next(busy):
            self.waiting.remove(job)
            self.flying.add(job)
            busy |= job.makes
            workers.submit(job)

    def _next(self, busy: set[str]) -> Job | None:
        if len(self.flying) >= 2 * self.width or any(self.tried[job] for job in self.flying):
            return None
        for job in self.waiting:
            if (not job.needs or not self.open[job.needs]) and not busy & job.makes:
                return job if not (self.tried[job] and self.flying) else None
        return None
