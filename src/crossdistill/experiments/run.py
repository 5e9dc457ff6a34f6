"""Running one experiment: every arm and seed, on as many processes as are asked for, each finished stage once."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, CrossDistillError, DataError
from crossdistill.experiments.arms import Arm, list_arms
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.evidence import write_evidence
from crossdistill.experiments.judge import Judge, Row
from crossdistill.experiments.listening import LISTEN
from crossdistill.experiments.needs import find_unmet
from crossdistill.experiments.pool import Workers, limited_threads, shared_out
from crossdistill.experiments.rehearsal import check_loops, rehearse
from crossdistill.experiments.results import refuse_other_kind, summarise
from crossdistill.experiments.same_data import note_data
from crossdistill.experiments.schema import parse_experiment, to_yaml
from crossdistill.experiments.specs import Experiment
from crossdistill.experiments.student import remove_student, save_student
from crossdistill.files import only_one, write_checked, write_text
from crossdistill.training.processes import rank_and_count


@dataclass(frozen=True, eq=False)
class Task:
    """One arm under one seed; `teaching` trains the teacher alone, which others wait for."""

    arm: Arm
    seed: int
    teaching: bool = False

    @property
    def waits(self) -> bool:
        """Whether the teacher of the seed must be there first."""
        stage = self.arm.stage
        if self.teaching:
            return False
        return self.arm.role == "ceiling" or (bool(stage and stage.teacher) and not self.arm.random_teacher)


@dataclass(frozen=True)
class Plan:
    """What a run will do, before it does it.

    Attributes:
        arms: The rows, the method first.
        tasks: In the order in which they are started.
        steps: Optimiser steps of each task.
        skipped: Rows that cannot be served, with the reason.
    """

    arms: tuple[Arm, ...]
    tasks: tuple[Task, ...]
    steps: Mapping[Task, int]
    skipped: Mapping[str, str]

    @property
    def total_steps(self) -> int:
        """All optimiser steps."""
        return sum(self.steps.values())


def plan(bench: Bench) -> Plan:
    """List all tasks of an experiment and their steps, and build every network once, so that errors come first.

    Raises:
        CrossDistillError: If a method, a network or the data do not fit.
    """
    experiment = bench.experiment
    bench.label_rows(experiment.seeds[0])
    if bench.data.classes < 2 or not len(bench.test):
        raise DataError(
            f"'{bench.data.name}' has {bench.data.classes} classes and {len(bench.test)} labelled test rows; "
            "evaluation needs two classes and one labelled test row at least"
        )
    listed, teaching = list_arms(experiment), bench.teaching()
    reasons = find_unmet(bench, listed)
    skipped = {name: reason for name, reason in reasons.items() if reason}
    if listed[0].name in skipped:
        where = experiment.document.where(("stages", experiment.student.name, "objectives"))
        raise ConfigError(f"{where}: {skipped[listed[0].name]}")
    arms = [arm for arm in listed if arm.name not in skipped]
    check_loops(bench, [*([] if teaching is None else [teaching]), *arms])
    rehearse(bench, arms)
    tasks = [] if teaching is None else [Task(teaching, seed, True) for seed in experiment.seeds]
    tasks += [Task(arm, seed) for seed in experiment.seeds for arm in arms]
    steps = {task: bench.steps(task.arm, task.seed) for task in tasks}
    return Plan(tuple(arms), tuple(tasks), steps, skipped)


def run_experiment(
    experiment: Experiment,
    folder: str | Path,
    *,
    data: PairedDataset | None = None,
    jobs: int | None = 1,
    threads: int | None = None,
    listen: LISTEN | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run an experiment and write its results, evidence, student and logs into a folder.

    Started again in the same folder it goes on where it was: finished stages are found by the hash of what made them.

    Where torchrun started several processes, all of them call this: they train every stage together, each on its share
    of every batch, but for rows that learn from the few labels alone; then process 0 judges, and writes.

    Args:
        experiment: Checked.
        folder: Where everything goes; made if it is not there.
        data: The data set, if it is at hand; then everything runs in this process.
        jobs: Processes, at most one a seed and arm; None takes as many as there are cores for. The results do not
            depend on it. More than one needs a script that guards its own start (`if __name__ == "__main__":`), as they
            import it again.
        threads: Of each process, which the last bits of results depend on; None takes one on a CPU, and what torchrun
            gives each of its processes.
        listen: Told what happens, for progress.
        command: What the user typed, for the record; empty where it was no command of ours.

    Returns:
        The content of results.json; nothing in processes other than the first of torchrun's.

    Raises:
        CrossDistillError: If something does not fit, naming file and key, or another process works in the folder;
            `Interrupted` if the user stops it.
    """
    folder = Path(folder)
    rank, count = rank_and_count()
    if count > 1 and jobs not in (None, 1):
        raise ConfigError(f"--jobs {jobs}: {count} processes train this run together already; leave it out")
    listen = _nobody if listen is None or rank else listen
    bench = Bench(experiment, folder, data=data)
    tasks = plan(bench)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CrossDistillError(f"cannot write into '{folder}': {error.strerror}") from None
    if rank:  # the first holds the folder, and judges
        _train_together(bench, tasks, listen)
        return {}
    with only_one(folder):
        refuse_other_kind(Path(folder), suite=False)
        if count > 1:
            jobs, threads = 1, threads or torch.get_num_threads()
        else:
            jobs, threads = shared_out(1 if data is not None else jobs, threads, len(tasks.tasks))
        with limited_threads(threads):  # this process too, which fits what predicts on new files
            return _run(bench, tasks, jobs, threads, listen=listen, command=command, together=count > 1)


