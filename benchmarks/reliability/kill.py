"""Kill commands at random moments, start them again, compare: `python benchmarks/reliability/kill.py --times 30`.

A small experiment, a suite of two methods, a diagnosis of arrays, and the storing of a teacher's outputs are each done
once undisturbed. Then each is done --times times in a new folder, is sent SIGKILL, SIGTERM or SIGINT at random moments,
once at least and --most times at most, and is started again by the same command until it ends by itself. A part of the
starts, --fresh, are a new Python, as a user's; the others are copies of this process, which has imported everything, so
that their moments lie in the work. With --jobs 2 all are new, and half of the signals of `run` and `bench` go to one of
their processes, drawn by chance, the others to all. A moment is a number of CPU seconds, whatever else the machine
does.

After every kill all that can be seen is opened: no file may be half there, and what was finished (a stage, a run of a
suite, rows that the log of a store names) must not be made again. At the end every number, all weights and the
stores' files must be equal to the bit to those of the undisturbed command, and nothing that was begun may be left.
Moments follow from --seed, as far as a machine repeats itself. Prints a line for each thing that went wrong, and the
counts; exits with 1 if there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open

import crossdistill
import crossdistill.diagnostics
import crossdistill.experiments.suite_run
import crossdistill.report
import crossdistill.training
from crossdistill.cli import main as main_of_ours
from crossdistill.experiments.repeat import compare_runs

for late in ("lightning_fabric", "matplotlib.figure", "matplotlib.backends.backend_svg", "sklearn.linear_model"):
    importlib.import_module(late)  # what commands import when they need it

HOME = str(Path(crossdistill.__file__).parents[1])
COMMANDS = ("run", "bench", "diagnose", "store")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LOST = 40
"""Blocks of the store that a kill may have cost: they take 0.03 s at least, and a second's work may be lost."""
TRACKER = re.compile(r"Traceback[^\n]*\n  File [^\n]*resource_tracker\.py[^\n]*\n(  +[^\n]*\n)*KeyError[^\n]*")
"""What Python's own keeper of semaphores says where the one before it was what the signal went to."""

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
STORE = """\
import sys, time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from crossdistill.data import Modality, PairedDataset
from crossdistill.training import TeacherStore

OUT = Path(sys.argv[1])
OUT.mkdir(exist_ok=True)


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.into = nn.Linear(32, 64), ""

    def forward(self, samples):
        if len(samples) == 512:  # a block of the pass, not the few rows that a store is compared by
            until = time.process_time() + 0.03
            while time.process_time() < until:
                pass
            with (OUT / ".made").open("a") as file:
                file.write(f"{self.into} {int(samples[0, 0])}\\n")
        return self.net(samples)


torch.set_num_threads(1)
x = np.random.default_rng(0).normal(size=(30720, 32)).astype("float32")
x[:, 0] = np.arange(len(x))
data = PairedDataset({"x": x}, {"x": Modality(name="x", kind="vector", shape=(32,))}, name="rows")
teacher = Teacher().eval().requires_grad_(False)
for teacher.into in ("float32", "float16"):
    TeacherStore(OUT / teacher.into, dtype=teacher.into).outputs(teacher, data, "x")
"""


def world(folder: Path) -> None:
    """Write two views of one latent, four classes, and what the commands read."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 300)
    latent = rng.normal(size=(4, 5))[label] + 0.5 * rng.normal(size=(300, 5))
    rich = (latent @ rng.normal(size=(5, 12))).astype("float32")
    poor = (latent @ rng.normal(size=(5, 8)) + rng.normal(size=(300, 8))).astype("float32")
    np.savez(folder / "toy.npz", rich=rich, poor=poor, label=label, split=np.repeat([0, 1, 2], [160, 40, 100]))
    for name, array in (("rich", rich), ("poor", poor), ("label", label)):
        np.save(folder / f"{name}.npy", array)
    for name, text in (("small.yaml", EXPERIMENT), ("suite.yaml", SUITE), ("store.py", STORE)):
        (folder / name).write_text(text, encoding="utf-8")


def words_of(command: str, out: str, jobs: int) -> list[str]:
    """Give a command's words."""
    if command == "store":
        return ["store.py", out]
    words = ["-m", "crossdistill", command]
    if command == "diagnose":
        return [*words, "--source", "rich.npy", "--target", "poor.npy", "--labels", "label.npy", "--out", out]
    return [*words, "small.yaml" if command == "run" else "suite.yaml", "--out", out, "--jobs", str(jobs)]


