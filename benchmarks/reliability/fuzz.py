"""Experiment files with something broken in them: run it with `python benchmarks/reliability/fuzz.py --count 1000`.

Each mutant is a good file with one to three changes, to its text or to its values and keys, drawn from its number: the
same number is the same file on every machine. It is read, its data are loaded, and all that runs before training is
done. It must be taken or refused; a refusal is one or two lines that name the place and what to do. Anything else, a
traceback, a process that hangs or eats memory, is a failure and is printed with its number.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from crossdistill.errors import CrossDistillError
from crossdistill.experiments import Bench, parse_experiment, plan
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import parse_document
from crossdistill.registry import library_alone

NAME = "mutant.yaml"
LONGEST = 60.0
"""Seconds that a file may take."""
MOST_MEMORY = 6 << 30
"""Bytes that this process may take: an experiment of impossible size must be refused, not the machine."""

EXPERIMENTS = (
    """\
data: {name: toy.npz, source: rich, target: poor, options: {duplicates: drop}}
networks:
  rich: {hidden: [16], dim: 8}
  poor: {encoder: mlp, hidden: [16], dim: 8}
stages:
  teacher: {method: simclr, modality: rich, epochs: 2, batch_size: 32, tau: 0.2}
  student:
    method: distillation
    teacher: teacher
    objectives: {similarity: {weight: 1.0, tau_student: 0.1}, l2: 0.5}
    epochs: 2
    batch_size: 32
    lr: 1e-3
    augment: {poor: [{noise: {std: 0.1}}]}
compare: [l2, {mine: {cosine: 1.0}}]
controls: {scratch: {epochs: 3}, target_ssl: {tau: 0.1}}
evaluate: {labels_per_class: 3, ways: [linear, knn], fine_tune_steps: 5, neighbours: 3}
seeds: [0, 1]
""",
    """\
# a method of several networks, and rows with methods of their own
data:
  name: toy.npz
  source: rich
  target: poor
stages:
  student: {method: mla, epochs: 2, batch_size: 32, optimizer: sgd, clip: 1.0, warmup: 0.1, schedule: cosine}
compare:
  - one: {method: mind, epochs: 1}
  - two: {method: mke}
evaluate: {labels_per_class: null, c: cv}
seeds: 2
""",
)
SUITE = """\
title: toy
track: label-free
methods: [similarity, {mine: {l2: {weight: 2.0}}}, cosine]
budget: {steps: 4, teacher_steps: 4, batch_size: 32}
base: {evaluate: {ways: [linear]}}
experiments:
  toy: {between: [rich, poor], data: {name: toy.npz}, pairs: [40, null]}
labels_per_class: [1, null]
seeds: 2
tune: 2
"""

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3.5, -0.5, 1e308, 1e-320, float("nan"), float("inf"), 10**12, -(10**12), 10**400,
    "", " ", "x", "auto", "none", "1", "0x10", "1e-3", "1_000", "12:30:45", "2024-02-30", "é", "\U0001f600", "a\nb",
    "a b", "../x", "a.b", "a/b", "a\\b", "a#1", "#", "label", "index", "*", "%s", "{0}", "{{x}}", "<b>", "=1+1",
    "x" * 3000, "stranger:Net", "os:system", ":", "a:", ":b", "timm:resnet18", "linear", "similarity", "rich", "poor",
    "teacher", [], {}, [[]], [None], [1, "a"], ["rich", "rich"], {"a": 1}, {"": {}}, {1: 2}, {"weight": 1.0},
    {"method": "mla"}, [{}], [{"a": {"b": {"c": [1]}}}],
)  # fmt: skip
"""What values are replaced by."""
WORDS = (
    "\t", ":", ": ", "{", "}", "[", "]", ",", "- ", "&a ", "*a", "!!python/name:os.system ", "!!float ", "!x ",
    "'", '"', "#", "|", ">", "%", "@", "`", "?", "\x00", "\x07", "\ufeff", "\u2028", "é", "\n", "\n\n", "  ", "---\n",
    "...\n", "<<: ", "~", "null", "yes", "0o7", "1e999", ".nan",
)  # fmt: skip
"""What is written into texts."""
CURES = re.compile(
    r"did you mean|known:|received|expected|should|must|may |give |choose|write |lower|raise |name |needs? |quote|"
    r"leave out|keep one|put |missing|unknown|rename|use |set |not allowed|flatten|at most|at least|there is no|must|"
    r"earlier|writes one|have no|has no|is not|are not|cannot|can be|no place|only|take ",
    re.IGNORECASE,
)
"""Words of a message that says what would be right; one without any is printed, to be judged by a reader."""


def mutant(number: int, base: str) -> str:
    """Give the mutant of a text with that number."""
    draw, text = random.Random(f"{number} {base}"), base
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        text = draw.choice((_changed_value, _changed_value, _changed_key, _changed_text))(text, draw)
    return text


def _changed_text(text: str, draw: random.Random) -> str:
    """Write, repeat, move or remove something, wherever it stands."""
    lines, spot = text.split("\n"), draw.randrange(len(text) + 1)
    line, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    how = draw.randrange(7)
    if how == 0:
        return text[:spot] + draw.choice(WORDS) + text[spot:]
    if how == 1:
        return text[:spot] + text[spot + draw.randrange(1, 9) :]
    if how == 2:
        return text[:spot]
    if how == 3:
        lines.insert(line, lines[other])
    elif how == 4:
        lines[line], lines[other] = lines[other], lines[line]
    elif how == 5:
        lines[line] = " " * draw.randrange(1, 5) + lines[line]
    else:
        lines[line] = lines[line][draw.randrange(1, 3) :]
    return "\n".join(lines)


def _changed_value(text: str, draw: random.Random) -> str:
    """Put something else in the place of a value."""

    def change(holder: Any, key: Any, everything: Any) -> None:
        holder[key] = draw.choice(VALUES) if draw.random() < 0.8 else _drawn(everything, draw)

    return _with_change(text, draw, change)


def _changed_key(text: str, draw: random.Random) -> str:
    """Rename, remove or add a key."""

    def change(holder: Any, key: Any, everything: Any) -> None:
        how = draw.randrange(3)
        if how == 0:
            del holder[key]
        elif isinstance(holder, dict):
            word = str(key)
            typo = word[: len(word) // 2] + draw.choice(("", "x", word[:1])) + word[len(word) // 2 + 1 :]
            new = typo if draw.random() < 0.6 else draw.choice([v for v in VALUES if not isinstance(v, dict | list)])
            holder[new] = holder.pop(key) if how == 1 else _drawn(everything, draw)

    return _with_change(text, draw, change)


def _with_change(text: str, draw: random.Random, change: Callable[[Any, Any, Any], None]) -> str:
    try:
        values = yaml.safe_load(text)
        places = list(_places(values))
        if not places:
            return text
        change(*draw.choice(places), values)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # broken already
        return _changed_text(text, draw)


def _places(value: Any) -> Generator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in list(items):
        yield value, key
        yield from _places(held)


def _drawn(values: Any, draw: random.Random) -> Any:
    holder, key = draw.choice(list(_places(values)) or [([None], 0)])
    return yaml.safe_load(yaml.safe_dump(holder[key]))


# What comes of it ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of a file: "taken", "refused" or "failed", and what was said."""

    kind: str
    said: str = ""


