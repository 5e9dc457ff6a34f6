"""Whether results depend on how many processes made them: run `python benchmarks/reliability/workers.py`.

An experiment on pictures and time series and a suite on the same data are done with one and with two processes, with
and without processes that prepare batches, and, for comparison, with two threads a process, which is what may change
last bits. Every trained weight (by the checksums in `stage.json`) and every number is compared with those of the first.
Prints a line for each way; exits with 1 if one with as many threads differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import crossdistill
from crossdistill.experiments import read_results

EXPERIMENT = """\
data: {name: world.npz, source: picture, target: pen}
stages:
  teacher: {method: simclr, modality: picture, epochs: 2, batch_size: 64, augment: {picture: [{noise: {std: 0.1}}]}}
  student:
    {method: distillation, teacher: teacher, objectives: {contrastive: 1.0, similarity: 1.0}, epochs: 2, batch_size: 64,
     augment: {pen: [{noise: {std: 0.1}}]}}
compare: [l2]
evaluate: {labels_per_class: 5, ways: [linear, knn]}
seeds: 1
"""
SUITE = """\
title: both
methods: [similarity, l2]
budget: {steps: 12, teacher_steps: 12, batch_size: 64}
base: {evaluate: {ways: [linear]}}
experiments:
  world: {data: {name: world.npz, source: picture, target: pen}}
labels_per_class: [5]
seeds: 1
"""
PREPARED = ("stages.teacher.workers=2", "stages.student.workers=2")
WAYS = {
    "run, 1 process": ["run", "mine.yaml", "--jobs", "1"],
    "run, 2 processes": ["run", "mine.yaml", "--jobs", "2"],
    "run, 1 process, 2 that prepare batches": ["run", "mine.yaml", *PREPARED, "--jobs", "1"],
    "run, 1 process of 2 threads": ["run", "mine.yaml", "--jobs", "1", "--threads", "2"],
    "bench, 1 process": ["bench", "suite.yaml", "--jobs", "1"],
    "bench, 2 processes": ["bench", "suite.yaml", "--jobs", "2"],
    "bench, 1 process of 2 threads": ["bench", "suite.yaml", "--jobs", "1", "--threads", "2"],
}


def world(folder: Path) -> None:
    """Write pictures and time series of one latent, and the two files."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 500)
    latent = rng.normal(size=(4, 6))[label] + 0.5 * rng.normal(size=(500, 6))
    picture = (latent @ rng.normal(size=(6, 784))).reshape(-1, 1, 28, 28).astype("float32")
    pen = (latent @ rng.normal(size=(6, 120)) + rng.normal(size=(500, 120))).reshape(-1, 3, 40).astype("float32")
    split = np.repeat([0, 1, 2], [320, 60, 120])
    np.savez(folder / "world.npz", picture=picture, pen=pen, label=label, split=split)
    (folder / "mine.yaml").write_text(EXPERIMENT, encoding="utf-8")
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")


def made(folder: Path) -> dict[str, object]:
    """Give every number of a finished folder, and the checksum of every stage's weights, by what it is of."""
    rows = read_results(folder)["rows"]
    found: dict[str, object] = {
        json.dumps({k: v for k, v in row.items() if k != "value"}): row["value"] for row in rows
    }
    for path in sorted(folder.glob("stages/*/stage.json")):
        found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    return found


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    path = os.pathsep.join([str(Path(crossdistill.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    first, failed = dict[str, dict[str, object]](), False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world(folder)
        for number, (way, words) in enumerate(WAYS.items()):
            out, began = folder / str(number), time.monotonic()
            command = [sys.executable, "-m", "crossdistill", *words, "--out", str(out)]
            subprocess.run(
                command, cwd=folder, env={**environment, "PYTHONPATH": path}, check=True, capture_output=True
            )
            found = made(out)
            expected = first.setdefault(words[0], found)
            weights = [key for key in expected if not key.startswith("{")]
            unlike = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
            of_weights = sum(not key.startswith("{") for key in unlike)
            failed |= bool(unlike) and "threads" not in way
            print(
                f"{way}: {of_weights} of {len(weights)} stages and {len(unlike) - of_weights} of "
                f"{len(expected) - len(weights)} numbers differ; {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
