"""How much of a loss's time a GPU computes, and how much it waits to be told: `python -m benchmarks.speed.busy`.

A loss and its gradient over 16,384 pairs of width 128 in tiles of two sizes, with Triton and without, float32 and TF32:
milliseconds of the wall's clock, those in which the device was busy (torch's profiler), and how many kernels it ran.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from benchmarks.speed.device import LOSSES
from benchmarks.speed.measure import chosen, seconds_of
from torch.profiler import ProfilerActivity, profile

from crossdistill.objectives import tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = chosen(parser, "cuda")
    s = torch.randn(args.pairs, 128, device=device, requires_grad=True)
    t = torch.randn(args.pairs, 128, device=device)
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for name in ("contrast", "similarity"):
            for size in (4096, 8192):
                for fused in (False, True):

                    def step(name: str = name, size: int = size, fused: bool = fused) -> None:
                        with tiles("always", size=size, fused=fused):
                            torch.autograd.grad(LOSSES[name][1](s, t), s)

                    step()  # kernels are compiled here
                    wall = statistics.median(seconds_of(step, device) for _ in range(args.rounds))
                    with profile(activities=[ProfilerActivity.CUDA]) as seen:
                        step()
                        torch.cuda.synchronize()
                    kernels = seen.key_averages()
                    busy = sum(kernel.self_device_time_total for kernel in kernels) / 1000
                    print(
                        f"{name}, {'TF32' if tf32 else 'float32'}, tiles of {size}{', fused' * fused}: "
                        f"{1000 * wall:.2f} ms, busy {busy:.2f}, {sum(kernel.count for kernel in kernels)} kernels",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