def _train_together(bench: Bench, tasks: Plan, listen: LISTEN) -> None:
    """Train all that the processes of torchrun share."""
    for task in tasks.tasks:
        if bench.shared(task.arm) and (task.teaching or task.arm.role != "ceiling"):
            bench.trained(task.arm, task.seed, listen=listen)


def _run(
    bench: Bench, tasks: Plan, jobs: int, threads: int, *, listen: LISTEN, command: str, together: bool
) -> dict[str, Any]:
    """Do the tasks of a plan in the folder, which is held."""
    experiment, folder = bench.experiment, bench.folder
    started, clock = datetime.now(UTC), time.monotonic()
    _begin(folder, to_yaml(experiment))
    note_data(folder, [(experiment.data, bench.data)])
    news = {"tasks": len(tasks.tasks), "steps": tasks.total_steps, "data": bench.data.name}
    listen("planned", {**news, "warnings": list(bench.data.warnings)})
    if together:
        _train_together(bench, tasks, listen)
    rows: dict[tuple[str, int], list[Row]] = {}
    execute = _here(bench, listen) if jobs == 1 else _pool(bench, jobs, threads, listen)
    for task, found in execute(tasks):
        if not task.teaching:  # a stage may be called like a row
            rows[task.arm.name, task.seed] = found
            listen("judged", {"row": task.arm.name, "seed": task.seed, "rows": found})
    arms = list(tasks.arms)
    ordered = [row for seed in experiment.seeds for arm in arms for row in rows[arm.name, seed]]
    listen("closing", {})
    first = experiment.seeds[0]
    write_evidence(bench, arms, first)
    facts = {"started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - clock, 1)}
    facts |= {"command": command, "jobs": jobs, "threads": threads}
    results = summarise(bench, arms, ordered, facts, tasks.skipped)
    save_student(bench, arms[0], first, results)
    gather_logs(bench, arms)
    write_checked(folder / "results.json", results)
    return results


def _begin(folder: Path, text: str) -> None:
    """Write experiment.yaml; if another stood there, first remove what that one ended in, but none of its stages."""
    path = folder / "experiment.yaml"
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
        for name in ("results.json", "report.html", "metrics.jsonl", "evidence.npz"):
            (folder / name).unlink(missing_ok=True)
        remove_student(folder)
    write_text(path, text)


def _nobody(word: str, facts: Mapping[str, Any]) -> None:
    del word, facts


Execute = Callable[[Plan], Iterator[tuple[Task, list[Row]]]]


def perform(
    bench: Bench, task: Task, *, listen: LISTEN | None = None, stop: Callable[[], bool] | None = None
) -> list[Row]:
    """Do one task: train what it needs, or find it, and judge it."""
    arm, seed = task.arm, task.seed
    if task.teaching:
        bench.product(arm, seed, listen=listen, stop=stop)
        return []
    if arm.role == "ceiling":
        network = bench.ceiling(seed)
    else:
        network = None if arm.stage is None else bench.product(arm, seed, listen=listen, stop=stop)
    return Judge(bench).rows(arm, seed, network)


def _here(bench: Bench, listen: LISTEN) -> Execute:
    """Do all tasks in this process, one after the other."""

    def execute(tasks: Plan) -> Iterator[tuple[Task, list[Row]]]:
        for task in tasks.tasks:
            yield task, perform(bench, task, listen=listen)

    return execute


def _pool(bench: Bench, jobs: int, threads: int, listen: LISTEN) -> Execute:
    """Do tasks in processes; students start when the teacher of their seed is there."""

    def execute(tasks: Plan) -> Iterator[tuple[Task, list[Row]]]:
        text, folder = to_yaml(bench.experiment), str(bench.folder)
        with Workers(_worker, (text, folder), jobs=jobs, threads=threads, listen=listen) as workers:
            waiting = [task for task in tasks.tasks if task.waits]
            for task in sorted((task for task in tasks.tasks if not task.waits), key=lambda t: not t.teaching):
                workers.submit(task)
            for task, found in workers.finished():
                if task.teaching:
                    for free in [t for t in waiting if t.seed == task.seed]:
                        waiting.remove(free)
                        workers.submit(free)
                yield task, found.result()

    return execute


def _worker(text: str, folder: str, tell: LISTEN, stop: Callable[[], bool]) -> Callable[[Task], list[Row]]:
    """Set up what a worker process does with each task."""
    bench = Bench(parse_experiment(text, name=str(Path(folder) / "experiment.yaml")), Path(folder))
    return functools.partial(perform, bench, listen=tell, stop=stop)


def gather_logs(bench: Bench, arms: list[Arm]) -> None:
    """Write DIR/metrics.jsonl: every epoch of every arm and seed, with the name of its row, in one file."""
    lines: list[str] = []
    teaching = bench.teaching()
    for seed in bench.experiment.seeds:
        for arm in (teaching, *arms):
            if arm is None or arm.stage is None or arm.stage.module is not None:
                continue
            log = bench.folder / "stages" / bench.key(arm, seed) / "metrics.jsonl"
            if not log.is_file():
                continue
            facts = {"method": arm.name, "stage": arm.stage.name, "seed": seed}
            for line in log.read_text(encoding="utf-8").splitlines():
                lines.append(json.dumps({**facts, **json.loads(line)}))
    write_text(bench.folder / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
