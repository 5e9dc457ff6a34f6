"""What a suite will do: every experiment's rows under every seed, with what each trains and what it must wait for."""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.errors import ConfigError, DataError, told
from crossdistill.experiments.arms import Arm, list_arms
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.needs import find_unfit_layers, find_unmet
from crossdistill.experiments.sources import JUDGING, code_version
from crossdistill.experiments.specs import CONTROLS
from crossdistill.experiments.suites import Entry, Shelf, Suite
from crossdistill.files import digest, filed, read_json, unchecked

_LOG = logging.getLogger("crossdistill")

HELD = 64
"""Experiments that a process keeps at hand; more would only take memory."""

LABELS_READ = "reads labels, which nothing may in the label-free track; the labelled track has it"

Record = dict[str, Any]
Changes = tuple[tuple[tuple[str, ...], float], ...]
"""Settings of a row that differ from its stage's: path, as ("lr",) or ("similarity", "tau"), and value."""


@dataclass(frozen=True)
class Job:
    """One row of one experiment under one seed, or the training of its teacher.

    Attributes:
        entry: Name of the experiment.
        row: Name of the row; of the teacher's stage where `teaching`.
        arm: Name of the arm that it is made of: the row, but for tuned ones.
        seed: Of the run.
        makes: Keys of the stages that it trains: no two jobs with one in common may run at once.
        needs: Key of the teacher that must be there first; empty if there is none.
        steps: Optimiser steps of the stages.
        key: Hash of all that the result depends on.
        teaching: Whether it only trains the teacher.
        changes: Settings that are not the row's defaults.
        trial: Which trial of the tuning it is, judged on validation rows; None for a run that counts.
    """

    entry: str
    row: str
    arm: str
    seed: int
    makes: frozenset[str]
    needs: str
    steps: int
    key: str
    teaching: bool = False
    changes: Changes = ()
    trial: int | None = None

    @property
    def counts(self) -> bool:
        """Whether the job gives rows of the table."""
        return not self.teaching and self.trial is None

    @property
    def record(self) -> str:
        """Where the run's record goes, below DIR/runs, without ending; its predictions, below DIR/predictions."""
        last = self.seed if self.trial is None else f"trial{self.trial}"
        return f"{filed(self.entry)}/{filed(self.row)}-{last}"


@dataclass(frozen=True)
class Plan:
    """What a suite will do.

    Attributes:
        jobs: In order; teachers before those who need them.
        rows: Experiment to its rows.
        skipped: (experiment, row, reason) of what cannot be served; the row is empty for a number of labels.
        kept: How many jobs are done already.
    """

    jobs: tuple[Job, ...]
    rows: Mapping[str, tuple[Arm, ...]]
    skipped: tuple[tuple[str, str, str], ...]
    kept: int


class Hall:
    """The benches of a suite's experiments, one for each number of labels, made when they are wanted.

    Args:
        entries: The experiments.
        folder: DIR.
        shelf: Where data sets are kept.
    """

    def __init__(self, entries: Sequence[Entry], folder: Path, shelf: Shelf) -> None:
        self.entries, self.folder, self.shelf = {entry.name: entry for entry in entries}, folder, shelf
        self.made: OrderedDict[str, dict[int | None, Bench]] = OrderedDict()
        self.lacking: dict[tuple[str, int | None], str] = {}

    def benches(self, name: str) -> dict[int | None, Bench]:
        """Give the benches of an experiment by the number of labels a class, those that the data serve."""
        if name in self.made:
            self.made.move_to_end(name)
            return self.made[name]
        entry, found = self.entries[name], dict[int | None, Bench]()
        for k in entry.labels_per_class:
            spec = entry.experiment.data
            bench = Bench(entry.at(k), self.folder, data=self.shelf.get(spec.name, spec.options), watched=False)
            try:
                bench.label_rows(0)
                found[k] = bench
            except DataError as error:
                self.lacking[name, k] = str(error)
        self.made[name] = found
        while len(self.made) > HELD:
            self.made.popitem(last=False)
        return found