def write_data(folder: Path) -> None:
    """Write toy.npz: two views of 120 things of four classes."""
    draw = np.random.default_rng(0)
    label = np.arange(120) % 4
    latent = draw.normal(size=(4, 5))[label] + 0.5 * draw.normal(size=(120, 5))
    views = {
        name: (latent @ draw.normal(size=(5, width))).astype("float32") for name, width in (("rich", 12), ("poor", 8))
    }
    np.savez(folder / "toy.npz", **views, label=label, split=np.repeat([0, 1, 2], [80, 16, 24]))


def tried(text: str, folder: Path, *, suite: bool = False) -> Outcome:
    """Do all that is done with a file before anything is trained; the current folder holds toy.npz."""
    try:
        with library_alone(), limited(LONGEST), warnings.catch_warnings(action="ignore"):
            if suite:
                expand(parse_document(text, name=NAME), Shelf())
            else:
                plan(Bench(parse_experiment(text, name=NAME), folder))
    except CrossDistillError as error:
        said = str(error)
        wrong = "" if len(said.splitlines()) <= 2 else "more than two lines: "
        wrong = wrong or ("" if len(said) <= 1500 else "more than 1500 letters: ")
        wrong = wrong or ("" if NAME in said or "toy" in said else "no place: ")
        return Outcome("failed" if wrong else "refused", f"{wrong}{said}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome("failed", "".join(traceback.format_exception(error)[-3:]))
    return Outcome("taken")


class TooLong(BaseException):
    """A file took more time than it may."""


@contextlib.contextmanager
def limited(seconds: float) -> Generator[None]:
    """Raise `TooLong` inside after so many seconds."""

    def stop(number: int, frame: object) -> None:
        raise TooLong(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(number: int, folder: Path) -> tuple[str, Outcome]:
    """Make the mutant of that number, of one of the files in turn, and try it."""
    bases = (*EXPERIMENTS, SUITE)
    base = bases[number % len(bases)]
    text = mutant(number, base)
    return text, tried(text, folder, suite=base is SUITE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every file that failed, and every refusal's form")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    counts: collections.Counter[str] = collections.Counter()
    forms: dict[str, tuple[int, str]] = {}
    uncured: dict[str, tuple[int, str]] = {}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        write_data(Path(name))
        for number in range(args.first, args.first + args.count):
            text, found = outcome_of(number, Path(name) / "out")
            counts[found.kind] += 1
            if found.kind == "failed":
                print(f"--- {number}\n{text if args.show else ''}{found.said}", flush=True)
            elif found.said:
                form = re.sub(r"'[^']*'|\d+|received .*", "_", found.said)
                forms.setdefault(form, (number, found.said))
                if not CURES.search(found.said):
                    uncured.setdefault(form, (number, found.said))
        left = sorted({path.name for path in Path(name).iterdir()} - {"toy.npz"})
    if args.show:
        for number, said in forms.values():
            print(f"{number}: {said}")
    for number, said in uncured.values():
        print(f"no word of what to do? {number}: {said}")
    print(
        f"{args.count} files: {counts['taken']} taken, {counts['refused']} refused in {len(forms)} forms, "
        f"{counts['failed']} failed; {time.process_time() - started:.0f} CPU s; files left behind: {left or 'none'}"
    )
    sys.exit(1 if counts["failed"] or left else 0)


if __name__ == "__main__":
    main()
