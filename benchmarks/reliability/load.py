"""Much of everything: many runs, many rows, many classes, labels that are not there.

    python benchmarks/reliability/load.py bench     # 1,000 tiny runs, 2 workers: memory, open files, CPU seconds a run
    python benchmarks/reliability/load.py rows      # a manifest of a million rows: until the first batch, twice
    python benchmarks/reliability/load.py classes   # 10,000 classes through `run` and its page
    python benchmarks/reliability/load.py absent    # a third of the labels absent, by archive and by manifest

Each prints what it measured and exits with 1 where that is more than it allows itself. Time is judged in CPU seconds,
so that it says the same on a machine that others share. `bench` reads memory and open files from /proc (Linux).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import crossdistill

SUITE = """\
title: load
methods: [similarity, l2]
budget: {{steps: 2, teacher_steps: 2, batch_size: 32}}
base:
  evaluate: {{ways: [linear]}}
  networks: {{rich: {{hidden: [8], dim: 4}}, poor: {{hidden: [8], dim: 4}}}}
experiments:
  toy: {{data: {{name: pairs.npz, source: rich, target: poor}}}}
labels_per_class: [3]
seeds: {seeds}
"""
ROWS = 9
"""Rows of the suite, a run each under a seed: two methods, six controls, the teacher."""

EXPERIMENT = """\
data: {{name: {name}, source: rich, target: poor}}
networks: {{rich: {{encoder: mlp, hidden: [16], dim: 8}}, poor: {{encoder: mlp, hidden: [16], dim: 8}}}}
stages:
  teacher: {{method: simclr, modality: rich, epochs: 1, batch_size: {batch}}}
  student: {{method: distillation, teacher: teacher, objectives: {{similarity: 1.0}}, epochs: 1, batch_size: {batch}}}
