"""One run of a suite: train what it needs, or find it, judge it with few and with many labels, write its record."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from crossdistill.errors import CrossDistillError, Interrupted, told
from crossdistill.evaluation import accuracy, macro_f1
from crossdistill.experiments.arms import list_arms
from crossdistill.experiments.judge import Judge
from crossdistill.experiments.listening import LISTEN
from crossdistill.experiments.suite_plan import Hall, Job, Record, varied
from crossdistill.files import whole_file, write_checked


def perform(hall: Hall, job: Job, *, listen: LISTEN | None = None, stop: Callable[[], bool] | None = None) -> Record:
    """Do one job: train what it needs, or find it, judge it, and write its record.

    Whatever goes wrong becomes a record with the reason; only a wish to stop is raised.
    """
    started, cpu = time.perf_counter(), time.process_time()
    facts: Record = {"experiment": job.entry, "method": job.row, "seed": job.seed}
    try:
        rows, training, value = _judged(hall, job, listen, stop)
    except Interrupted:
        raise
    except Exception as error:
        if os.environ.get("CROSSDISTILL_TRACEBACK"):
            traceback.print_exception(error)
        reason = str(error) if isinstance(error, CrossDistillError) else told(error)
        return failed(job, reason)
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    facts |= {"key": job.key, "status": "done", "reason": ""}
    facts |= {name: round(value, 3) for name, value in spent.items()} | {"training_seconds": round(training, 3)}
    record = {**facts, "steps": job.steps, "rows": rows}
    if job.trial is not None:
        record |= {"trial": job.trial, "changes": {".".join(path): v for path, v in job.changes}, "value": value}
    if not job.teaching:
        write_checked(hall.folder / "runs" / f"{job.record}.json", record)
    return record


def _judged(
    hall: Hall, job: Job, listen: LISTEN | None, stop: Callable[[], bool] | None
) -> tuple[list[dict[str, Any]], float, float]:
    """Train and judge under every number of labels.

    Returns:
        The rows, the seconds that training took in all, and a trial's value.
    """
    benches = hall.benches(job.entry)
    first = next(iter(benches.values()))
    if job.teaching:
        arm = first.teacher_arm(first.experiment.stages[job.arm])
        first.product(arm, job.seed, listen=listen, stop=stop)
        return [], 0.0, 0.0
    arm = varied(next(arm for arm in list_arms(first.experiment) if arm.name == job.arm), job.changes)
    if job.trial is not None:
        network = first.product(arm, job.seed, listen=listen, stop=stop)
        return [], first.seconds(arm, job.seed), Judge(first).validation(arm, job.seed, network)
    rows: list[dict[str, Any]] = []
    test = first.test.having(arm.modality)
    arrays: dict[str, Any] = {"key": np.array(job.key), "label": test.label, "rows": test.rows}
    if test.group is not None:
        arrays["group"] = test.group
    network, made, seen = None, "", dict[str, np.ndarray]()
    training = 0.0
    for k, bench in benches.items():
        if arm.role == "ceiling":
            network = network or bench.ceiling(job.seed)
        elif arm.stage is not None:
            key = bench.key(arm, job.seed)
            if key != made:
                network, made, seen = bench.product(arm, job.seed, listen=listen, stop=stop), key, {}
                training += bench.seconds(arm, job.seed)
        for way, predicted in Judge(bench).predictions(arm, job.seed, network, seen):
            arrays[f"{way}@{'all' if k is None else k}"] = predicted
            label = test.label
            assert label is not None
            for metric, value in (("accuracy", accuracy(predicted, label)), ("macro_f1", macro_f1(predicted, label))):
                rows.append(
                    {
                        "experiment": job.entry,
                        "data": bench.data.name,
                        "source": bench.experiment.data.source,
                        "target": bench.experiment.data.target,
                        "track": hall.entries[job.entry].track,
                        "method": job.row,
                        "seed": job.seed,
                        "labels_per_class": k,
                        "evaluation": way,
                        "metric": metric,
                        "value": float(value),
                    }
                )
    with whole_file(hall.folder / "predictions" / f"{job.record}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return rows, training, 0.0


def failed(job: Job, reason: str) -> Record:
    """Make the record of a job that did not come to its end."""
    facts = {"experiment": job.entry, "method": job.row, "seed": job.seed, "key": job.key}
    return {**facts, "status": "failed", "reason": reason, "rows": []}
