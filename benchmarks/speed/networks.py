"""A student's step with channels last and compiled, beside the plain one: `python -m benchmarks.speed.networks`.

Forward, backward and optimiser of our networks at their default sizes, in turns, one thread, CPU seconds; with --device
cuda on a GPU, on batches eight times as large, seconds of the wall's clock, and in bfloat16 too. Convolutions
of our networks have their channels last by themselves; the plain form here lays them out as torch does. torch.compile
needs a C++ compiler and is asked with its own backend; its seconds are those of the first two steps, by the wall's
clock, with an empty cache. The rule: it pays from (seconds of compiling) / (seconds saved a step) steps on.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.record import Check
from benchmarks.speed.measure import ROUNDS, by_turns, called, chosen, keep, now, ratio, said
from torch import Tensor, nn

from crossdistill.networks import CNN, MLP, Network, Projector, SpectrogramCNN, TemporalCNN, ViT

CASES: dict[str, tuple[Callable[[], Any], int]] = {
    "mlp, 240 numbers": (lambda: MLP((240,)), 256),
    "cnn, 1 x 28 x 28": (lambda: CNN((1, 28, 28)), 128),
    "cnn, 3 x 64 x 64": (lambda: CNN((3, 64, 64)), 64),
    "cnn, 3 x 32 x 32, 64 wide, 6 blocks": (lambda: CNN((3, 32, 32), width=64, blocks=(2, 2, 2)), 32),
    "spectrogram_cnn, 40 x 80": (lambda: SpectrogramCNN((1, 40, 80)), 64),
    "temporal_cnn, 3 x 64": (lambda: TemporalCNN((3, 64)), 128),
    "vit, 3 x 32 x 32": (lambda: ViT((3, 32, 32)), 32),
}
"""A network, and the rows of its batch."""


def stepper(network: nn.Module, x: Tensor, mixed: bool) -> Callable[[], None]:
    """Give a function that trains a step on the same batch."""
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            loss = network(x).embedding.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(name: str, rounds: int, compiles: bool, device: torch.device) -> dict[str, Any]:
    """Time all forms of one network."""
    make, rows = CASES[name]
    rows, repeats = (rows * 8, 20) if device.type == "cuda" else (rows, 3)
    forms = ["plain", "ours", *["bf16"] * (device.type == "cuda"), *["compiled"] * compiles]
    steps: dict[str, Callable[[], None]] = {}
    seconds = 0.0
    for form in forms:
        torch.manual_seed(0)
        encoder = make()
        network = Network(encoder, projector=Projector(encoder.dim)).to(device)
        x = torch.randn(rows, *encoder.shape).to(device)
        if form == "plain":
            network.to(memory_format=torch.contiguous_format)
        if form == "compiled":
            network.compile()
        steps[form] = stepper(network, x, form == "bf16")
        started = time.perf_counter()
        steps[form]()
        steps[form]()
        now(device)
        seconds = time.perf_counter() - started
    works = {form: lambda step=step: [step() for _ in range(repeats)] for form, step in steps.items()}
    taken = by_turns(works, rounds, device)
    found: dict[str, Any] = {"network": name, "rows": rows, f"seconds_of_{repeats}": taken}
    found["plain / ours"] = ratio(taken["plain"], taken["ours"])
    middle = {form: statistics.median(x) / repeats for form, x in taken.items()}
    print(f"{name}, {rows}: {1000 * middle['ours']:.3g} ms a step", end="")
    print(f"; plain / ours {said(found['plain / ours'])}", end="")
    if "bf16" in taken:
        found["ours / bf16"] = ratio(taken["ours"], taken["bf16"])
        print(f"; ours / bf16 {said(found['ours / bf16'])}", end="")
    if compiles:
        found["ours / compiled"], found["seconds of compiling"] = ratio(taken["ours"], taken["compiled"]), seconds
        saved = middle["ours"] - middle["compiled"]
        pays = math.ceil(seconds / saved) if saved > 0 else None
        found["pays from steps"] = pays
        print(f"; ours / compiled {said(found['ours / compiled'])}, {seconds:.0f} s to compile, ", end="")
        print("never pays" if pays is None else f"pays from {pays} steps on", end="")
    print(flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(CASES), help="; ".join(CASES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    device = chosen(parser, args.device)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        rows = [measure(name, args.rounds, not args.no_compile, device) for name in args.networks]
    least = min(row["plain / ours"]["median"] for row in rows)
    checks = [Check("channels last are nowhere slower by more than 5 %", f"{least:.2f} at the least", least > 0.95)]
    keep("networks", "a student's step: channels last, and compiled", rows, checks, part=called(device))


if __name__ == "__main__":
    main()
