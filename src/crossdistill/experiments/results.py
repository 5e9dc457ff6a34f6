"""From rows to a verdict: paired differences with intervals, the best control, and one sentence."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossdistill._version import __version__
from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, DataError, TrainingError, told
from crossdistill.evaluation import Interval, bootstrap_difference, paired_difference, sign_verdict
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.judge import Row
from crossdistill.experiments.sources import JUDGING, code_version, own_code
from crossdistill.experiments.specs import Experiment
from crossdistill.files import digest, filed, read_json, unchecked
from crossdistill.networks.weights import weights_file

METRIC = "accuracy"
LEAST_GROUPS = 10
"""A bootstrap over fewer groups than this says too little of their spread; items are resampled instead."""

COMPUTING = ("lightning-fabric", "pillow", "scikit-learn", "scipy")
"""Packages beside torch and numpy whose version may change a number."""

NAMES = {"linear": "linear evaluation", "knn": "k-nearest neighbours", "fine_tune": "fine-tuning"}
PLAIN = {
    "raw_features": "raw features",
    "scratch": "the same network from scratch",
    "target_ssl": "self-supervision on the target alone",
    "target_graph": "the neighbourhoods of the target alone",
    "random_teacher": "a random teacher",
    "shuffled_pairs": "shuffled pairs",
}


def by_seed(rows: Sequence[Row], method: str, way: str) -> dict[int, float]:
    """Give a method's accuracy by seed."""
    wanted = (method, way, METRIC)
    return {r["seed"]: r["value"] for r in rows if (r["method"], r["evaluation"], r["metric"]) == wanted}


def compare(bench: Bench, rows: Sequence[Row], method: str, against: str, way: str) -> dict[str, Any]:
    """Compare two methods under one evaluation, paired over seeds and over the test items that both were judged on.

    Two intervals are made: Student's over the seeds' differences, and a paired bootstrap over test items (over groups
    where there are ten or more) of the differences averaged over seeds. The one reported reaches as far as either on
    each side, so that neither lucky seeds nor a lucky test set pass for a difference.

    Returns:
        The difference in accuracy (method minus against) with its 95 % interval.
    """
    seeds = sorted(by_seed(rows, method, way).keys() & by_seed(rows, against, way).keys())
    (mine, a), (theirs, b) = (_correct(bench, name, way, seeds) for name in (method, against))
    a, b = a[:, np.isin(mine, theirs)], b[:, np.isin(theirs, mine)]
    over_seeds = paired_difference(a.mean(axis=1), b.mean(axis=1))
    group = None if bench.data.columns.group is None else bench.data.columns.group[mine[np.isin(mine, theirs)]]
    groups = group if group is not None and len(np.unique(group)) >= LEAST_GROUPS else None
    over_items = bootstrap_difference(a.mean(axis=0), b.mean(axis=0), groups=groups, seed=0)
    low, high = (
        [x for x in side if x is not None] for side in zip(_sides(over_seeds), _sides(over_items), strict=True)
    )
    return {
        "method": method,
        "against": against,
        "evaluation": way,
        "metric": METRIC,
        "difference": over_seeds.value,
        "low": min(low, default=None),
        "high": max(high, default=None),
        "seeds": len(seeds),
        "over": "seeds and test items" if len(seeds) > 1 else "test items",
    }


def _sides(interval: Interval) -> tuple[float | None, float | None]:
    return interval.low, interval.high


