"""MST-Distill on the digits of `c2kd`; run it with `python -m benchmarks.fidelity.mst_distill [--seeds 6]`.

300 labelled pairs; the student sees the noisy left half, the cross-modal teacher the clean image or the right half, the
multimodal teacher both. No published figure was available to us, nor a prototype's: there is nothing to agree with, and
what was measured is kept as it is. All networks start untrained, and share the 100 epochs of `c2kd`.
"""

from __future__ import annotations

import torch
from benchmarks.fidelity.c2kd import SETTINGS, accuracy, encoder, world
from benchmarks.record import keep, row, run_seeds, seeds_from

from crossdistill.methods.mst_distill import MSTDistill
from crossdistill.methods.supervised import Supervised
from crossdistill.training import fit

KINDS = {"MST-Distill": {}, "MST-Distill, router as released": {"as_released": True, "top": 1}}


def run(seed: int) -> dict[str, float]:
    """Train all rows of one seed."""
    found: dict[str, float] = {}
    for source in ("full", "right"):
        data = world(seed, source)
        train, test = data.split("train"), data.split("test")
        torch.manual_seed(seed)
        alone = Supervised(encoder(data, "student"), modality="student", classes=10)
        fit(alone, train, SETTINGS, seed=seed, labels=True, accelerator="cpu")
        found[f"{source}: CE"] = accuracy(alone.network, test, "student")
        for name, how in KINDS.items():
            torch.manual_seed(seed)
            encoders = {"student": encoder(data, "student"), "teacher": encoder(data, "teacher")}
            method = MSTDistill(encoders, source="teacher", target="student", classes=10, **how)  # pyright: ignore[reportArgumentType]
            fit(method, train, SETTINGS, seed=seed, labels=True, accelerator="cpu")
            found[f"{source}: {name}"] = accuracy(method.as_teacher("student"), test, "student")
            if name == "MST-Distill":
                found[f"{source}: cross-modal teacher"] = accuracy(method.as_teacher("teacher"), test, "teacher")
    return found


def main() -> None:
    seeds = seeds_from(__doc__ or "", 6)
    found = run_seeds(run, seeds)
    rows = [row(name, values, None) for name, values in found.items()]
    title = "MST-Distill: 8 x 8 digits, 300 labelled pairs, student on the noisy left half; test accuracy, %"
    keep("fidelity", "mst_distill", title, seeds, rows, [])


if __name__ == "__main__":
    main()
