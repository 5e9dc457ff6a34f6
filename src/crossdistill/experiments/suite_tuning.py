"""The tuned column of a suite: as many trials for every row, each judged on validation rows, none on the test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.errors import ConfigError, DataError
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.specs import StageSpec
from crossdistill.experiments.suite_plan import Changes, Hall, Job, Plan, judging, stage_steps, teaching, varied
from crossdistill.experiments.suites import Shelf, Suite
from crossdistill.files import digest

TRIAL_SEED = 1_000_003
"""Of all trials; a suite may not have it, so that no trial has the labels or the start of a run that counts."""

WIDTH = 4.0
"""A trial multiplies by a factor between 1 / 4 and 4, log-uniform: two octaves on either side of the default."""

TEMPERATURES = ("tau", "tau_student", "tau_teacher", "temperature")
"""Parameters that trials change beside the learning rate, wherever a row has them."""

TUNED = "@tuned"
"""What a tuned row is called by, after the name of the row with the defaults."""


def draw(arm: Arm, trial: int) -> Changes:
    """Give what a trial changes of a row: nothing in the first, then factors on the learning rate and temperatures.

    Args:
        arm: With a stage.
        trial: From 0.

    Returns:
        Path of a setting, as ("lr",) or ("similarity", "tau"), with its value; a pure function of both arguments.
    """
    assert arm.stage is not None
    if trial == 0:
        return ()
    rng = np.random.default_rng(int(digest(arm.name, trial), 16))
    found: list[tuple[tuple[str, ...], float]] = []
    for path, value in _settings(arm.stage):
        found.append((path, float(f"{value * WIDTH ** rng.uniform(-1, 1):.3g}")))
    return tuple(found)


def _settings(stage: StageSpec) -> list[tuple[tuple[str, ...], float]]:
    """Give the learning rate and all temperatures of a stage with their values."""
    found: list[tuple[tuple[str, ...], float]] = [(("lr",), float(stage.settings["lr"]))]
    own: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), stage.parameters)]
    own += [((o.name,), o.parameters) for o in stage.objectives]
    for path, parameters in own:
        for name in TEMPERATURES:
            value = parameters.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                found.append(((*path, name), float(value)))
    return found


def tunable(arm: Arm) -> bool:
    """Say whether a row has settings of its own: random teacher and shuffled pairs have the method's."""
    stage = arm.stage
    return stage is not None and stage.module is None and not arm.random_teacher and not arm.shuffled


def with_trials(suite: Suite, planned: Plan, folder: Path, shelf: Shelf) -> Plan:
    """Add the trials of every row of every experiment to a plan.

    Raises:
        ConfigError: If a run that counts has the trials' seed.
        DataError: If an experiment has no labelled validation rows to judge them on.
    """
    if TRIAL_SEED in suite.seeds:
        raise ConfigError(f"seed {TRIAL_SEED} is that of the trials; choose another")
    hall, jobs, made = Hall(suite.entries, folder, shelf), list[Job](), set[str]()
    for entry in suite.entries:
        benches = list(hall.benches(entry.name).values())
        bench = benches[0]
        if bench.held_out is None or not bench.held_out.labelled.any():
            raise DataError(f"experiment '{entry.name}': tune needs validation rows with labels, and there are none")
        for job in teaching(entry, bench, planned.rows[entry.name], TRIAL_SEED, made):
            jobs.append(job)
            made |= job.makes
        for arm in (arm for arm in planned.rows[entry.name] if tunable(arm)):
            for trial in range(suite.trials):
                changes = draw(arm, trial)
                steps = stage_steps(benches[:1], [arm], TRIAL_SEED)
                for job in judging(entry, benches[:1], [varied(arm, changes)], steps, TRIAL_SEED, made):
                    jobs.append(dataclasses.replace(job, trial=trial, changes=changes))
                    made |= job.makes
    return dataclasses.replace(planned, jobs=(*planned.jobs, *jobs))


def with_tuned(
    suite: Suite, planned: Plan, records: Mapping[Job, Mapping[str, Any]], folder: Path, shelf: Shelf
) -> Plan:
    """Add the tuned rows to a plan whose trials are done: each with the changes of its best trial, for every seed."""
    hall, jobs = Hall(suite.entries, folder, shelf), list(planned.jobs)
    made = {key for job in jobs for key in job.makes}
    rows = {name: list(arms) for name, arms in planned.rows.items()}
    for entry in suite.entries:
        benches = list(hall.benches(entry.name).values())
        for arm in planned.rows[entry.name]:
            best = chosen([job for job in planned.jobs if (job.entry, job.arm) == (entry.name, arm.name)], records)
            if best is None:
                continue
            tuned = dataclasses.replace(varied(arm, best.changes), name=f"{arm.name}{TUNED}")
            rows[entry.name].append(tuned)
            steps = stage_steps(benches, [tuned], suite.seeds[0])
            for seed in suite.seeds:
                for job in judging(entry, benches, [tuned], steps, seed, made):
                    jobs.append(dataclasses.replace(job, arm=arm.name, changes=best.changes))
    return dataclasses.replace(planned, jobs=tuple(jobs), rows={name: tuple(arms) for name, arms in rows.items()})


def chosen(jobs: Sequence[Job], records: Mapping[Job, Mapping[str, Any]]) -> Job | None:
    """Give the trial with the best value on validation rows, the earliest of equal ones; None where none came to it."""
    done = [job for job in jobs if job.trial is not None and job in records and records[job]["status"] == "done"]
    return max(done, key=lambda job: (records[job]["value"], -(job.trial or 0)), default=None)