def _correct(bench: Bench, name: str, way: str, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Give the rows of the data that a method was judged on (n,), and by seed whether it was right (seeds, n)."""
    rows, correct = np.zeros(0, dtype=np.int64), list[np.ndarray]()
    for seed in seeds:
        kept = bench.folder / "predictions" / f"{filed(name)}-{seed}.npz"
        try:
            with np.load(kept, allow_pickle=False) as arrays:
                rows = arrays["rows"]
                correct.append((arrays[way] == arrays["label"]).astype(np.float64))
        except OSError:
            raise
        except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for broken archives
            raise TrainingError(
                f"{kept} was damaged while the run went on ({told(error)}); start the same command again: what is "
                "damaged is made again"
            ) from None
    return rows, np.stack(correct)


def summarise(
    bench: Bench, arms: Sequence[Arm], rows: Sequence[Row], facts: Mapping[str, Any], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """Build results.json: rows, comparisons, the verdict from the interval against the best control, and the setting.

    Args:
        bench: For the data's facts and the predictions.
        arms: All arms of the comparison.
        rows: What the judge gave.
        facts: What the run adds to the environment: command, start, seconds, processes.
        skipped: Rows that could not be served, with the reason.

    Returns:
        A JSON-like object; see the fields below.
    """
    ways = bench.experiment.evaluate.ways
    judged: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        judged[arm.role].append(arm)
    main, headline = judged["method"][0].name, ways[0]
    comparisons: list[dict[str, Any]] = []
    for way in ways:
        for arm in (*judged["method"], *judged["baseline"]):
            others = [*judged["control"], *(judged["baseline"] if arm.role == "method" else [])]
            ceiling = judged["ceiling"] if arm.role == "method" else []
            for other in (*others, *ceiling):
                if by_seed(rows, arm.name, way) and by_seed(rows, other.name, way):
                    comparisons.append(compare(bench, rows, arm.name, other.name, way))
    means = {
        arm.name: float(np.mean(list(by_seed(rows, arm.name, headline).values())))
        for arm in judged["control"]
        if by_seed(rows, arm.name, headline)
    }
    best = max(means, key=lambda name: means[name])
    decisive = next(c for c in comparisons if (c["method"], c["against"], c["evaluation"]) == (main, best, headline))
    interval = Interval(decisive["difference"], decisive["low"], decisive["high"], decisive["seeds"])
    verdict = sign_verdict(interval) if interval.n > 1 else "undecided"
    return {
        "verdict": verdict,
        "sentence": _sentence(bench, decisive, verdict),
        "headline": {"method": main, "against": best, "evaluation": headline, "metric": METRIC},
        "methods": {arm.name: {"role": arm.role, "title": arm.title} for arm in arms},
        "skipped": [{"method": name, "reason": reason} for name, reason in skipped.items()],
        "rows": list(rows),
        "comparisons": comparisons,
        "data": describe(bench),
        "environment": {**environment(bench.experiment), **facts},
    }


def _sentence(bench: Bench, decisive: Mapping[str, Any], verdict: str) -> str:
    spec = bench.experiment
    start = {
        "helped": "Distillation helped",
        "hurt": "Distillation did not help: it hurt",
        "undecided": f"Undecided: {'the interval includes zero' if decisive['seeds'] > 1 else 'one seed cannot tell'}",
    }[verdict]
    points, low, high = (
        "?" if decisive[key] is None else f"{100 * decisive[key]:+.1f}" for key in ("difference", "low", "high")
    )
    k = spec.evaluate.labels_per_class
    labels = "all labels" if k is None else f"{k} label{'s' if k > 1 else ''} per class"
    over = f"over {decisive['seeds']} seeds and test items" if decisive["seeds"] > 1 else "over test items, one seed"
    return (
        f"{start}: the {spec.data.target} student taught by {spec.data.source} is {points} points "
        f"(95 % interval {low} to {high}, {over}) against the best control, {PLAIN[decisive['against']]}, "
        f"in {NAMES[decisive['evaluation']]} with {labels}."
    )


def describe(bench: Bench) -> dict[str, Any]:
    """Say what the data are: counts, classes, pairing, licence."""
    data = bench.data
    return {
        "name": data.name,
        "about": data.about,
        "pairing": data.pairing,
        "licence": data.licence,
        "attribution": data.attribution,
        "counts": {split: _count(data.split(split)) for split in data.splits},
        "classes": data.classes,
        "warnings": list(data.warnings),
        "fingerprint": data.fingerprint,
    }


def _count(rows: PairedDataset) -> int | dict[str, int]:
    labelled = int(rows.labelled.sum())
    return len(rows) if labelled == len(rows) else {"pairs": len(rows), "labelled": labelled}


def environment(*experiments: Experiment) -> dict[str, Any]:
    """Say what ran the experiments: versions, machine, and what of the user's own they are made of; no host name.

    With the resolved experiment, its seeds and the data's fingerprint this is all that a run is a function of.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in COMPUTING]
    return {
        "crossdistill": __version__,
        "code": code_version(JUDGING),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "libraries": ", ".join(versions),
        "own": own_parts(experiments),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def own_parts(experiments: Sequence[Experiment]) -> str:
    """Hash the user's own code and weights that experiments name: "mine:Loss 3fa9…, teacher.pt 88aa…", or nothing."""
    stages = [stage for e in experiments for stage in (*e.stages.values(), *e.compare.values())]
    modules = [stage.module for stage in stages if stage.module is not None]
    names = [str(network.get("encoder", "")) for e in experiments for network in e.networks.values()]
    names += [name for stage in stages for name in (stage.method, *(o.name for o in stage.objectives))]
    names += [module.module for module in modules]
    own = {name: digest(own_code(name)) for name in names if ":" in name and not name.startswith("timm:")}
    for path in [module.weights for module in modules if module.weights is not None]:
        own[Path(path).name] = digest(weights_file(path).read_bytes())
    return ", ".join(f"{name} {own[name]}" for name in sorted(own))


def read_results(folder: Path) -> dict[str, Any]:
    """Read DIR/results.json.

    Raises:
        DataError: If it is not what was written.
        OSError: If it is not there.
        ValueError: If it is no JSON.
    """
    path = folder / "results.json"
    written: dict[str, Any] = read_json(path)
    try:
        return unchecked(written)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; start the command that wrote it again") from None


def kind_of(folder: Path) -> str | None:
    """Say whose results a folder holds, a suite's ("bench") or a run's ("run"); None where none can be read."""
    try:
        there: Any = read_json(folder / "results.json")
    except (OSError, ValueError):
        return None
    if not isinstance(there, dict):
        return None
    if there.get("kind") == "bench":  # pyright: ignore[reportUnknownMemberType] - a file's
        return "bench"
    return "run" if "rows" in there else None


def refuse_other_kind(folder: Path, *, suite: bool) -> None:
    """Refuse a folder with the results of a run where those of a suite are to be written, or the other way round.

    Raises:
        ConfigError: Saying so; nothing of the folder is touched.
    """
    if kind_of(folder) == ("run" if suite else "bench"):
        holds, wanted = ("a run's", "a suite's") if suite else ("a suite's", "a run's")
        raise ConfigError(f"'{folder}' holds {holds} results, which {wanted} would replace; choose another with --out")
