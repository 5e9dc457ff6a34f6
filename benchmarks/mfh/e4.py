"""E4 of MFH, the ranking; run it with `python -m benchmarks.mfh.e4 [--seeds 10]`.

Which share of ten shared columns among fifty Algorithm 1 finds, of networks trained together and trained apart.
"""

from __future__ import annotations

import torch
from benchmarks.fidelity.mfh_nullify import WIDTH, Worlds, ranking_checks, recovered, references
from benchmarks.record import keep, row, seeds_from
from threadpoolctl import threadpool_limits


def main() -> None:
    seeds = seeds_from(__doc__ or "", 10)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        worlds = Worlds(seeds, [(10, 10)])
        regular = worlds.linears(WIDTH, teacher=True).fit(worlds.x_t, worlds.y)
        found, known = recovered(worlds, regular, *worlds.together()), references()
    rows = [row(name, values, known.get(name)) for name, values in found.items()]
    keep("mfh", "e4", "E4 of MFH: shared columns that the ranking finds, %", seeds, rows, ranking_checks(found))


if __name__ == "__main__":
    main()
