"""E2 of MFH, the alpha sweep; run it with `python -m benchmarks.mfh.e2 [--seeds 40]`.

Figure 3 of the paper: the teacher sees ever more that its student cannot, gets far better, and helps less.
`benchmarks.fidelity.mfh` says how worlds and networks are made.
"""

from __future__ import annotations

import torch
from benchmarks.fidelity.mfh import SPECIFIC, alpha_checks, exceeding, references, sweep
from benchmarks.record import keep, row, seeds_from
from threadpoolctl import threadpool_limits


def main() -> None:
    seeds = seeds_from(__doc__ or "", 40)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        found = sweep("E2", exceeding, SPECIFIC, seeds)
    known = references("E2")
    rows = [row(name, values, known.get(name)) for name, values in found.items()]
    keep("mfh", "e2", "E2 of MFH: gain by alpha; accuracy, %", seeds, rows, alpha_checks(found))


if __name__ == "__main__":
    main()