class Started:
    """A command at work, in a process group of its own.

    Args:
        folder: Where it works; its output goes to `.said` there.
        words: The command's.
        fresh: Whether Python starts anew, as for a user; else a copy of this process, which has imported everything.
    """

    def __init__(self, folder: Path, words: list[str], *, fresh: bool) -> None:
        self.log, self.code, self.cpu = folder / ".said", 0, 0.0
        with self.log.open("wb") as said:
            if not fresh:
                self.pid = _copy(folder, words, said.fileno())
                return
            path = os.pathsep.join([HOME, *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            quiet = {"stdout": said, "stderr": subprocess.STDOUT, "start_new_session": True}
            self.pid = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, **quiet).pid

    def ended(self, seconds: float, cpu: float = math.inf) -> bool:
        """Wait until it is over, has used so much of a processor, or for so long; say whether it is over."""
        until = time.monotonic() + seconds
        while True:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code, self.cpu = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
                return True
            if time.monotonic() >= until or (cpu < math.inf and sum(group_of(self.pid).values()) >= cpu):
                return False
            time.sleep(0.02)

    def said(self) -> str:
        """Give its output."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def _copy(folder: Path, words: list[str], said: int) -> int:
    """Run a command in a copy of this process; give its number."""
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # it may have done so itself
            os.setpgid(pid, pid)
        return pid
    code = 130
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if words[0] == "-m":
            sys.argv = [words[1], *words[2:]]
            main_of_ours()
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
            code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        pass
    finally:
        os._exit(code)


def visible(out: Path) -> Iterator[Path]:
    """Give all files that can be seen; temporary names and folders begin with a dot."""
    for path in sorted(out.rglob("*")) if out.is_dir() else ():
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(out).parts):
            yield path


def half_there(out: Path) -> list[str]:
    """Open everything that can be seen."""
    found: list[str] = []
    for path in visible(out):
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
    """Give the records of all that is finished, and when each was written."""
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for path in visible(out)
        if path.name in ("stage.json", "store.json") or path.relative_to(out).parts[0] == "runs"
    }


def made(out: Path) -> list[str]:
    """Give the blocks of the store that were made, in order."""
    path = out / ".made"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def logged(out: Path) -> set[str]:
    """Give the blocks that a store's log names: they are on the disk."""
    found: set[str] = set()
    for log in out.glob("*/.*.part/log.jsonl"):
        for line in log.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(ValueError, KeyError):  # half a line
                found.add(f"{log.parents[1].name} {json.loads(line)['rows'][0]}")
    return found


def begun(out: Path) -> list[str]:
    """Give what was begun and is still there; a lock's file stays."""
    return [
        str(path.relative_to(out))
        for path in out.rglob("*")
        if path.name.startswith(".") and path.name not in (".lock", ".made")
    ]


def difference(command: str, one: Path, other: Path) -> str:
    """Say how two finished folders differ; nothing if they are equal to the bit."""
    if command in ("run", "bench"):
        found = compare_runs(one, other)
        if not found.same:
            return f"{len(found.differing)} numbers differ; student equal: {found.student}"
    if command != "diagnose":
        kept = (".npy", ".safetensors") if command != "store" else (".npy", ".json")
        first, second = (
            {p.relative_to(f): p.read_bytes() for p in visible(f) if p.suffix in kept} for f in (one, other)
        )
        unlike = [str(path) for path in {**first, **second} if first.get(path) != second.get(path)]
        return f"other files: {', '.join(unlike)}" if unlike else ""
    first, second = (json.loads((folder / "diagnosis.json").read_text(encoding="utf-8")) for folder in (one, other))
    for said in (first, second):
        del said["seconds"], said["sha256"]
    return "" if first == second else "diagnosis.json differs"


def send(pid: int, chosen: signal.Signals, one: bool, rng: random.Random) -> None:
    """Send a signal to all processes of a command's group, or to one of them."""
    if not one:
        os.killpg(pid, chosen)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(sorted(group_of(pid))), chosen)


