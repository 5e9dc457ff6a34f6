"""How long a suite will take and how much disk, before it starts: a few steps of every kind of stage are timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from crossdistill.errors import CrossDistillError, Interrupted
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.rehearsal import undrawn, untrained
from crossdistill.experiments.suite_plan import Hall, Job, Plan
from crossdistill.experiments.suites import Shelf, Suite
from crossdistill.training import TeacherStore, fit

JUDGING = 0.15
"""Seconds to judge a run under one number of labels, where no probe says more."""

STEPS, LONGEST = 6, 1.0
"""Steps that each kind trains for, two at least, and the seconds after which no other is begun."""


@dataclass(frozen=True)
class Estimate:
    """What the jobs that are left will cost on one core group, roughly.

    Attributes:
        seconds: Wall time of each job.
        disk: Bytes of trained networks and predictions.
        unknown: Jobs whose steps could not be timed, which are not in the sum.
    """

    seconds: Mapping[Job, float]
    disk: int
    unknown: int

    @property
    def total(self) -> float:
        """Seconds of all jobs, one after the other."""
        return sum(self.seconds.values())


def estimate(suite: Suite, planned: Plan, folder: Path, shelf: Shelf, left: frozenset[Job] | None = None) -> Estimate:
    """Time a few optimiser steps of each kind of row, once for each data set and direction's kinds of modality.

    Args:
        suite: Checked.
        planned: Its jobs.
        folder: DIR.
        shelf: The data sets.
        left: The jobs to count; None counts all.
    """
    hall = Hall(suite.entries, folder, shelf)
    per_step: dict[tuple[str, ...], tuple[float | None, int]] = {}
    seconds: dict[Job, float] = {}
    disk, unknown = 0, 0
    for job in planned.jobs:
        if left is not None and job not in left:
            continue
        benches = hall.benches(job.entry)
        bench = next(iter(benches.values()))
        arms = {arm.name: arm for arm in planned.rows[job.entry]}
        arm = bench.teacher_arm(bench.experiment.stages[job.arm]) if job.teaching else arms[job.arm]
        spec = bench.experiment.data
        shapes = [str(bench.data.modality(m).shape) for m in (spec.source, spec.target)]
        key = (bench.data.name, *shapes, job.arm, str(job.teaching))
        if key not in per_step:
            per_step[key] = _probe(bench, arm)
        step, size = per_step[key]
        unknown += step is None and job.steps > 0
        judging = 0.0 if job.teaching else JUDGING * len(benches)
        seconds[job] = (step or 0.0) * job.steps + judging
        disk += size * max(1, len(job.makes)) + (0 if job.teaching else 2 * len(bench.test) * len(benches))
    return Estimate(seconds, disk, unknown)


class _Clock:
    """Marks the end of every step, and ends the stage where it takes long; the loop asks it as its `stop`."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def __call__(self) -> bool:
        self.marks.append(time.perf_counter())
        return len(self.marks) > 1 and self.marks[-1] - self.marks[0] > LONGEST

    def step(self) -> float | None:
        """Give the mean seconds of a step but the first, which is slower; None where not two ended."""
        return (self.marks[-1] - self.marks[0]) / (len(self.marks) - 1) if len(self.marks) > 1 else None


def _probe(bench: Bench, arm: Arm | None) -> tuple[float | None, int]:
    """Give the seconds of one step of an arm, None where it cannot be told, and the bytes of its product.

    The loop itself trains a short stage on two batches of rows: whatever a method does before its first step is done,
    and each of its phases has its share of the steps.
    """
    if arm is None or arm.stage is None or arm.stage.module is not None:
        return 0.0, 0
    seed, stage, clock, size = bench.experiment.seeds[0], arm.stage, _Clock(), 0
    try:
        with undrawn():
            teacher = untrained(bench, stage) if stage.teacher else None
            method = bench.method(arm, seed, teacher=teacher)
            size = sum(p.nbytes for p in method.parameters()) - _bytes(teacher)
            rows, settings = bench.stage_data(arm, seed), bench.settings(arm, seed)
            few = np.linspace(0, len(rows) - 1, min(len(rows), 2 * settings.batch_size)).astype(np.int64)
            short = dataclasses.replace(
                settings, steps=STEPS, keep="last", workers=0, compile=None, shard=False, distinct_groups=False
            )
            labels, store = bench.reads_labels(stage), TeacherStore()
            fit(method, rows.subset(few), short, seed=seed, labels=labels, stop=clock, store=store, shared=False)
    except Interrupted:
        pass
    except (CrossDistillError, RuntimeError, ValueError, KeyError, AttributeError, TypeError):
        return None, size  # the run itself will say what is wrong, if anything is
    return clock.step(), size


def _bytes(network: nn.Module | None) -> int:
    return 0 if network is None else sum(p.nbytes for p in network.parameters())
