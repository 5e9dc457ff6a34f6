"""What augmentation costs, on the CPU and on a GPU: `python -m benchmarks.speed.augmentation --device cuda`.

Batches as the loader makes them, of colour pictures, pen strokes and log-mels that are read, standardised and augmented
by most of what there is for their kind; one thread, in turns: samples a second with and without augmentation.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.speed.measure import ROUNDS, by_turns, called, chosen, keep

from crossdistill.data import Modality, PairedDataset
from crossdistill.data.transforms import build_transforms

KINDS: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "image": ((3, 64, 64), ["affine", "crop", "flip", "erase", "jitter", {"noise": {"std": 0.1}}]),
    "sequence": ((3, 128), ["affine", "time_warp", "wobble", "time_mask", "scale", {"noise": {"std": 0.1}}]),
    "audio": ((1, 64, 96), ["spec_mask", "time_shift", {"noise": {"std": 0.1}}]),
}
"""A kind, the shape of a sample, and what is done to it."""


def drawn(kind: str, n: int) -> PairedDataset:
    """Draw samples; what they show makes no difference to the time."""
    shape, _ = KINDS[kind]
    array = np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)
    modality = Modality(name=kind, kind=kind, shape=shape)
    return PairedDataset({kind: array}, {kind: modality}, name="drawn", split=np.zeros(n, dtype=np.uint8))


def measure(kind: str, n: int, batch: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Time an epoch of batches on their way to the device, where they are prepared."""
    plain = drawn(kind, n)
    transforms = build_transforms(KINDS[kind][1], plain.modality(kind))
    works: dict[str, Callable[[], object]] = {}
    for form, data in (("plain", plain), ("augmented", plain.augmented({kind: transforms}))):
        for place in dict.fromkeys([torch.device("cpu"), device]):
            loader = data.loader({kind: 1}, batch_size=batch, seed=0).to(place)

            def epoch(loader: Any = loader) -> None:
                for made in loader.epoch(0):
                    made[kind].to(device)

            works[f"{form}, {place.type}"] = epoch
            epoch()
    taken = by_turns(works, rounds, device)
    rates = {form: round(n / statistics.median(x)) for form, x in taken.items()}
    print(f"{kind} {KINDS[kind][0]}: " + "; ".join(f"{form} {rate:,}" for form, rate in rates.items()), flush=True)
    return {"kind": kind, "shape": KINDS[kind][0], "batch": batch, "samples a second": rates, "seconds": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    device = chosen(parser, args.device)
    torch.set_num_threads(1)
    print("samples a second, whole batches on their device")
    rows = [measure(kind, args.samples, args.batch_size, device, args.rounds) for kind in KINDS]
    keep("augmentation", "what augmentation costs", rows, [], part=called(device))


if __name__ == "__main__":
    main()