def plan(suite: Suite, folder: Path, shelf: Shelf) -> Plan:
    """List all jobs of a suite, and see which are done.

    Raises:
        ConfigError: If a row runs in no experiment, and names layers that one of them lacks; or if nothing but controls
            is left.
        CrossDistillError: If an experiment's data or networks do not fit.
    """
    hall = Hall(suite.entries, folder, shelf)
    jobs: list[Job] = []
    rows: dict[str, tuple[Arm, ...]] = {}
    skipped: list[tuple[str, str, str]] = []
    made: set[str] = set()
    steps: dict[str, dict[str, list[int]]] = {}
    unfit: dict[str, str] = {}
    for entry in suite.entries:
        rows[entry.name], left_out, misnamed = _arms(entry, hall)
        skipped += left_out
        for row, reason in misnamed.items():
            unfit.setdefault(row, f"{entry.name}: {reason}")
        benches = list(hall.benches(entry.name).values())
        steps[entry.name] = stage_steps(benches, rows[entry.name], suite.seeds[0])
    for row, reason in unfit.items():
        if not any(row == arm.name for arms in rows.values() for arm in arms):
            raise ConfigError(f"row '{row}' runs in no experiment; in {reason}")
    if not any(arm.role in ("method", "baseline") for arms in rows.values() for arm in arms):
        raise ConfigError(_nothing_left(suite, skipped))
    for seed in suite.seeds:  # seed by seed, so that a suite that is stopped has something of every experiment
        for entry in suite.entries:
            benches = list(hall.benches(entry.name).values())
            for job in teaching(entry, benches[0], rows[entry.name], seed, made):
                jobs.append(job)
                made |= job.makes
            for job in judging(entry, benches, rows[entry.name], steps[entry.name], seed, made):
                jobs.append(job)
                made |= job.makes
    kept = sum(1 for job in jobs if not job.teaching and kept_record(folder, job) is not None)
    return Plan(tuple(jobs), rows, tuple(skipped), kept)


def _nothing_left(suite: Suite, skipped: Sequence[tuple[str, str, str]]) -> str:
    """Say why no method can be served, a reason with all its rows, and who may have the labels that it lacks."""
    reasons: dict[str, dict[str, None]] = {}
    for _, row, reason in skipped:
        if row and row not in CONTROLS:  # which go with the main row
            reasons.setdefault(reason.removeprefix(f"{row} "), {})[row] = None
    said = "; ".join(f"{', '.join(rows)}: {reason}" for reason, rows in list(reasons.items())[:3])
    free = all(entry.track == "label-free" for entry in suite.entries)
    hint = any("label" in reason or "logits" in reason for reason in reasons) and LABELS_READ not in reasons
    return f"no method can be served: {said}" + ("; the labelled track may have it" if free and hint else "")


def teaching(entry: Entry, bench: Bench, arms: Sequence[Arm], seed: int, made: set[str]) -> Iterator[Job]:
    """Give the jobs that train the rows' teachers, but for those that another experiment has or that are ready made."""
    taught = [arm.stage.teacher for arm in arms if arm.stage is not None and not arm.random_teacher]
    main = bench.experiment.student.teacher
    for name in dict.fromkeys(stage for stage in (main, *taught) if stage):
        stage = bench.experiment.stages[name]
        if stage.module is not None:
            continue
        arm = bench.teacher_arm(stage)
        key = bench.key(arm, seed)
        if key not in made:
            yield Job(entry.name, arm.name, name, seed, frozenset([key]), "", bench.steps(arm, seed), key, True)


def judging(
    entry: Entry,
    benches: Sequence[Bench],
    arms: Sequence[Arm],
    steps: Mapping[str, Sequence[int]],
    seed: int,
    made: set[str],
) -> Iterator[Job]:
    """Give the job of each row."""
    for arm in arms:
        makes, judged = _keys(f"{entry.track} {entry.name}", benches, arm, seed)
        needs = ""
        if arm.role == "ceiling":
            needs = benches[0].ceiling_key(seed)
        elif arm.stage is not None and arm.stage.teacher and not arm.random_teacher:
            needs = benches[0].teacher_key(arm.stage, seed)
        job = Job(
            entry.name,
            arm.name,
            arm.name,
            seed,
            makes,
            needs if needs in made else "",
            sum(steps[arm.name][: len(makes)]),
            judged,
        )
        yield job


def stage_steps(benches: Sequence[Bench], arms: Sequence[Arm], seed: int) -> dict[str, list[int]]:
    """Count the optimiser steps of each row, under each number of labels."""
    return {arm.name: [bench.steps(arm, seed) for bench in benches] for arm in arms}