evaluate: {{labels_per_class: 1, ways: [{ways}]}}
seeds: 1
"""
MEGABYTE = 1e6


class Verdict:
    """Prints measurements, and counts those beyond what is allowed."""

    def __init__(self) -> None:
        self.failed = 0

    def say(self, what: str, value: float, most: float, unit: str) -> None:
        """Print a number beside the most that is allowed."""
        bad = not value <= most
        self.failed += bad
        print(f"{'TOO MUCH' if bad else 'ok':8} {what}: {value:.4g} {unit} (at most {most:.4g})", flush=True)


# Processes -----------------------------------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """Give the environment of a command: this crossdistill, one thread, a cache of its own."""
    home = str(Path(crossdistill.__file__).parents[1])
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CROSSDISTILL_CACHE": str(folder / "cache")}


def timed(folder: Path, *words: str) -> tuple[float, float, float, str]:
    """Run Python with some words; give CPU seconds, seconds and the largest memory in MB, and what it printed."""
    log, began = folder / "said.txt", time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment(folder), stdout=out, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
    said = log.read_text(encoding="utf-8")
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{said[-2000:]}")
    return used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss / 1024, said


class Look:
    """What /proc says of a process and its children at one moment, by process: MB, open files, CPU seconds."""

    def __init__(self, root: int) -> None:
        self.when = time.time()
        parents: dict[int, int] = {}
        cpu: dict[int, float] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(") ")[2].split()
            except OSError:  # it has just ended
                continue
            number = int(stat.parent.name)
            parents[number] = int(fields[1])
            cpu[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        self.memory: dict[int, float] = {}
        self.files: dict[int, int] = {}
        self.cpu = sum(cpu[number] for number in parents if number == root or parents[number] == root)
        for number in (n for n in parents if n == root or parents[n] == root):
            try:
                pages = int(Path(f"/proc/{number}/statm").read_text().split()[1])
                self.files[number] = len(list(Path(f"/proc/{number}/fd").iterdir()))
                self.memory[number] = pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE
            except OSError:
                continue


# Many runs -----------------------------------------------------------------------------------------------------------


def world(folder: Path, rows: int = 300, classes: int = 4, absent: float = 0.0) -> dict[str, np.ndarray]:
    """Write pairs.npz, two views of one latent; of a share of rows the label is absent."""
    rng = np.random.default_rng(0)
    label = np.arange(rows) % classes
    latent = rng.normal(size=(classes, 8))[label] + 0.3 * rng.normal(size=(rows, 8))
    rich = (latent @ rng.normal(size=(8, 12))).astype("float32")
    poor = (latent @ rng.normal(size=(8, 8)) + rng.normal(size=(rows, 8))).astype("float32")
    split = np.where(np.arange(rows) // classes % 4 == 3, 2, 0)
    label = np.where(rng.random(rows) < absent, -1, label)
    names = np.array([f"class {c}" for c in range(classes)])
    arrays = {"rich": rich, "poor": poor, "label": label, "split": split, "class_names": names}
    np.savez(folder / "pairs.npz", **arrays)
    return arrays


def many_runs(folder: Path, given: argparse.Namespace, verdict: Verdict) -> None:
    """Run a suite of tiny runs and watch its processes."""
    world(folder)
    seeds = -(-given.runs // ROWS)
    (folder / "suite.yaml").write_text(SUITE.format(seeds=seeds), encoding="utf-8")
    words = ["-m", "crossdistill", "bench", "suite.yaml", "--out", "out", "--jobs", str(given.workers)]
    looks: list[Look] = []
    began = time.time()
    with (folder / "said.txt").open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment(folder), stdout=said, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            looks.append(Look(process.pid))
            time.sleep(1.0)
    if process.returncode:
        raise SystemExit((folder / "said.txt").read_text(encoding="utf-8")[-2000:])
    ended = np.sort([path.stat().st_mtime for path in folder.glob("out/runs/*/*.json")])
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    failed = sum(run["status"] != "done" for run in results["runs"])
    print(f"{len(ended)} runs, {time.time() - began:.0f} s, the first done after {ended[0] - began:.0f} s", flush=True)
    verdict.say("failed runs", failed + (len(ended) != ROWS * seeds), 0, "runs")
    quarter = len(ended) // 4
    warm = quarter // 4  # until every worker has had each kind of run, libraries are still loaded

    def between(first: int, last: int) -> list[Look]:
        return [look for look in looks if ended[first] <= look.when <= ended[last]]

    early, late = between(warm, quarter), between(len(ended) - quarter, len(ended) - 1)
    spent = [np.interp([ended[a], ended[b]], [o.when for o in looks], [o.cpu for o in looks]) for a, b in
             ((warm, quarter), (len(ended) - quarter, len(ended) - 1))]  # fmt: skip
    a_run = [float(cpu[1] - cpu[0]) / runs for cpu, runs in zip(spent, (quarter - warm, quarter - 1), strict=True)]
    wall = [(ended[quarter] - ended[warm]) / (quarter - warm), (ended[-1] - ended[-quarter]) / (quarter - 1)]
    print(f"a run: {a_run[0]:.3f} CPU s in the first quarter, {a_run[1]:.3f} in the last; {wall[0]:.3f} s and "
          f"{wall[1]:.3f} s", flush=True)  # fmt: skip
    verdict.say("CPU of a run, last quarter over first", a_run[1] / a_run[0], 1.2, "times")
    for number in sorted(set(early[0].memory) & set(late[-1].memory)):
        name = "parent" if number == process.pid else f"process {number}"
        memory = [float(np.median([o.memory[number] for o in looks if number in o.memory])) for looks in (early, late)]
        files = [max(o.files[number] for o in looks if number in o.files) for looks in (early, late)]
        print(
            f"{name}: {memory[0]:.0f} MB, then {memory[1]:.0f} MB; {files[0]} open files, then {files[1]}", flush=True
        )
        verdict.say(f"{name}, memory gained over {len(ended) * 3 // 4} runs", memory[1] - memory[0], 40, "MB")
        verdict.say(f"{name}, open files gained", files[1] - files[0], 2, "files")


# Many rows -----------------------------------------------------------------------------------------------------------

START = """\
import sys
from pathlib import Path
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.run import plan
from crossdistill.experiments.schema import parse_experiment
bench = Bench(parse_experiment(Path("rows.yaml").read_text(), name="rows.yaml"), Path("out"))
planned = plan(bench)
data = bench.stage_data(planned.arms[0], 0)
batch = next(iter(data.loader({"rich": 1, "poor": 1}, batch_size=256, seed=0).epoch(0)))
print(len(data), "training rows,", tuple(batch["rich"].shape), "the first batch")
"""
"""What `run` does until the first batch."""


def many_rows(folder: Path, given: argparse.Namespace, verdict: Verdict) -> None:
    """Start an experiment on a manifest of many rows that share some thousand files."""
    rng, files = np.random.default_rng(0), given.files
    for i in range(files):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
        np.save(folder / f"{i}.npy", rng.normal(size=8).astype("float32"))
    splits = ["train"] * 8 + ["validation", "test"]
    with (folder / "rows.csv").open("w", encoding="utf-8") as out:
        out.write("rich,poor,label,split\n")
        for row in range(given.rows):
            one = row % files
            other = (one + 10 * (row // files)) % (files // 10 * 10)  # of the same split
            label = "" if row % 3 == 0 and one % 10 < 8 else f"c{one % 7}"
            out.write(f"{one}.png,{other}.npy,{label},{splits[one % 10]}\n")
    (folder / "rows.yaml").write_text(EXPERIMENT.format(name="rows.csv", batch=256, ways="linear"), encoding="utf-8")
    imports = timed(folder, "-c", "import crossdistill.experiments.run, crossdistill.training")
    print(f"imports alone: {imports[0]:.1f} CPU s, {imports[1]:.1f} s, {imports[2]:.0f} MB", flush=True)
    for word in ("first", "second"):
        cpu, seconds, memory, said = timed(folder, "-c", START)
        print(f"{word} start: {cpu:.1f} CPU s, {seconds:.1f} s, {memory:.0f} MB: {said.strip()}", flush=True)
        verdict.say(f"{word} start on {given.rows:,} rows of {files:,} files a modality", cpu, 60, "CPU s")
        verdict.say("memory beyond that of imports", memory - imports[2], 1000, "MB")


# Many classes, and labels that are absent ----------------------------------------------------------------------------


def run(folder: Path, name: str, ways: str, verdict: Verdict, *, most: float) -> dict[str, Any]:
    """Run the experiment on a data file, and look at its time, memory, and the size of its page and results."""
    (folder / "run.yaml").write_text(EXPERIMENT.format(name=name, batch=128, ways=ways), encoding="utf-8")
    out = folder / f"out-{Path(name).suffix[1:]}"
    cpu, seconds, memory, _ = timed(folder, "-m", "crossdistill", "run", "run.yaml", "--out", out.name, "--jobs", "1")
    print(f"run and page on {name}: {cpu:.0f} CPU s, {seconds:.0f} s", flush=True)
    verdict.say("largest memory", memory, most, "MB")
    for file, bound in (("report.html", 2.0), ("results.json", 0.5), ("experiment.yaml", 0.1), ("evidence.npz", 2.0)):
        verdict.say(file, (out / file).stat().st_size / MEGABYTE, bound, "MB")
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def many_classes(folder: Path, given: argparse.Namespace, verdict: Verdict) -> None:
    """Run on very many classes, four rows each; every fifth has no test row."""
    arrays = world(folder, 4 * given.classes, given.classes)
    split = np.where(arrays["label"] % 5 == 0, 0, arrays["split"])
    np.savez(folder / "pairs.npz", **{**arrays, "split": split})
    results = run(folder, "pairs.npz", given.ways, verdict, most=6000)
    verdict.say("warnings", len(results["data"]["warnings"]), 20, "lines")
    accuracy = {row["method"]: row["value"] for row in results["rows"] if row["metric"] == "accuracy"}
    print(f"accuracy of the student: {accuracy['similarity']:.4f}, chance {1 / given.classes:.4f}", flush=True)


def absent(folder: Path, given: argparse.Namespace, verdict: Verdict) -> None:
    """Run on rows of which a third has no label, in the test part too: as an archive, and as a manifest of files."""
    arrays = world(folder, 4 * given.classes, given.classes, absent=0.33)
    first = np.isin(np.arange(len(arrays["label"])), np.arange(given.classes))
    arrays["label"] = np.where(first, np.arange(len(first)) % given.classes, arrays["label"])  # one of each is known
    np.savez(folder / "pairs.npz", **arrays)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(["rich", "poor", "label", "split"])
        for i, (label, split) in enumerate(zip(arrays["label"].tolist(), arrays["split"].tolist(), strict=True)):
            for name in ("rich", "poor"):
                np.save(folder / f"{name}{i}.npy", arrays[name][i])
            word = "" if label < 0 else str(label)
            table.writerow([f"rich{i}.npy", f"poor{i}.npy", word, ("train", "validation", "test")[split]])
    scores: list[Mapping[str, float]] = []
    for name in ("pairs.npz", "pairs.csv"):
        results = run(folder, name, "linear, knn", verdict, most=1500)
        rows = [row for row in results["rows"] if row["metric"] == "accuracy"]
        scores.append({f"{row['method']} {row['evaluation']}": row["value"] for row in rows})
        warnings = results["data"]["warnings"]
        print(f"{len(warnings)} warnings, the last: {warnings[-1]}", flush=True)
    unlike = sum(scores[0][key] != scores[1][key] for key in scores[0])
    verdict.say("scores that differ between archive and manifest", unlike, 0, f"of {len(scores[0])}")


PARTS: dict[str, Callable[[Path, argparse.Namespace, Verdict], None]] = {
    "bench": many_runs,
    "rows": many_rows,
    "classes": many_classes,
    "absent": absent,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--runs", type=int, default=1000, help="bench: at least so many")
    parser.add_argument("--workers", type=int, default=2, help="bench: processes")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows: of the manifest")
    parser.add_argument("--files", type=int, default=3000, help="rows: of each modality, a multiple of 10")
    parser.add_argument("--classes", type=int, default=0, help="classes, absent: default 10,000 and 200")
    parser.add_argument("--ways", default="knn", help="classes: of evaluation; a linear probe of so many takes minutes")
    given = parser.parse_args()
    given.classes = given.classes or {"classes": 10_000}.get(given.part, 200)
    verdict = Verdict()
    with tempfile.TemporaryDirectory() as place:
        PARTS[given.part](Path(place), given, verdict)
    return int(verdict.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
