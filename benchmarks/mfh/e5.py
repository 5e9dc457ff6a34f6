"""E5 of MFH, the modes of nullification; run it with `python -m benchmarks.mfh.e5 [--seeds 12]`.

The teacher that was trained together with a student keeps its head and 12 of its 50 columns, the most general ones,
random ones or the least general ones; the others stand at their mean.
"""

from __future__ import annotations

import torch
from benchmarks.fidelity.mfh_nullify import HEADS_STAY, WIDTH, Worlds, mode_checks, modes, references, with_leads
from benchmarks.record import keep, row, seeds_from
from threadpoolctl import threadpool_limits


def main() -> None:
    seeds = seeds_from(__doc__ or "", 12)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        worlds = Worlds(seeds, list(HEADS_STAY))
        regular = worlds.linears(WIDTH, teacher=True).fit(worlds.x_t, worlds.y)
        alone, taught = worlds.student(), worlds.student(worlds.logits(regular))
        teacher, student = worlds.together()
        found, known = modes(worlds, teacher, worlds.ranked(teacher, student), alone, taught), references()
    with_leads(found, known)
    rows = [row(name, values, known.get(name)) for name, values in found.items()]
    keep("mfh", "e5", "E5 of MFH: what of a teacher is kept; accuracy, %", seeds, rows, mode_checks(found))


if __name__ == "__main__":
    main()
