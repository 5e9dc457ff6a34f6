"""Two small networks on the two sides of pairs: what the latent and the contrastive estimates of information share.

    x ─► whiten ─► linear + MLP ─► f(x)
                                          both trained on one part of the pairs, stopped by a second,
    y ─► whiten ─► linear + MLP ─► g(y)   and asked about a third

The linear parts start from the canonical directions of the training part and the MLPs from zero, so that a network is
at its start what linear algebra can do, and training adds what is not linear. All in memory, no loader: a step takes
under two milliseconds on one core.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill.evaluation._checks import Doubles, Whole

COMPONENTS = 64
"""Principal components that a side keeps at most."""
COMPONENT_SHARE = 1e-3
"""Least variance of a component, as a share of the largest's: below it there is mostly rounding, which whitening would
bring to the size of the rest."""
ROWS_PER_COMPONENT = 5
"""Training rows for each component kept, at least: canonical directions of more follow their noise."""
CLIP = 10.0
"""Standard deviations beyond which whitened numbers are cut, so that no outlier decides a step."""
HIDDEN, RATE, DECAY, BATCH = 128, 3e-3, 1e-2, 256
"""Width of the MLPs, AdamW's rate and weight decay, rows a step; chosen on Gaussians of known truth."""
EVERY, PATIENCE, LEAST_GAIN = 15, 4, 1e-2
"""Steps between looks at the second part; looks without a gain of this share that end training."""
ROUGHLY_ZERO = 1e-12


@dataclass(frozen=True, eq=False)
class Whitening:
    """Principal components of some rows, scaled to unit variance.

    Attributes:
        mean: (d,).
        map: (d, components).
    """

    mean: Doubles
    map: Doubles

    def __call__(self, x: Doubles) -> Doubles:
        """Whiten x (n, d) into (n, components)."""
        return (x - self.mean) @ self.map


def whitening(x: Doubles) -> Whitening:
    """Fit to training rows x (n, d)."""
    mean = x.mean(axis=0)
    _, s, v = np.linalg.svd(x - mean, full_matrices=False)
    keep = s**2 > max(COMPONENT_SHARE * s[0] ** 2, ROUGHLY_ZERO)
    keep[max(1, min(COMPONENTS, len(x) // ROWS_PER_COMPONENT)) :] = False
    return Whitening(mean, v[keep].T * (len(x) ** 0.5 / s[keep]))


@dataclass(frozen=True, eq=False)
class Canonical:
    """Directions of two whitened sides that correlate, the most correlated first.

    Attributes:
        x: (dx, count).
        y: (dy, count).
        correlations: (count,) in the training part, >= 0.
        rows: Of the training part.
    """

    x: Doubles
    y: Doubles
    correlations: Doubles
    rows: int


def canonical(x: Doubles, y: Doubles) -> Canonical:
    """Fit to whitened training rows (n, dx) and (n, dy)."""
    u, r, v = np.linalg.svd(x.T @ y / len(x), full_matrices=False)
    return Canonical(u, v.T, r, len(x))


class Tower(nn.Module):
    """A linear map and an MLP added to it, from a whitened side to what it shares with the other."""

    def __init__(self, start: Doubles) -> None:
        super().__init__()
        inputs, outputs = start.shape
        self.linear = nn.Linear(inputs, outputs)
        last = nn.Linear(HIDDEN, outputs)
        self.mlp = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.LeakyReLU(0.2), last)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(start.T))
            for zeroed in (self.linear.bias, last.weight, last.bias):
                zeroed.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs) to (b, outputs)."""
        return self.linear(x) + self.mlp(x)


@dataclass(frozen=True, eq=False)
class Towers:
    """Two trained towers, with what whitens their inputs."""

    of_x: Whitening
    of_y: Whitening
    nets: nn.ModuleList
    steps: int

    @torch.no_grad()
    def __call__(self, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
        """Map rows (n, d) and (n, e) to what the towers give for each, float64."""
        f, g = self.nets[0](as_tensor(self.of_x(x))), self.nets[1](as_tensor(self.of_y(y)))
        return f.double().numpy(), g.double().numpy()


def as_tensor(whitened: Doubles) -> Tensor:
    """Give whitened numbers (n, d) as float32, cut at `CLIP`."""
    return torch.from_numpy(np.clip(whitened, -CLIP, CLIP).astype(np.float32))


def trained(
    x: Doubles,
    y: Doubles,
    rows: Whole,
    stopping: Whole,
    start: Callable[[Canonical, np.random.Generator], tuple[Doubles, Doubles]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    seed: int,
) -> Towers:
    """Train two towers on some rows, and keep what was best on others.

    Args:
        x: (n, d), standardised.
        y: (n, e).
        rows: Whole numbers of the rows to train on.
        stopping: Of those that decide when to stop.
        start: From canonical directions to the linear maps that the towers begin with.
        loss: Of what the towers give for a batch, (b, outputs) each.
        steps: Most steps.
        seed: Of the MLPs' weights and the batches. The global generator is left as it was.
    """
    of_x, of_y = whitening(x[rows]), whitening(y[rows])
    white_x, white_y = of_x(x), of_y(y)
    first, second = start(canonical(white_x[rows], white_y[rows]), np.random.default_rng(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = nn.ModuleList([Tower(first), Tower(second)])
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(nets.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    train_x, train_y = as_tensor(white_x[rows]), as_tensor(white_y[rows])
    stop_x, stop_y = as_tensor(white_x[stopping]), as_tensor(white_y[stopping])
    best, kept, kept_at, since = float("inf"), copy.deepcopy(nets.state_dict()), 0, 0
    for step in range(steps):
        if step % EVERY == 0:
            with torch.no_grad():
                value = float(loss(nets[0](stop_x), nets[1](stop_y)))
            if step == 0 or value < best - LEAST_GAIN * abs(best):
                best, kept, kept_at, since = value, copy.deepcopy(nets.state_dict()), step, 0
            else:
                since += 1
                if since == PATIENCE:
                    break
        batch = torch.randint(len(rows), (min(BATCH, len(rows)),), generator=draws)
        optimiser.zero_grad()
        loss(nets[0](train_x[batch]), nets[1](train_y[batch])).backward()
        optimiser.step()
    nets.load_state_dict(kept)
    return Towers(of_x, of_y, nets, kept_at)
