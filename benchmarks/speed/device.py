"""Losses over large batches on an accelerator: `python -m benchmarks.speed.device`, where there is a CUDA device.

The full matrix, tiles by torch alone, and tiles with Triton's kernels, in turns: seconds of a loss and
its gradient, the most memory asked for beyond its inputs, and which share of the rate of one large product of the same
precision its products reach. Values and gradients are compared first.
--device cpu --sizes 64 runs the same at small sizes, interpreted (TRITON_INTERPRET=1): a rehearsal, not a measurement.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmarks.record import Check
from benchmarks.speed.measure import called, chosen, keep, ratio, said, seconds_of
from torch import Tensor

from crossdistill.objectives import cross_modal_contrastive, nt_xent, similarity_distillation, tiles

LOSSES: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "contrast": (3, lambda s, t: cross_modal_contrastive(s, t, tau=0.1)),
    "nt_xent": (2, lambda s, t: nt_xent(*s.chunk(2), tau=0.1)),
    "similarity": (3, similarity_distillation),
}
"""Products of n x n x d that the tiles of each loss take, and the loss; the teacher is frozen."""
FORMS: dict[str, dict[str, Any]] = {
    "full matrix": {"use": "never"},
    "tiles": {"use": "always", "fused": False},
    "tiles, fused": {"use": "always", "fused": True},
}


def most_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Give the most memory that was asked for at once, beyond what was there."""
    if device.type != "cuda":
        work()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def product_rate(n: int, device: torch.device, rounds: int) -> float:
    """Measure the rate of one n x n x n product, in multiplications and additions a second."""
    a = torch.randn(n, n, device=device)
    a @ a
    return 2 * n**3 / min(seconds_of(lambda: a @ a, device) for _ in range(rounds))


def measure(
    name: str, n: int, d: int, device: torch.device, rounds: int, rate: float, tile: int | None
) -> dict[str, Any]:
    """Compare, count and time one loss at one size."""
    products, loss = LOSSES[name]
    generator = torch.Generator().manual_seed(n)
    t = torch.randn(n, d, generator=generator)
    s = (t + 2 * torch.randn(n, d, generator=generator)).to(device).requires_grad_()
    t = t.to(device)

    def step(form: str) -> tuple[Tensor, Tensor]:
        with tiles(**FORMS[form], size=tile):
            value = loss(s, t)
            return value.detach(), torch.autograd.grad(value, s)[0]

    values, memory = {}, {}
    for form in FORMS:
        values[form] = step(form)  # also its warm-up: kernels are compiled here
        memory[form] = most_bytes(lambda form=form: step(form), device)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form in FORMS:
            seconds[form].append(seconds_of(lambda form=form: step(form), device))
    value, slope = values["full matrix"]
    off = max(abs(float(other / value) - 1) for other, _ in values.values())
    tilt = max(float((gradient - slope).norm() / slope.norm()) for _, gradient in values.values())
    used = 2 * products * n * n * d
    found = {
        "loss": name,
        "b": n,
        "d": d,
        "tile": tile,
        "seconds": {form: [round(x, 6) for x in taken] for form, taken in seconds.items()},
        "bytes": memory,
        "share of one product's rate": {f: round(used / statistics.median(x) / rate, 4) for f, x in seconds.items()},
        "fused / tiles": ratio(seconds["tiles, fused"], seconds["tiles"]),
        "fused / full matrix": ratio(seconds["tiles, fused"], seconds["full matrix"]),
        "loss off": off,
        "gradient off": tilt,
    }
    print(f"{name}, b = {n}, d = {d}: loss off by {off:.1e}, gradient by {tilt:.1e}")
    for form, taken in seconds.items():
        share = found["share of one product's rate"][form]
        print(f"  {form:14s} {statistics.median(taken) * 1000:9.3f} ms {memory[form] / 2**20:9.1f} MiB {share:6.1%}")
    print(f"  fused / tiles {said(found['fused / tiles'])}", flush=True)
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("losses", nargs="*", default=list(LOSSES), help=", ".join(LOSSES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tile", type=int, help="rows and columns of a tile; the library's own where nothing is said")
    parser.add_argument(
        "--tf32", action="store_true", help="let products of float32 round to TF32, as many trainings do"
    )
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(given)
    device = chosen(parser, args.device)
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    rate = product_rate(8192 if device.type == "cuda" else 256, device, args.rounds)
    print(f"one product: {rate / 1e12:.2f} T multiplications and additions a second")
    rows = [measure(x, n, args.width, device, args.rounds, rate, args.tile) for x in args.losses for n in args.sizes]
    close = 1e-2 if args.tf32 else 1e-5
    checks = [
        Check(
            f"loss within {close / 10:g}, gradient within {close:g} of the full form",
            f"{max(row['loss off'] for row in rows):.1e}, {max(row['gradient off'] for row in rows):.1e}",
            all(row["loss off"] <= close / 10 and row["gradient off"] <= close for row in rows),
        )
    ]
    if device.type == "cuda":
        part = called(device) + "-tf32" * args.tf32 + (f"-tile-{args.tile}" if args.tile else "")
        keep("device", f"losses on {called(device)}", rows, checks, part=part)


if __name__ == "__main__":
    main()