def varied(arm: Arm, changes: Changes) -> Arm:
    """Give an arm with other settings."""
    stage = arm.stage
    if stage is None or not changes:
        return arm
    named = dict(changes)
    stage = dataclasses.replace(
        stage,
        settings={key: named.get((key,), value) for key, value in stage.settings.items()},
        parameters={key: named.get((key,), value) for key, value in stage.parameters.items()},
        objectives=tuple(
            dataclasses.replace(o, parameters={k: named.get((o.name, k), v) for k, v in o.parameters.items()})
            for o in stage.objectives
        ),
    )
    return dataclasses.replace(arm, stage=stage)


def _keys(name: str, benches: Sequence[Bench], arm: Arm, seed: int) -> tuple[frozenset[str], str]:
    """Give the keys of an arm's stages, one for each number of labels where it reads them, and of its verdicts."""
    own = [arm.stage is not None and arm.stage.module is None]
    reads = arm.labels or (arm.stage is not None and own[0] and benches[0].reads_labels(arm.stage))
    stages = [b.key(arm, seed) for b in (benches if reads else benches[:1])] if own[0] else []
    spec, held_out = benches[0].experiment, benches[0].held_out
    judged = digest(
        code_version(JUDGING),
        [name, arm.name, stages, benches[0].train.fingerprint],
        "" if held_out is None else held_out.fingerprint,
        benches[0].ceiling_key(seed) if arm.role == "ceiling" else "",
        arm.modality,
        [vars(b.experiment.evaluate) for b in benches],
        [spec.data.source, spec.data.target, spec.data.options],
        benches[0].test.fingerprint,
        seed,
    )
    return frozenset(stages), judged


def _arms(entry: Entry, hall: Hall) -> tuple[tuple[Arm, ...], list[tuple[str, str, str]], dict[str, str]]:
    """Give the rows of an experiment, what cannot be served with the reason, and of that whose layers do not fit."""
    benches = hall.benches(entry.name)
    skipped = [
        (entry.name, "", f"{k} labels per class: {hall.lacking[entry.name, k]}")
        for k in entry.labels_per_class
        if k not in benches
    ]
    if not benches:
        raise DataError(f"experiment '{entry.name}': {next(iter(hall.lacking.values()))}")
    bench = next(iter(benches.values()))
    if bench.data.classes < 2 or not len(bench.test):
        raise DataError(
            f"experiment '{entry.name}': {bench.data.classes} classes and {len(bench.test)} labelled test rows; "
            "evaluation needs two classes and one labelled test row at least"
        )
    listed = list_arms(bench.experiment)
    reasons, misnamed = find_unmet(bench, listed), dict[str, str]()
    for arm in listed:
        free = entry.track == "label-free" and arm.role in ("method", "baseline")
        if free and arm.stage is not None and bench.reads_labels(arm.stage):
            reasons[arm.name] = LABELS_READ
        if not reasons[arm.name] and (found := find_unfit_layers(bench, arm)) is not None:
            reasons[arm.name] = found.reason
            if found.misnamed:
                misnamed[arm.name] = found.reason
    main = listed[0]
    if reasons[main.name]:  # its controls go with it
        for arm in listed:
            if arm.random_teacher or arm.shuffled:
                reasons[arm.name] = reasons[arm.name] or f"a control of '{main.name}', which cannot be served"
    skipped += [(entry.name, arm.name, reasons[arm.name]) for arm in listed if reasons[arm.name]]
    return tuple(arm for arm in listed if not reasons[arm.name]), skipped, misnamed


def kept_record(folder: Path, job: Job, *, tell: bool = False) -> Record | None:
    """Give the record of a job that is done; None where there is none of this key, or it is damaged.

    Args:
        folder: DIR.
        job: Which.
        tell: Whether the log is told of what is damaged, the record or the predictions.
    """
    path = folder / "runs" / f"{job.record}.json"
    if not path.is_file():
        return None
    try:
        written: dict[str, Any] = read_json(path)
        record = unchecked(written)
        if (record["key"], record["status"]) != (job.key, "done"):  # of another setting that was here
            return None
        if job.trial is None:
            path = folder / "predictions" / f"{job.record}.npz"
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}  # all, for each has a checksum of its own
            if str(arrays["key"]) != job.key:
                return None
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for broken archives
        if tell:
            _LOG.warning("%s is damaged (%s), so its run is done again", path, told(error))
        return None
    return record