def group_of(pid: int) -> dict[int, float]:
    """Give the CPU seconds that each living process of a group has used."""
    found: dict[int, float] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - asked often
        with contextlib.suppress(OSError):
            if os.getpgid(int(name)) != pid:
                continue
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            found[int(name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


@dataclass
class Trials:
    """What became of a command's trials.

    Attributes:
        command: Which.
        jobs: Of `run` and `bench`.
        fresh: Share of the starts that are a new Python.
        lengths: CPU seconds that it takes undisturbed, by whether Python starts anew.
        sent: How often each signal was sent to a process at work.
        wrong: A line for each thing that went wrong.
    """

    command: str
    jobs: int
    fresh: float
    lengths: dict[bool, float] = field(default_factory=dict[bool, float])
    sent: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])

    @property
    def several(self) -> bool:
        """Whether the command has processes of its own, which a copy of this process has no advantage for."""
        return self.jobs > 1 and self.command in ("run", "bench")

    def start(self, folder: Path, name: str, *, fresh: bool) -> Started:
        """Start the command, with results in a folder of that name."""
        return Started(folder, words_of(self.command, name, self.jobs), fresh=fresh or self.several)

    def undisturbed(self, folder: Path) -> str:
        """Do the command, by a copy and, where some are to be, by a new Python; give what it said if it failed."""
        for fresh in (False, True)[: 1 + (self.fresh > 0)]:
            name = f"{self.command}-{'new' if fresh else 'undisturbed'}"
            process = self.start(folder, name, fresh=fresh)
            process.ended(1200)
            self.lengths[fresh] = process.cpu
            if process.code:
                return process.said()
            self._compare(folder, name)
        return ""

    def one(self, folder: Path, number: int, most: int, rng: random.Random) -> None:
        """Do the command once with kills; if it ends before the first of them, again with moments half as far."""
        share = 1.0
        while not self._trial(folder, f"{self.command}-{number}", most, share, rng) and most:
            share /= 2

    def _trial(self, folder: Path, name: str, most: int, share: float, rng: random.Random) -> bool:
        """Do the command once; say whether it was killed or did not come to its end."""
        out, kills = folder / name, 0
        for kill in range(most + 1):
            before, on_disk, already = finished(out), logged(out), len(made(out))
            fresh, single, chosen = rng.random() < self.fresh, rng.random() < 0.5 and self.several, rng.choice(SIGNALS)
            moment = share * rng.uniform(0.0, self.lengths[fresh]) / (1 + kill)  # less and less is left to do
            process, allowed = self.start(folder, name, fresh=fresh), {0}
            if not process.ended(1200, moment if kill < most else math.inf):
                send(process.pid, chosen, single, rng)
                if not process.ended(120):
                    self.wrong.append(f"{name}: still there 120 s after {chosen.name}")
                    os.killpg(process.pid, signal.SIGKILL)
                    return True
                allowed |= {-chosen, 130, 143} | ({2} if single else set())
                kills += 1
                survived = "" if process.code else ", which went on"
                self.sent[f"{chosen.name}{' to one' if single else ''}{survived}"] += 1
            after, said = finished(out), process.said()
            self.wrong += [f"{name}: half there after a kill: {path}" for path in half_there(out)]
            self.wrong += [f"{name}: {it} was made twice" for it, when in before.items() if after.get(it) != when]
            self.wrong += [f"{name}: block {it} was made twice" for it in on_disk & set(made(out)[already:])]
            if process.code not in allowed or ("Traceback" in TRACKER.sub("", said) and self.command != "store"):
                self.wrong.append(f"{name}: ended with {process.code}: {said[-1000:]}")
            if process.code == 0:
                break
        else:
            return True
        self._compare(folder, name)
        if (again := len(made(out)) - len(set(made(out)))) > LOST * kills:
            self.wrong.append(f"{name}: {again} blocks were made twice")
        shutil.rmtree(out)
        return kills > 0

    def _compare(self, folder: Path, name: str) -> None:
        """Compare what a command ended with to the first."""
        if unlike := difference(self.command, folder / f"{self.command}-undisturbed", folder / name):
            self.wrong.append(f"{name}: {unlike}")
        if left := begun(folder / name):
            self.wrong.append(f"{name}: left behind: {', '.join(left)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30, help="trials of each command")
    parser.add_argument("--most", type=int, default=3, help="kills of one trial; then it may end")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--fresh", type=float, default=0.25, help="share of the starts that are a new Python")
    parser.add_argument("--jobs", type=int, default=1, help="processes of run and bench")
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    given = parser.parse_args()
    rng, failed = random.Random(given.seed), 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what is in the background deaf to it
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        world(folder)
        os.chdir(folder)  # experiment files name their data relative to it
        for command in given.commands:
            trials, told = Trials(command, given.jobs, given.fresh), 0
            if said := trials.undisturbed(folder):
                print(f"{command} fails undisturbed:\n{said}")
                return 1
            for number in range(given.times):
                trials.one(folder, number, given.most, rng)
                for line in trials.wrong[told:]:
                    print(line, flush=True)
                told = len(trials.wrong)
            failed += told
            kills = ", ".join(f"{count} {name}" for name, count in sorted(trials.sent.items()))
            seconds = " or ".join(f"{length:.0f}" for length in trials.lengths.values())
            print(
                f"{command}: {given.times} trials of {seconds} CPU s, {trials.sent.total()} kills ({kills or 'none'}); "
                f"{told} wrong",
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
