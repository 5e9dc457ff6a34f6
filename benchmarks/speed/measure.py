"""What the benchmarks of speed share: turns, bytes kept for backward, and the record."""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from benchmarks.record import HERE, Check, commit, machine
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from crossdistill.files import write_json

CPU = torch.device("cpu")
ROUNDS = 5
"""Turns that each side takes, at the least."""


def now(device: torch.device = CPU) -> float:
    """Give this process's CPU seconds; of a GPU the wall's, once it has done all that it was told."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], object], device: torch.device = CPU) -> float:
    """Run once, and give the seconds that it took, by `now`."""
    started = now(device)
    work()
    return now(device) - started


def by_turns(
    works: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Run all by turns, each of which has run before; names to seconds of each round, by `now`.

    The order changes from round to round, so that none always comes after the same other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        names = list(works)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()
            seconds[name].append(seconds_of(works[name], device))
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Give the median of the ratios of each round, and their least and largest."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    found = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {name: round(value, 4) for name, value in found.items()}


def said(ratio: Mapping[str, float]) -> str:
    """Write a ratio with its spread."""
    return f"{ratio['median']:.3g} ({ratio['least']:.3g} to {ratio['most']:.3g})"


def bytes_kept(loss: Callable[[], Tensor], inputs: Iterable[Tensor]) -> tuple[int, Tensor]:
    """Count the bytes that autograd keeps for backward: each storage once, those of the inputs not at all.

    Returns:
        Bytes, and the loss.
    """
    mine = {x.untyped_storage().data_ptr() for x in inputs}
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in mine:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x  # held by the graph, so that no address is used twice while it is counted

    with saved_tensors_hooks(pack, lambda x: x):
        value = loss()
    return sum(sizes.values()), value


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit the exponent k of value = c * size^k by least squares of the logarithms."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, values))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def chosen(parser: argparse.ArgumentParser, name: str) -> torch.device:
    """Give the device that was asked for, or end with what to do where it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "there is no CUDA device here; --device cpu takes the CPU\n")
    return torch.device(name)


def called(device: torch.device) -> str:
    """Give the device's name, as files have it; empty for the CPU."""
    return torch.cuda.get_device_name(device).lower().replace(" ", "-") if device.type == "cuda" else ""


def keep(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    checks: Sequence[Check],
    *,
    peers: Sequence[str] = (),
    part: str = "",
) -> None:
    """Print the checks, keep rows and checks as JSON, and leave with status 1 where one is missed.

    Args:
        name: Of the module.
        title: What was measured.
        rows: What was found.
        checks: What was expected.
        peers: Packages whose versions are kept too.
        part: Of the benchmark, that is kept in a file of its own.
    """
    for check in checks:
        print(f"{'held  ' if check.holds else 'MISSED'}  {check.says}: {check.measured}")
    versions = {peer: metadata.version(peer) for peer in peers}
    record = {
        "experiment": title,
        "command": " ".join(["python -m", f"benchmarks.speed.{name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine() | {"peers": versions},
        "cpu_seconds": round(sum(os.times()[:4])),  # with the processes that were started
        "rows": list(rows),
        "checks": [{"says": c.says, "measured": c.measured, "holds": c.holds} for c in checks],
    }
    write_json(HERE / "results" / "speed" / f"{name}{part and '-' + part}.json", record)
    if failed := [check.says for check in checks if not check.holds]:
        sys.exit(f"{len(failed)} of {len(checks)} expected figures were missed: {'; '.join(failed)}")
