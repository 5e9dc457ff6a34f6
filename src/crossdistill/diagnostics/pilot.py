"""The pilot student: a small network distilled for half a second, as a stand-in for the student to be trained.

    target features  ─►  D-128-128-64, batch norm  ─►  similarities of a batch  ≈  those of the teacher

It is no one's student: it sees generic features, once, and its loss is CMCD's similarity distillation whatever the
student's will be. Our own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, feature_rows, unit_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

HIDDEN, DIM = 128, 64
TAU = 0.1
"""Temperature of both kernels."""
LEARNING_RATE = 1e-3
"""Of Adam, constant, without weight decay."""
DECIMALS = 6
"""Of the teacher's similarities: coarser than rounding errors, so that a rotated teacher trains the same network."""
LEAST = 20
"""Pairs below which batches say nothing of similarity."""


def pilot_student(
    x: ArrayLike, z: ArrayLike, *, leave_out: ArrayLike = (), steps: int = 300, batch: int = 200, seed: int = 0
) -> Doubles:
    """Distil a small network from a teacher's embedding and embed all rows with it.

    Args:
        x: Target features (n, d), standardised.
        z: Teacher embedding (n, e) of their partners, any scale; only its similarities are looked at.
        leave_out: Rows (any,) that are not trained on, such as those with labels.
        steps: Of Adam; 300, half a second of one core at 64 features.
        batch: Pairs in a step; 200, fewer where there are fewer.
        seed: Of weights and batches. The same seed gives the same numbers: it trains in one thread, on the CPU.

    Returns:
        (n, 64) float64, unit rows, in evaluation mode.

    Raises:
        DataError: If shapes do not fit or a value is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If fewer than 20 pairs are left to train on.
    """
    import torch  # with the network, the only part of the forecast that needs it

    from crossdistill.objectives.cmcd import similarities, soft_cross_entropy

    features, teacher = feature_rows("x", x), unit_rows(feature_rows("z", z))
    if len(features) != len(teacher):
        raise DataError(f"rows of x and z must be pairs; received {len(features)} and {len(teacher)}")
    if steps < 1 or batch < 2:
        raise ConfigError(f"the pilot needs steps >= 1 and batch >= 2; received {steps} and {batch}")
    rows = np.setdiff1d(np.arange(len(features)), np.asarray(leave_out, dtype=np.int64))
    if len(rows) < LEAST:
        raise NotMeaningful(f"the pilot student needs {LEAST} pairs beside the labelled ones; {len(rows)} are left")
    rng, size = np.random.default_rng(seed), min(batch, len(rows))
    inputs = torch.from_numpy(features.astype(np.float32))
    with small_network(features.shape[1], seed) as net:
        optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)
        for _ in range(steps):
            chosen = rng.choice(rows, size, replace=False)
            known = np.round(teacher[chosen] @ teacher[chosen].T, DECIMALS) / TAU
            np.fill_diagonal(known, -math.inf)
            target = torch.from_numpy(known.astype(np.float32))
            loss = soft_cross_entropy(similarities(net(inputs[torch.from_numpy(chosen)]), tau=TAU), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return embedded(net, inputs)


@contextlib.contextmanager
def small_network(width: int, seed: int) -> Generator[nn.Sequential]:
    """Build D-128-128-64 with batch norm, to be trained inside in one thread; the caller's random numbers stay."""
    import torch
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(
                nn.Linear(width, HIDDEN, bias=False),  # the norm's shift makes a bias idle
                nn.BatchNorm1d(HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, HIDDEN, bias=False),
                nn.BatchNorm1d(HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, DIM),
            )
        yield net
    finally:
        torch.set_num_threads(threads)


def embedded(net: nn.Module, inputs: Tensor) -> Doubles:
    """Give what a trained network makes of all rows, (n, 64) unit rows."""
    import torch

    net.eval()
    with torch.no_grad():
        return unit_rows(net(inputs).double().numpy())
