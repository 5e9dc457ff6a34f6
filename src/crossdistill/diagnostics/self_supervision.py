"""What the target can learn of itself: a small network trained by contrast of two noisy views, as a reference.

It stands for target-only self-supervision, which a student must beat; the first study of the forecast trained such
networks for 400 steps. Our own choice of views: Gaussian noise of 0.3 standard deviations and a fifth of the columns
left out, as that study's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.pilot import LEAST, embedded, small_network
from crossdistill.errors import ConfigError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, feature_rows

if TYPE_CHECKING:
    from torch import Tensor

NOISE, DROPPED = 0.3, 0.2
TAU = 0.2
LEARNING_RATE = 2e-3
"""Of AdamW, falling to 0 along a cosine."""


def target_embedding(x: ArrayLike, *, steps: int = 400, batch: int = 200, seed: int = 0) -> Doubles:
    """Train a D-128-128-64 network by SimCLR's loss on the target alone and embed all rows with it.

    Args:
        x: Target features (n, D), standardised.
        steps: Of the optimiser; 400, one to two seconds of one core at 64 columns.
        batch: Rows in a step, fewer where there are fewer.
        seed: Of weights, batches and views. The same seed gives the same numbers: one thread, on the CPU.

    Returns:
        (n, 64) float64, unit rows, in evaluation mode. Rows were seen in training, without labels.

    Raises:
        DataError: If the features are not (n, D), finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are fewer than 20 rows.
    """
    import torch

    from crossdistill.objectives.ntxent import nt_xent

    features = feature_rows("x", x)
    if steps < 1 or batch < 2:
        raise ConfigError(f"steps must be 1 or more and batch 2 or more; received {steps} and {batch}")
    if len(features) < LEAST:
        raise NotMeaningful(f"self-supervision needs {LEAST} rows; there are {len(features)}")
    rng, size = np.random.default_rng(seed), min(batch, len(features))
    inputs = torch.from_numpy(features.astype(np.float32))
    with small_network(features.shape[1], seed) as net:
        optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-4, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            chosen = inputs[torch.from_numpy(rng.choice(len(features), size, replace=False))]
            loss = nt_xent(net(_view(chosen, rng)), net(_view(chosen, rng)), tau=TAU)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        return embedded(net, inputs)


def _view(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw a view: noise on all columns, then some of them left out, which is to say at their mean."""
    import torch

    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    kept = torch.from_numpy(rng.random(x.shape, dtype=np.float32) >= DROPPED)
    return (x + NOISE * noise) * kept
