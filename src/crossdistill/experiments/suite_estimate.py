"""How long a suite will take and how much disk, before it starts: one step of every kind of stage is timed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from crossdistill.errors import CrossDistillError
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.rehearsal import undrawn, untrained
from crossdistill.experiments.suite_plan import Hall, Job, Plan
from crossdistill.experiments.suites import Shelf, Suite

JUDGING = 0.15
"""Seconds to judge a run under one number of labels, where no probe says more."""

STEPS, LONGEST = 5, 0.5
"""Steps that are timed of each kind, and the seconds after which no other is begun."""


@dataclass(frozen=True)
class Estimate:
    """What the jobs that are left will cost on one core group, roughly.

    Attributes:
        seconds: Wall time of each job.
        disk: Bytes of trained networks and predictions.
        unknown: Jobs whose step could not be timed beforehand, as their first step needs a pass over the data.
    """

    seconds: Mapping[Job, float]
    disk: int
    unknown: int

    @property
    def total(self) -> float:
        """Seconds of all jobs, one after the other."""
        return sum(self.seconds.values())


def estimate(suite: Suite, planned: Plan, folder: Path, shelf: Shelf, left: frozenset[Job] | None = None) -> Estimate:
    """Time one optimiser step of each kind of row, once for each data set and direction's kinds of modality.

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


def _probe(bench: Bench, arm: Arm | None) -> tuple[float | None, int]:
    """Give the seconds of one step of an arm, None where it cannot be told, and the bytes of its product."""
    if arm is None or arm.stage is None or arm.stage.module is not None:
        return 0.0, 0
    seed = bench.experiment.seeds[0]
    try:
        with undrawn():
            teacher = untrained(bench, arm.stage) if arm.stage.teacher else None
            method = bench.method(arm, seed, teacher=teacher)
            size = sum(p.nbytes for p in method.parameters()) - _bytes(teacher)
            rows, settings = bench.stage_data(arm, seed), bench.settings(arm, seed)
            loader = rows.loader(
                method.inputs(),
                batch_size=settings.batch_size,
                seed=seed,
                labels=bench.reads_labels(arm.stage),
                distinct_groups=settings.distinct_groups,
            )
            batch = loader.batch(0, loader.plan(0)[0])
            took: list[float] = []
            while len(took) < STEPS and sum(took) < LONGEST:  # the first is slower than all that follow
                started = time.perf_counter()
                for losses in method.train().training_steps(batch):
                    losses.total.backward()  # pyright: ignore[reportUnknownMemberType]
                took.append(time.perf_counter() - started)
            return min(took), size
    except (CrossDistillError, RuntimeError, ValueError, KeyError, AttributeError, TypeError):
        return None, 0  # its hooks see the data first; the run itself will say what is wrong, if anything is


def _bytes(network: nn.Module | None) -> int:
    return 0 if network is None else sum(p.nbytes for p in network.parameters())
