"""E1 of MFH, the gamma sweep; run it with `python -m benchmarks.mfh.e1 [--seeds 40]`.

Figure 2 of the paper: more of the latents that decide are in both modalities, and distillation goes from harm to help,
while the teacher's accuracy stays. `benchmarks.fidelity.mfh` says how worlds and networks are made.
"""

from __future__ import annotations

import torch
from benchmarks.fidelity.mfh import OVERLAPS, gamma_checks, overlapping, references, sweep
from benchmarks.record import keep, row, seeds_from
from threadpoolctl import threadpool_limits


def main() -> None:
    seeds = seeds_from(__doc__ or "", 40)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        found = sweep("E1", overlapping, OVERLAPS, seeds)
    known = references("E1")
    rows = [row(name, values, known.get(name)) for name, values in found.items()]
    keep("mfh", "e1", "E1 of MFH: gain by gamma; accuracy, %", seeds, rows, gamma_checks(found))


if __name__ == "__main__":
    main()
