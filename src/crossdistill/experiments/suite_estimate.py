"""How long a suite will take and how much disk, before it starts: a few steps of every kind of stage are timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from crossdistill.errors import Interrupted
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.rehearsal import undrawn, untrained
from crossdistill.experiments.suite_plan import Hall, Job, Plan
from crossdistill.experiments.suites import Shelf, Suite
from crossdistill.files import digest
from crossdistill.training import TeacherStore, fit

JUDGING = 0.15
"""Seconds to judge a run under one number of labels: what small networks take, roughly; no probe times it."""

STEPS, LONGEST = 6, 1.0
"""Steps that each kind trains for, two at least, and the seconds after which no other is begun."""

PROBING = 60.0
"""Seconds after which a kind is no longer timed whose row was timed in another experiment: of many, these are alike."""


@dataclass(frozen=True)
class Estimate:
    """What the jobs that are left will cost on one core group, roughly.

    Attributes:
        seconds: Wall time of each job.
        disk: Bytes of trained networks and predictions.
        unknown: Jobs whose steps could not be timed: the sum lacks their training.
    """

    seconds: Mapping[Job, float]
    disk: int
    unknown: int

    @property
    def total(self) -> float:
        """Seconds of all jobs, one after the other."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Cost:
    """What training one stage costs, in seconds and bytes; no seconds where its steps could not be timed."""

    before: float
    step: float | None
    size: int


_FREE = Cost(0.0, 0.0, 0)


def estimate(
    suite: Suite,
    planned: Plan,
    folder: Path,
    shelf: Shelf,
    left: frozenset[Job] | None = None,
    costs: dict[str, Cost] | None = None,
) -> Estimate:
    """Time a few optimiser steps of each kind of stage; kinds differ in the table's row, data, networks or settings.

    What a method does with all pairs before its first step counts as if these were the rows of the short stage, and a
    teacher's pass over them, compiling, checkpoints and held-out rows do not count.

    Args:
        suite: Checked.
        planned: Its jobs.
        folder: DIR.
        shelf: The data sets.
        left: The jobs to count; None counts all.
        costs: What is known already, by kind; what is found is added.
    """
    hall, clock = Hall(suite.entries, folder, shelf), time.monotonic()
    costs, alike, store = {} if costs is None else costs, dict[str, Cost](), TeacherStore()
    stages: dict[tuple[str, str, bool], list[tuple[Cost, int]]] = {}
    seconds: dict[Job, float] = {}
    disk, unknown = 0, 0
    for job in planned.jobs:
        if left is not None and job not in left:
            continue
        benches = list(hall.benches(job.entry).values())
        arms = {arm.name: arm for arm in planned.rows[job.entry]}
        arm = benches[0].teacher_arm(benches[0].experiment.stages[job.arm]) if job.teaching else arms[job.arm]
        row = (job.entry, job.arm, job.teaching)
        if job.steps and row not in stages:
            for bench in benches:
                if (key := _kind(bench, arm)) not in costs and not costs:
                    _probe(bench, arm, store)  # the first in a process is slower than all that follow
                if key not in costs:
                    late = time.monotonic() - clock > PROBING
                    costs[key] = alike[arm.name] if late and arm.name in alike else _probe(bench, arm, store)
                alike[arm.name] = costs[key]
            stages[row] = [(costs[_kind(bench, arm)], bench.steps(arm, bench.experiment.seeds[0])) for bench in benches]
        made = stages[row][: len(job.makes)] if job.steps else []  # one for each number of labels where it reads them
        disk += sum(cost.size for cost, _ in made)
        unknown += any(cost.step is None for cost, _ in made)
        training = sum(cost.before + (cost.step or 0.0) * steps for cost, steps in made)
        seconds[job] = training + (0.0 if job.teaching else JUDGING * len(benches))
        disk += 0 if job.teaching else 2 * len(benches[0].test) * len(benches)
    return Estimate(seconds, disk, unknown)


def _kind(bench: Bench, arm: Arm) -> str:
    """Hash what the cost of a step depends on."""
    assert arm.stage is not None
    data, spec = bench.data, bench.experiment.data
    shapes = [data.modality(m).shape for m in (spec.source, spec.target, *spec.further)]
    batch = bench.settings(arm, bench.experiment.seeds[0]).batch_size
    return digest(data.name, shapes, dataclasses.asdict(arm.stage), bench.networks, batch, arm.name)


class _Clock:
    """Marks the end of every step, and ends the stage where it takes long; the loop asks it as its `stop`."""

    def __init__(self) -> None:
        self.marks = [time.perf_counter()]
        self.stopped = False

    def __call__(self) -> bool:
        self.marks.append(time.perf_counter())
        self.stopped = len(self.marks) > 2 and self.marks[-1] - self.marks[1] > LONGEST
        return self.stopped

    def cost(self, size: int) -> Cost:
        """Give the mean seconds of a step but the first, which is slower, and what came before the first."""
        if len(self.marks) < 3:
            return Cost(0.0, None, size)
        step = (self.marks[-1] - self.marks[1]) / (len(self.marks) - 2)
        return Cost(max(0.0, self.marks[1] - self.marks[0] - step), step, size)


def _probe(bench: Bench, arm: Arm, store: TeacherStore) -> Cost:
    """Time a stage of an arm.

    The loop itself trains a short stage on rows for two steps an epoch: whatever a method does before its first step is
    done, and each of its phases has its share of the steps, if they are not so long that the stage ends early.

    Raises:
        Interrupted: If the user stops it.
    """
    stage = arm.stage
    if stage is None or stage.module is not None:
        return _FREE
    seed, size, clock = bench.experiment.seeds[0], 0, _Clock()
    try:
        with undrawn():
            teacher = untrained(bench, stage) if stage.teacher else None
            method = bench.method(arm, seed, teacher=teacher)
            size = sum(p.nbytes for p in method.parameters()) - _bytes(teacher)
            rows, settings = bench.stage_data(arm, seed), bench.settings(arm, seed)
            wanted = 2 * settings.batch_size * settings.accumulate
            few = np.linspace(0, len(rows) - 1, min(len(rows), wanted)).astype(np.int64)
            short = dataclasses.replace(
                settings, steps=STEPS, keep="last", workers=0, compile=None, shard=False, distinct_groups=False
            )
            labels, clock = bench.reads_labels(stage), _Clock()
            fit(method, rows.subset(few), short, seed=seed, labels=labels, stop=clock, store=store, shared=False)
    except Interrupted:
        if not clock.stopped:
            raise
    except Exception:  # whatever a user's part raises: the run records it with its reason, and the others go on
        return Cost(0.0, None, size)
    return clock.cost(size)


def _bytes(network: nn.Module | None) -> int:
    return 0 if network is None else sum(p.nbytes for p in network.parameters())
