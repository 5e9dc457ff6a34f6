"""Whether a run can be repeated from its folder, and whether the repetition gave the same numbers.

What a run is a function of stands in its folder: experiment.yaml (or suite.yaml) with the seeds, and in results.json
the fingerprint of the data and the environment: our code, the user's own, versions, machine, processes and threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.errors import ConfigError, DataError
from crossdistill.experiments.results import environment, read_results
from crossdistill.experiments.rows import load_data
from crossdistill.experiments.schema import read_experiment
from crossdistill.experiments.specs import Experiment
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import read_document

CHANCE = ("started", "seconds", "command")
"""Facts of an environment that say nothing of the numbers."""


@dataclass(frozen=True)
class Kept:
    """What a folder keeps of a run.

    Attributes:
        file: Its experiment or suite file.
        suite: Whether it is a suite's.
        results: The content of results.json.
        experiments: Those of the file.
        fingerprints: Of the data: what they were, by experiment.
    """

    file: Path
    suite: bool
    results: Mapping[str, Any]
    experiments: Mapping[str, Experiment]
    fingerprints: Mapping[str, str]


def read_kept(folder: str | Path) -> Kept:
    """Read what a finished run, or a suite, left.

    Raises:
        ConfigError: If it left nothing, not all, or something that is damaged.
    """
    folder = Path(folder)
    try:
        results: Any = read_results(folder)
        rows, facts = results["rows"], results["environment"]
        suite = results.get("kind") == "bench"
        data = results["experiments"] if suite else {"": results["data"]}
        fingerprints = {name: str(about.get("fingerprint", "")) for name, about in data.items()}
        if not rows or not isinstance(facts, dict) or not all(isinstance(row["value"], float) for row in rows):
            raise ValueError
    except FileNotFoundError:
        raise ConfigError(f"'{folder}' has no results.json: give the --out folder of a finished run") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"'{folder / 'results.json'}' holds no results that can be compared; run it again") from None
    if results.get("missing"):
        raise ConfigError(f"'{folder}' is not finished, {results['missing']} runs are missing; start its command again")
    file = folder / ("suite.yaml" if suite else "experiment.yaml")
    if suite:
        experiments = {entry.name: entry.experiment for entry in expand(read_document(file), Shelf()).entries}
    else:
        experiments = {"": read_experiment(file)}
    return Kept(file, suite, results, experiments, fingerprints)


def check_data_are_those(kept: Kept) -> None:
    """Refuse to repeat on other data.

    Raises:
        DataError: Naming the experiment, if the data have changed, or cannot be read.
    """
    shelf = Shelf()
    for name, experiment in kept.experiments.items():
        then = kept.fingerprints.get(name, "")
        data = shelf.get(experiment.data.name, experiment.data.options) if kept.suite else load_data(experiment)
        if then and then != data.fingerprint:
            raise DataError(
                f"{experiment.document.where(('data', 'name'))}: '{experiment.data.name}' is not what it was "
                f"(fingerprint {then}, now {data.fingerprint}), so nothing can be repeated; bring the old data back, "
                "or run it anew"
            )


def changed_since(kept: Kept) -> list[str]:
    """Say what of the environment differs here and now from that of a run: "torch was 2.11, is 2.12"."""
    return list(_changes(kept.results["environment"], environment(*kept.experiments.values())))


@dataclass(frozen=True)
class Comparison:
    """How a repetition came out.

    Attributes:
        numbers: How many were compared.
        differing: Those that are not equal to the bit, each as a line; the largest difference first.
        environment: What differs in the environments, if anything.
        student: Whether the deployed student's weights are equal to the bit; None where one run has none.
    """

    numbers: int
    differing: tuple[str, ...]
    environment: tuple[str, ...]
    student: bool | None

    @property
    def same(self) -> bool:
        """Whether everything is equal to the bit."""
        return not self.differing and self.student is not False


def compare_runs(one: str | Path, other: str | Path) -> Comparison:
    """Compare the numbers of two finished runs, or suites, to the bit.

    Args:
        one: The folder of the first.
        other: That of its repetition.

    Raises:
        ConfigError: If one of them has no results.
    """
    then, now = read_kept(one), read_kept(other)
    was, is_ = _values(then.results), _values(now.results)
    differing: list[tuple[float, str]] = []
    for key in {**was, **is_}:
        a, b = was.get(key), is_.get(key)
        if a != b:
            gap = float("inf") if a is None or b is None else abs(a - b)
            differing.append((gap, f"{_told(key)}: {_number(a)} then, {_number(b)} now"))
    differing.sort(key=lambda pair: -pair[0])
    students = [Path(folder) / "student" / "model.safetensors" for folder in (one, other)]
    both = all(path.is_file() for path in students)
    return Comparison(
        len({**was, **is_}),
        tuple(line for _, line in differing),
        tuple(_changes(then.results["environment"], now.results["environment"])),
        students[0].read_bytes() == students[1].read_bytes() if both else None,
    )


def _values(results: Mapping[str, Any]) -> dict[str, float]:
    """Give every number by what it is of."""
    return {json.dumps({k: v for k, v in row.items() if k != "value"}): row["value"] for row in results["rows"]}


def _told(key: str) -> str:
    facts: dict[str, Any] = json.loads(key)
    words = [str(facts.get(word, "")) for word in ("experiment", "method", "evaluation", "metric")]
    k = f", {facts['labels_per_class'] or 'all'} labels" if "labels_per_class" in facts else ""
    return f"{' '.join(filter(None, words))}{k}, seed {facts.get('seed')}"


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.17g}"


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Name what two environments differ in; what one of them does not say is passed over."""
    for name in then:
        if name in now and name not in CHANCE and then[name] != now[name]:
            yield f"{name} was {then[name] or 'none'}, is {now[name] or 'none'}"
