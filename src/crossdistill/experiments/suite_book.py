"""What the runs of a suite gave, in files that are whole at every moment."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdistill.experiments.results import environment
from crossdistill.experiments.rows import judged_rows
from crossdistill.experiments.specs import DataSpec
from crossdistill.experiments.suite_plan import Job, Plan, Record, kept_record
from crossdistill.experiments.suite_tuning import TUNED
from crossdistill.experiments.suites import Entry, Shelf, Suite, fitting_pairs
from crossdistill.files import write_checked, write_text
from crossdistill.training.product import finished

WRITE_EVERY = 5.0
"""Seconds between two writings of results.json while a suite runs, at least."""

SHARE = 50
"""How many times as long as a writing took the next one waits: it is written whole, and thousands of runs are long."""


class Book:
    """Keeps what the runs of a suite gave, and writes it.

    Args:
        suite: What runs.
        folder: DIR.
        shelf: The data sets.
        environment: Facts of this start.
    """

    def __init__(self, suite: Suite, folder: Path, shelf: Shelf, environment: Mapping[str, Any]) -> None:
        self.suite, self.folder, self.shelf = suite, folder, shelf
        self.planned = Plan((), {}, (), 0)
        self.environment: dict[str, Any] = dict(environment)
        self.records: dict[Job, Record] = {}
        self.next = 0.0
        self.described: dict[str, dict[str, Any]] = {}

    def open(self, planned: Plan) -> list[Job]:
        """Take a plan, or a longer one, and read what is done already.

        Returns:
            The jobs that are left: runs, and the teachers that they need.
        """
        self.planned = planned
        for job in planned.jobs:
            record = None if job.teaching or job in self.records else kept_record(self.folder, job, tell=True)
            if record is not None:
                self.records[job] = record
        wanted = {job.needs for job in self.planned.jobs if job not in self.records and not job.teaching}
        return [
            job for job in self.planned.jobs if (self._taught(job, wanted) if job.teaching else job not in self.records)
        ]

    def _taught(self, job: Job, wanted: set[str]) -> bool:
        """Say whether a teacher is wanted, and not there yet."""
        return any(key in wanted and not finished(self.folder / "stages" / key, key) for key in job.makes)

    def add(self, job: Job, record: Record) -> None:
        """Keep a run's record; results.json follows within seconds, or a minute where there are many thousands."""
        if job.teaching and record["status"] == "done":
            return
        self.records[job] = record
        if time.monotonic() > self.next:
            self.write()

    def write(self) -> None:
        """Write results.json and runs.csv, whole."""
        began = time.monotonic()
        results = self.results()
        write_checked(self.folder / "results.json", results)
        write_text(
            self.folder / "runs.csv", _csv({job: record for job, record in self.records.items() if job.trial is None})
        )
        now = time.monotonic()
        self.next = now + max(WRITE_EVERY, SHARE * (now - began))

    def results(self) -> dict[str, Any]:
        """Give all that is known now, in the order of the suite."""
        suite, planned = self.suite, self.planned
        methods: dict[str, Any] = {}
        for arms in planned.rows.values():
            for arm in arms:
                tuned = arm.name.endswith(TUNED)
                methods.setdefault(arm.name, {"role": arm.role, "title": arm.title, "tuned": tuned})
        records = [self.records[job] for job in planned.jobs if job in self.records and job.trial is None]
        trials = [self.records[job] for job in planned.jobs if job in self.records and job.trial is not None]
        runs = [{key: value for key, value in r.items() if key not in ("rows", "key")} for r in records]
        missing = sum(1 for job in planned.jobs if job.counts and job not in self.records)
        return {
            "kind": "bench",
            "title": suite.title,
            "tracks": sorted({entry.track for entry in suite.entries}),
            "methods": methods,
            "experiments": {entry.name: self._described(entry) for entry in suite.entries},
            "labels_per_class": list(dict.fromkeys(k for e in suite.entries for k in e.labels_per_class)),
            "evaluations": list(dict.fromkeys(way for e in suite.entries for way in e.experiment.evaluate.ways)),
            "seeds": list(suite.seeds),
            "runs": runs,
            "rows": [row for record in records for row in record["rows"]],
            "tuning": [{k: v for k, v in record.items() if k not in ("rows", "key")} for record in trials],
            "skipped": [{"experiment": e, "method": m, "reason": reason} for e, m, reason in planned.skipped],
            "complete": not missing,
            "missing": missing,
            "environment": {**environment(*(entry.experiment for entry in suite.entries)), **self.environment},
        }

    def _described(self, entry: Entry) -> dict[str, Any]:
        if entry.name not in self.described:
            self.described[entry.name] = self._describe(entry)
        return self.described[entry.name]

    def _describe(self, entry: Entry) -> dict[str, Any]:
        spec: DataSpec = entry.experiment.data
        data = self.shelf.get(spec.name, spec.options)
        return {
            "track": entry.track,
            "data": data.name,
            "source": spec.source,
            "target": spec.target,
            "pairing": data.pairing,
            "pairs": fitting_pairs(data, spec.source, spec.target, spec.pairs),
            "test": len(judged_rows(data, entry.experiment)),
            "test_rows": len(data.split("test")),
            "classes": data.classes,
            "class_names": list(data.class_names),
            "family": entry.family,
            "limit": spec.pairs,
            "fingerprint": data.fingerprint,
        }


def _csv(records: Mapping[Job, Record]) -> str:
    """Write one line a run: what it was, how it ended, how long it took, and its accuracies."""
    columns = list(
        dict.fromkeys(
            f"{row['evaluation']}@{_count(row['labels_per_class'])}"
            for record in records.values()
            for row in record["rows"]
            if row["metric"] == "accuracy"
        )
    )
    facts = ["experiment", "method", "seed", "status", "reason", "seconds", "cpu_seconds", "training_seconds", "steps"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*facts, *columns], lineterminator="\n")
    writer.writeheader()
    for record in records.values():
        line = {key: _safe(record.get(key, "")) for key in facts}
        for row in record["rows"]:
            if row["metric"] == "accuracy":
                line[f"{row['evaluation']}@{_count(row['labels_per_class'])}"] = row["value"]
        writer.writerow(line)
    return text.getvalue()


def _count(k: int | None) -> str:
    return "all" if k is None else str(k)


def _safe(value: Any) -> Any:
    """Keep a spreadsheet from taking a word for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
