"""What a diagnosis costs: 5,000 pairs of 512 columns, 10 classes, 20 labels each; `python -m benchmarks.diagnosing`.

Processor seconds of one core, with the pilot, with the self-supervised reference alone, with neither; the bar is 60.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from crossdistill.diagnostics import diagnose

PAIRS, COLUMNS, CLASSES, LABELS = 5000, 512, 10, 20


def main() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, PAIRS)
    latent = rng.normal(size=(CLASSES, 20))[label] + rng.normal(size=(PAIRS, 20))
    source, target = (
        np.tanh(latent @ rng.normal(size=(20, COLUMNS)) / 4) + noise * rng.normal(size=(PAIRS, COLUMNS))
        for noise in (0.5, 1.5)
    )
    few = np.full(PAIRS, -1)
    for c in range(CLASSES):
        few[np.flatnonzero(label == c)[:LABELS]] = c
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for how in ({"pilot": True}, {}, {"training": False}):
            start = time.process_time()
            found = diagnose({"teacher": source}, target, labels=few, **how)
            print(f"{how}: {time.process_time() - start:.1f} CPU s; {found.sentence}")


if __name__ == "__main__":
    main()
