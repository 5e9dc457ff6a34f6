"""How time and memory grow, with fitted exponents: run it with `python -m benchmarks.speed.curves`.

One process, one thread, CPU seconds (medians of 5), and the bytes that autograd keeps for backward. An exponent k says
that the cost grows like size^k: the slope of the logarithms, least squares. Nothing but crossdistill is needed.

b        contrast and similarity distillation over b pairs of 128 columns, in tiles and with the full matrices
d        the same in tiles over 2048 pairs of d columns
bank     a batch of 256 against n stored teacher rows of 128 halves (SEED's form, the whole store as candidates)
classes  distillation of logits, 256 rows over c classes
n        an epoch over n pairs from a teacher store: a student of two layers, batches of 256; bytes are the store's
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.record import Check
from benchmarks.speed.epoch import EpochClock, warm
from benchmarks.speed.measure import ROUNDS, bytes_kept, keep, seconds_of, slope
from torch import Tensor

from crossdistill.data import PairedDataset
from crossdistill.data.modality import Modality
from crossdistill.methods import Distillation
from crossdistill.networks import MLP
from crossdistill.objectives import anchored_distillation, cross_modal_contrastive, similarity_distillation, tiles
from crossdistill.objectives.kd import distillation_kl
from crossdistill.objectives.regression import L2
from crossdistill.objectives.tiled import Use
from crossdistill.training import Settings, TeacherStore, fit

WIDTH = 128
LEAST_SECONDS = 0.02
"""What takes less is repeated within one measurement."""

Point = tuple[float, int]
"""CPU seconds and bytes."""
Loss = Callable[[Tensor, Tensor], Tensor]


def rows(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Draw student and teacher (n, d)."""
    generator = torch.Generator().manual_seed(n + d)
    return torch.randn(n, d, generator=generator).requires_grad_(), torch.randn(n, d, generator=generator)


def of_loss(loss: Loss, s: Tensor, t: Tensor, rounds: int) -> Point:
    """Measure a loss and its gradient."""

    def step() -> None:
        torch.autograd.grad(loss(s, t), s)

    kept, _ = bytes_kept(lambda: loss(s, t), (s, t))
    step()
    repeats = max(1, round(LEAST_SECONDS / max(seconds_of(step), 1e-5)))
    taken = [seconds_of(lambda: [step() for _ in range(repeats)]) / repeats for _ in range(rounds)]
    return statistics.median(taken), kept


def in_form(loss: Loss, use: Use) -> Loss:
    def formed(s: Tensor, t: Tensor) -> Tensor:
        with tiles(use):
            return loss(s, t)

    return formed


def banked(n: int, rounds: int) -> Point:
    s, t = rows(256, WIDTH)
    bank = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(1)).half()
    return of_loss(in_form(lambda s, t: anchored_distillation(s, t, bank=bank), "always"), s, t, rounds)


def of_epoch(n: int, rounds: int) -> Point:
    """Measure the second epoch and those after it, of a store that is there; bytes are those of its arrays."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(n, 64)).astype(np.float32) for name in ("a", "b")}
    modalities = {name: Modality(name=name, kind="vector", shape=(64,)) for name in arrays}
    data = PairedDataset(arrays, modalities, name="drawn", split=np.zeros(n, dtype=np.uint8))
    torch.manual_seed(0)
    teacher = MLP((64,), dim=WIDTH).eval().requires_grad_(False)

    clock = EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        student = MLP((64,), dim=WIDTH)
        method = Distillation(student, teacher=teacher, objectives={"l2": L2()}, source="a", target="b")
        settings = Settings(epochs=rounds + 1, batch_size=256)
        fit(method, data, settings, seed=0, listener=clock, store=TeacherStore(Path(folder)), accelerator="cpu")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
    return warm(clock.taken), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    fitted: dict[str, tuple[float, float]] = {}

    def curve(name: str, sizes: Sequence[int], measure: Callable[[int], Point]) -> None:
        points = [measure(size) for size in sizes]
        seconds, kept = zip(*points, strict=True)
        fitted[name] = slope(sizes, seconds), slope(sizes, kept)
        print(f"{name}: time ~ size^{fitted[name][0]:.2f}, bytes ~ size^{fitted[name][1]:.2f}", flush=True)
        for size, (taken, held) in zip(sizes, points, strict=True):
            print(f"  {size:8d} {1e3 * taken:10.2f} CPU ms {held / 2**20:10.2f} MiB")
        found.append(
            {
                "row": name,
                "sizes": list(sizes),
                "cpu_seconds": [round(x, 6) for x in seconds],
                "bytes": list(kept),
                "time_exponent": round(fitted[name][0], 3),
                "bytes_exponent": round(fitted[name][1], 3),
            }
        )

    losses: dict[str, Loss] = {
        "contrast": lambda s, t: cross_modal_contrastive(s, t, tau=0.1),
        "similarity": lambda s, t: similarity_distillation(s, t),  # noqa: PLW0108 - its options are not a Loss's
    }
    for name, loss in losses.items():
        tiled, full = in_form(loss, "always"), in_form(loss, "never")
        curve(
            f"{name} over b, tiles",
            (1024, 2048, 4096, 8192),
            lambda b, f=tiled: of_loss(f, *rows(b, WIDTH), rounds),
        )
        curve(f"{name} over b, full", (1024, 2048, 4096), lambda b, f=full: of_loss(f, *rows(b, WIDTH), rounds))
        curve(f"{name} over d, tiles", (64, 128, 256, 512), lambda d, f=tiled: of_loss(f, *rows(2048, d), rounds))
    curve("bank over n, tiles", (8192, 16384, 32768, 65536), lambda n: banked(n, rounds))
    curve("kd over classes", (100, 1000, 10_000), lambda c: of_loss(distillation_kl, *rows(256, c), rounds))
    curve("epoch over n, bytes of the store", (4096, 8192, 16384, 32768), lambda n: of_epoch(n, rounds))

    def at_most(name: str, time_bar: float, bytes_bar: float) -> Check:
        taken, held = fitted[name]
        says = f"{name}: exponents at most {time_bar:g} and {bytes_bar:g}"
        return Check(says, f"{taken:.2f}, {held:.2f}", taken <= time_bar and held <= bytes_bar)

    checks = [at_most(f"{name} over b, tiles", 2.1, 1.05) for name in losses]
    checks += [at_most(f"{name} over d, tiles", 1.1, 1.05) for name in losses]
    checks += [
        at_most("bank over n, tiles", 1.1, 0.05),
        at_most("kd over classes", 1.2, 1.05),
        at_most("epoch over n, bytes of the store", 1.1, 1.05),
        *(
            Check(f"{name} over b, full: the bytes' exponent is near 2, and seen", f"{held:.2f}", held >= 1.85)
            for name in losses
            for _, held in [fitted[f"{name} over b, full"]]
        ),
    ]
    keep("curves", "Growth of time and memory", found, checks)


if __name__ == "__main__":
    main()
