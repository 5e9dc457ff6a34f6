"""E3 of MFH, modality-general distillation; run it with `python -m benchmarks.mfh.e3 [--seeds 20]`.

Table 2 of the paper: a teacher trained again on the shared columns alone is far worse, and its student better.
`benchmarks.fidelity.mfh_nullify` says how worlds and networks are made, and also ranks the columns.
"""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.fidelity.mfh_nullify import COLUMNS, WIDTH, Worlds, column_checks, references, retrained, with_gains
from benchmarks.record import keep, row, seeds_from
from threadpoolctl import threadpool_limits


def main() -> None:
    seeds = seeds_from(__doc__ or "", 20)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        worlds = Worlds(seeds)
        regular = worlds.linears(WIDTH, teacher=True).fit(worlds.x_t, worlds.y)
        alone, taught = worlds.student(), worlds.student(worlds.logits(regular))
        shared = {COLUMNS[0]: [np.arange(k) for _, k in worlds.points for _ in seeds]}
        found, known = retrained(worlds, regular, alone, taught, shared), references()
    with_gains(found, known, COLUMNS[:1])
    rows = [row(name, values, known.get(name)) for name, values in found.items()]
    keep("mfh", "e3", "E3 of MFH: a teacher of the shared columns; accuracy, %", seeds, rows, column_checks(found))


if __name__ == "__main__":
    main()
