"""Kill runs at random moments, start them again, compare: `python benchmarks/reliability/kill.py --times 30`.

A small experiment, a suite of two methods, and a diagnosis of arrays are each run once undisturbed. Then each is run
--times times into a new folder, is sent SIGKILL, SIGTERM or SIGINT at a random moment of that length, three times at
most, and is started again by the same command until it ends by itself. After every kill all that can be seen is opened:
no file may be half there, and a stage that was finished must stay the same file. At the end every number and the
student's weights must be equal to the bit to those of the undisturbed run. Moments follow from --seed, as far as a
machine repeats itself. Prints a line for each thing that went wrong, and the counts; exits with 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors import safe_open

import crossdistill
from crossdistill.experiments.repeat import compare_runs

MOST = 3
"""Kills of one trial; then it may end."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EXPERIMENT = """\
data: {name: toy.npz, source: rich, target: poor}
networks: {rich: {hidden: [16], dim: 8}, poor: {hidden: [16], dim: 8}}
stages:
  teacher: {method: simclr, modality: rich, epochs: 20, batch_size: 32, checkpoint_every: 7}
  student:
    {method: distillation, teacher: teacher, objectives: {similarity: 1.0}, epochs: 20, batch_size: 32,
     checkpoint_every: 7}
compare: [l2]
evaluate: {labels_per_class: 3, ways: [linear, knn]}
seeds: 1
"""
SUITE = """\
title: small
methods: [similarity, l2]
budget: {steps: 60, teacher_steps: 60, batch_size: 32}
base: {evaluate: {ways: [linear]}}
experiments:
  toy: {data: {name: toy.npz, source: rich, target: poor}}
labels_per_class: [3]
seeds: 1
"""


def world(folder: Path) -> None:
    """Write two views of one latent, four classes, and what the three commands read."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 300)
    latent = rng.normal(size=(4, 5))[label] + 0.5 * rng.normal(size=(300, 5))
    rich = (latent @ rng.normal(size=(5, 12))).astype("float32")
    poor = (latent @ rng.normal(size=(5, 8)) + rng.normal(size=(300, 8))).astype("float32")
    np.savez(folder / "toy.npz", rich=rich, poor=poor, label=label, split=np.repeat([0, 1, 2], [160, 40, 100]))
    for name, array in (("rich", rich), ("poor", poor), ("label", label)):
        np.save(folder / f"{name}.npy", array)
    (folder / "small.yaml").write_text(EXPERIMENT, encoding="utf-8")
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")


def words_of(command: str, out: str) -> list[str]:
    """Give a command's words."""
    if command == "diagnose":
        return ["diagnose", "--source", "rich.npy", "--target", "poor.npy", "--labels", "label.npy", "--out", out]
    return [command, "small.yaml" if command == "run" else "suite.yaml", "--out", out, "--jobs", "1"]


def start(folder: Path, command: str, out: str) -> subprocess.Popen[str]:
    """Start a command as a user would, in a process group of its own."""
    home = str(Path(crossdistill.__file__).parents[1])
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    words = [sys.executable, "-m", "crossdistill", *words_of(command, out)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=folder, env=environment, start_new_session=True, **quiet)


def half_there(out: Path) -> list[str]:
    """Open everything that can be seen; temporary names and folders begin with a dot."""
    found: list[str] = []
    for path in sorted(out.rglob("*")) if out.is_dir() else ():
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    file.keys()
            elif path.suffix == ".npz":
                with np.load(path) as archive:
                    for name in archive.files:
                        archive[name]
            elif path.suffix == ".npy":
                np.load(path)
        except Exception as error:  # whatever it is, the file is not whole
            found.append(f"{path.relative_to(out)}: {error}")
    return found


def finished(out: Path) -> dict[str, int]:
    """Give the finished stages, and when each was written."""
    return {str(p.parent.name): p.stat().st_mtime_ns for p in out.rglob("stage.json")} if out.is_dir() else {}


def difference(command: str, one: Path, other: Path) -> str:
    """Say how two finished folders differ; nothing if they are equal to the bit."""
    if command != "diagnose":
        found = compare_runs(one, other)
        return "" if found.same else f"{len(found.differing)} numbers differ; student equal: {found.student}"
    first, second = (json.loads((folder / "diagnosis.json").read_text(encoding="utf-8")) for folder in (one, other))
    for said in (first, second):
        said.pop("seconds", None)
    return "" if first == second else "diagnosis.json differs"


def trial(folder: Path, command: str, number: int, length: float, rng: random.Random) -> tuple[list[str], Counter[str]]:
    """Run once with kills.

    Returns:
        What went wrong, and how often each signal was sent, to a process that was at work.
    """
    name, wrong, sent = f"{command}-{number}", list[str](), Counter[str]()
    out = folder / name
    for kill in range(MOST + 1):
        before = finished(out)
        process = start(folder, command, name)
        if kill < MOST:
            try:
                said, _ = process.communicate(timeout=rng.uniform(0.0, length))
            except subprocess.TimeoutExpired:
                chosen = rng.choice(SIGNALS)
                os.killpg(process.pid, chosen)
                said, _ = process.communicate(timeout=120)
                sent[signal.Signals(chosen).name] += process.returncode != 0
        else:
            said, _ = process.communicate(timeout=600)
        wrong += [f"{name}: half there after a kill: {path}" for path in half_there(out)]
        after = finished(out)
        wrong += [f"{name}: {stage} was made twice" for stage, when in before.items() if after.get(stage) != when]
        if "Traceback" in said:
            wrong.append(f"{name}: a traceback: {said[-300:]}")
        if process.returncode == 0:
            break
    else:
        wrong.append(f"{name}: did not end by itself: {said[-300:]}")
        return wrong, sent
    if unlike := difference(command, folder / f"{command}-undisturbed", out):
        wrong.append(f"{name}: {unlike}")
    shutil.rmtree(out)
    return wrong, sent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="trials of each command")
    parser.add_argument(
        "--commands", nargs="+", choices=("run", "bench", "diagnose"), default=["run", "bench", "diagnose"]
    )
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    given = parser.parse_args()
    rng, failed = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        world(folder)
        os.chdir(folder)  # experiment files name their data relative to it
        for command in given.commands:
            began = time.monotonic()
            process = start(folder, command, f"{command}-undisturbed")
            said, _ = process.communicate()
            if process.returncode:
                print(f"{command} fails undisturbed:\n{said}")
                return 1
            length, sent, wrong = time.monotonic() - began, Counter[str](), list[str]()
            for number in range(given.times):
                more, signals = trial(folder, command, number, length, rng)
                wrong, sent = wrong + more, sent + signals
                for line in more:
                    print(line, flush=True)
            failed += len(wrong)
            kills = ", ".join(f"{count} {name}" for name, count in sorted(sent.items()))
            print(
                f"{command}: {given.times} trials of {length:.0f} s, {kills or 'no kill'}; {len(wrong)} wrong",
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
