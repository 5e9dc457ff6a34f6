# ruff: noqa: D102 - the methods are those of the protocols, documented there
"""What the loop costs beside the same steps written by hand: run it with `python benchmarks/loop_overhead.py`.

Both train the same student by the same objective on the same batches of a data set in memory, with fused AdamW and a
cosine; the hand-written loop does nothing else: no logs, no watch for NaN, no checkpoints. They take turns, epoch by
epoch; the ratio of the medians of an epoch's time is printed for each repetition. The bar is 1.05.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill.methods.base import Batch, Losses, Method
from crossdistill.registry import Facts
from crossdistill.training import Settings, fit


class Memory:
    """Pairs in memory; a batch is a slice, so that the loops and not the loader are measured."""

    fingerprint = "memory"
    augmented_modalities = frozenset[str]()
    label = None
    group = None

    def __init__(self, batches: int, size: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            {name: torch.randn(size, width, generator=generator) for name in ("image", "audio")}
            | {"index": torch.arange(k * size, (k + 1) * size)}
            for k in range(batches)
        ]

    def __len__(self) -> int:
        return sum(len(batch["index"]) for batch in self.batches)

    def fingerprint_of(self, modality: str) -> str:
        return ""

    def partners(self, modality: str) -> np.ndarray:
        return np.arange(len(self))

    def present(self, modality: str) -> None:
        return None

    def augmentation(self, modality: str, epoch: int) -> None:
        return None

    def samples(self, modality: str, batch_size: int = 512) -> Iterator[Tensor]:
        return (batch[modality] for batch in self.batches)

    def loader(self, views: Mapping[str, int], **how: Any) -> MemoryLoader:
        return MemoryLoader(self.batches)


class MemoryLoader:
    """The same batches each epoch."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Any]]:
        return (dict(batch) for batch in self.batches[skip:])


class Student(Method):
    """Feature regression with an MLP: about one to two milliseconds a step on one core."""

    facts: ClassVar[Facts] = Facts(name="overhead", title="for the measurement", paper="ours")

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def inputs(self) -> Mapping[str, int]:
        return {"image": 1, "audio": 1}

    def student(self, modality: str) -> nn.Module:
        return self.net

    def training_step(self, batch: Batch) -> Losses:
        return Losses({"square": (self.net(batch["audio"]) - batch["image"]).square().mean()})


def by_hand(method: Student, loader: MemoryLoader, epochs: int) -> Iterator[float]:
    """Train as one writes it; gives the seconds of each epoch."""
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / (epochs * len(loader))))
    )
    for epoch in range(epochs):
        started = time.perf_counter()
        for batch in loader.epoch(epoch):
            loss = method.training_step(batch).total
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        yield time.perf_counter() - started


class Turns:
    """Lets the hand-written loop run an epoch after each of ours, so that both see the same machine."""

    def __init__(self, other: Iterator[float]) -> None:
        self.other, self.ours, self.theirs = other, list[float](), list[float]()

    def started(self, total_steps: int, first_step: int) -> None:
        self.clock = time.perf_counter()

    def stepped(self, step: int, loss: float, rate: float, data_wait: float) -> None:
        pass

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        self.ours.append(time.perf_counter() - self.clock)
        with contextlib.suppress(StopIteration):
            self.theirs.append(next(self.other))
        self.clock = time.perf_counter()

    def finished(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = Memory(args.batches, args.batch_size, args.width)
    settings = Settings(epochs=args.epochs, batch_size=args.batch_size)
    ratios: list[float] = []
    for repetition in range(args.repetitions):
        turns = Turns(by_hand(Student(args.width, args.hidden), data.loader({}), args.epochs))
        fit(Student(args.width, args.hidden), data, settings, seed=0, listener=turns, accelerator="cpu")
        ours, theirs = statistics.median(turns.ours[1:]), statistics.median(turns.theirs[1:])
        ratios.append(ours / theirs)
        each = 1e3 * theirs / args.batches
        print(f"repetition {repetition + 1}: by hand {each:.3f} ms a step, ours {1e3 * ours / args.batches:.3f} ms, "
              f"ratio {ratios[-1]:.4f}")  # fmt: skip
    print(
        f"ratio: median {statistics.median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}; the bar is 1.05"
    )


if __name__ == "__main__":
    main()
