"""What the teacher store costs however large it is: run it with `python benchmarks/speed/store.py`.

Stores of growing size are written and read by processes of their own, which say how much memory they took above what
the imports took. Before, random rows are read from a store and from one .pt file a sample, by turns (files of our own,
so unpickled, which is the faster way). One core each; rates are rows a CPU second, the system's share of it included.
`--rows 10000000` takes minutes and 2.6 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill.training import TeacherStore

WIDTH, BATCH = 16, 128


class _Counted:
    """So many samples (16,) of "image", each a function of its position, so that none has to be kept."""

    augmented_modalities = frozenset[str]()
    label = group = None

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.fingerprint = f"{rows} counted"

    def __len__(self) -> int:
        return self.rows

    def fingerprint_of(self, modality: str) -> str:
        return self.fingerprint

    def augmentation(self, modality: str, epoch: int) -> None:
        return None

    def partners(self, modality: str) -> np.ndarray:
        return np.arange(self.rows)

    def present(self, modality: str) -> None:
        return None

    def made(self, index: Tensor) -> Tensor:
        return torch.sin(index[:, None] * torch.arange(1, WIDTH + 1).float())

    def samples(self, modality: str, batch_size: int = 512) -> Iterator[Tensor]:
        starts = range(0, self.rows, batch_size)
        return (self.made(torch.arange(start, min(start + batch_size, self.rows))) for start in starts)

    def loader(self, views: Mapping[str, int], *, batch_size: int, seed: int, **how: Any) -> _Counted:
        self.order = torch.from_numpy(np.random.default_rng(seed).integers(0, self.rows, batch_size))
        return self

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Any]]:
        return iter([{"image": self.made(self.order), "index": self.order}])


def teacher(width: int) -> nn.Module:
    """As cheap a teacher as can be: what is left is the store's."""
    torch.manual_seed(0)
    return nn.Linear(WIDTH, width).eval().requires_grad_(False)


def peak() -> float:
    """Largest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(folder: Path, rows: int, width: int) -> None:
    """Open the store, writing it if it is not there, and read random batches and a stretch of it."""
    torch.set_num_threads(1)
    data, net, facts = _Counted(rows), teacher(width), dict[str, float]()
    for _ in data.samples("image"):  # what torch itself takes at its first steps
        break
    net(torch.zeros(512, WIDTH)).half()
    start = peak()
    wall, cpu = time.perf_counter(), time.process_time()
    for samples in data.samples("image"):
        net(samples)
    facts["pass"] = time.process_time() - cpu
    wall, cpu = time.perf_counter(), time.process_time()
    kept = TeacherStore(folder, dtype="float16").outputs(net, data, "image")
    facts |= {"open": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    assert kept is not None
    batches = torch.from_numpy(np.random.default_rng(1).integers(0, rows, (2000, BATCH)))
    wall, cpu = time.perf_counter(), time.process_time()
    for index in batches:
        kept.rows(index)
    facts["random"] = batches.numel() / (time.process_time() - cpu)
    first = torch.arange(min(rows, 2_000_000))
    cpu = time.process_time()
    for index in first.split(BATCH):
        kept.rows(index)
    facts["in order"] = len(first) / (time.process_time() - cpu)
    error = max(float((kept.rows(i).features - net(data.made(i))).abs().max()) for i in batches[:50])
    print(
        json.dumps(
            {**facts, "memory": peak() - start, "imports": start, "right": error <= kept.facts["features"][1] + 1e-6}
        )
    )


def run(folder: Path, rows: int, width: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(folder), "--rows", str(rows), "--width", str(width)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def sizes(most: int, width: int) -> None:
    print(f"rows of {width} float16, a teacher of one layer:")
    for rows in [n for n in (10_000, 100_000, 1_000_000) if n < most] + [most]:
        with tempfile.TemporaryDirectory() as folder:
            written, opened = (run(Path(folder), rows, width) for _ in range(2))
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.npy"))
        right = written["right"] and opened["right"]
        memory = f"memory {written['memory']:.0f} MiB above the imports' {written['imports']:.0f} writing and reading"
        print(
            f"{rows:>9} rows, {size / 2**20:7.1f} MiB ({size / (2 * width * rows):.3f} of the numbers): "
            f"written {rows / written['open'] / 1e3:.0f}k rows/CPU s, {rows / written['wall'] / 1e3:.0f}k rows/s wall "
            f"(the teacher's pass alone {rows / written['pass'] / 1e3:.0f}k/CPU s); "
            f"read {opened['random'] / 1e3:.0f}k at random, {opened['in order'] / 1e3:.0f}k in order; opened in "
            f"{1e3 * opened['open']:.0f} CPU ms; {memory}, {opened['memory']:.0f} reading; right: {right}",
            flush=True,
        )


def files(rows: int, width: int, turns: int) -> None:
    """Compare with one .pt file a sample."""
    with tempfile.TemporaryDirectory() as top:
        folder, data, net = Path(top), _Counted(rows), teacher(width)
        kept = TeacherStore(folder / "store", dtype="float16").outputs(net, data, "image")
        assert kept is not None
        for k, row in enumerate(kept.rows(torch.arange(rows)).features):
            torch.save(row.clone(), folder / f"{k}.pt")
        order = np.random.default_rng(0)
        rates: list[tuple[float, float]] = []
        for _ in range(turns):
            batches = torch.from_numpy(order.integers(0, rows, (rows // BATCH, BATCH)))
            cpu = time.process_time()
            for index in batches:
                torch.stack([torch.load(folder / f"{k}.pt", weights_only=False) for k in index.tolist()])
            single = batches.numel() / (time.process_time() - cpu)
            cpu = time.process_time()
            for _ in range(20):
                for index in batches:
                    kept.rows(index)
            rates.append((single, 20 * batches.numel() / (time.process_time() - cpu)))
    ratios = [store / single for single, store in rates]
    print(
        f"{rows} rows of {width}, random batches of {BATCH}: one .pt file a sample "
        f"{statistics.median(r[0] for r in rates) / 1e3:.1f}k rows/CPU s, store "
        f"{statistics.median(r[1] for r in rates) / 1e3:.0f}k: ratio {statistics.median(ratios):.0f} "
        f"({min(ratios):.0f} to {max(ratios):.0f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the largest store")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5, help="of the comparison with one file a sample")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        child(args.child, args.rows, args.width)
        return
    files(5000, 512, args.turns)
    sizes(args.rows, args.width)


if __name__ == "__main__":
    main()
