"""Two small networks on the two sides of pairs: what the latent and the contrastive estimates of information share.

    x ─► whiten ─► linear + MLP ─► f(x)
                                          both trained on one part of the pairs, stopped by a second,
    y ─► whiten ─► linear + MLP ─► g(y)   and asked about a third

The linear parts start from the canonical directions of the training part and the MLPs from zero, so that a network is
at its start what linear algebra can do, and training adds what is not linear. All in memory, no loader, and gradients
written out in NumPy: products of this size take less time than torch takes to find out what to do. A step takes a
quarter of a millisecond to one on one core.

Shapes: n rows, b of a batch, d and e columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from crossdistill.errors import NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole

Floats = NDArray[np.float32]
Loss = Callable[[Floats, Floats], tuple[float, Callable[[], tuple[Floats, Floats]]]]
"""From what the towers give for a batch, (b, outputs) each, to the loss and its gradients in the two."""

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
SLOPE = 0.2
"""Of the MLPs' leaky ReLU below 0."""
MEAN_KEPT, SQUARE_KEPT, ADDED = 0.9, 0.999, 1e-8
"""AdamW's betas and epsilon, as torch has them."""
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


class Tower:
    """A linear map and an MLP added to it, from a whitened side to what it shares with the other.

    Biases are the last rows of the two matrices, as inputs end in a column of ones. Both are views of the vectors that
    hold all weights and all gradients, which an optimiser changes at once.
    """

    def __init__(self, start: Doubles, weights: Floats, gradient: Floats) -> None:
        """Begin at a linear map (inputs, outputs) and an MLP of zero; vectors are (`size`,), overwritten."""
        inputs, self.outputs = start.shape
        cut = (inputs + 1) * (self.outputs + HIDDEN)
        self.first, self.gradient_of_first = (v[:cut].reshape(inputs + 1, -1) for v in (weights, gradient))
        self.last, self.gradient_of_last = (v[cut:].reshape(HIDDEN + 1, -1) for v in (weights, gradient))
        # as three modules of torch would draw, though two begin otherwise: kept results depend on the numbers
        _, _, hidden = (
            nn.Linear(*shape) for shape in ((inputs, self.outputs), (HIDDEN, self.outputs), (inputs, HIDDEN))
        )
        weights[:] = 0
        self.first[:-1, : self.outputs] = start
        self.first[:-1, self.outputs :] = hidden.weight.detach().numpy().T
        self.first[-1, self.outputs :] = hidden.bias.detach().numpy()

    @staticmethod
    def size(start: Doubles) -> int:
        """Count the weights of a tower that begins at a map (inputs, outputs)."""
        inputs, outputs = start.shape
        return (inputs + 1) * (outputs + HIDDEN) + (HIDDEN + 1) * outputs

    def __call__(self, x: Floats) -> Floats:
        """Map (b, inputs + 1) to (b, outputs)."""
        return self._forward(x)[0]

    def trace(self, x: Floats) -> tuple[Floats, Callable[[Floats], None]]:
        """Map (b, inputs + 1) to (b, outputs); also give what writes the gradient, from that of the outputs."""
        found, active = self._forward(x)

        def backward(of_found: Floats) -> None:
            np.matmul(active.T, of_found, out=self.gradient_of_last)
            of_hidden = of_found @ self.last[:-1].T
            of_hidden *= np.float32(1 - SLOPE) * (active[:, :-1] > 0) + np.float32(SLOPE)  # half the time of a where
            np.matmul(x.T, np.concatenate([of_found, of_hidden], axis=1), out=self.gradient_of_first)

        return found, backward

    def _forward(self, x: Floats) -> tuple[Floats, Floats]:
        """Also give the hidden units, (b, HIDDEN + 1), a column of ones behind them."""
        both: Floats = x @ self.first
        hidden = both[:, self.outputs :]
        active: Floats = np.ones((len(x), HIDDEN + 1), dtype=np.float32)
        np.maximum(hidden, SLOPE * hidden, out=active[:, :-1])
        found: Floats = both[:, : self.outputs]
        found += active @ self.last
        return found, active


class AdamW:
    """Decoupled weight decay and Adam, over one vector of weights."""

    def __init__(self, weights: Floats) -> None:
        self._weights, self._steps = weights, 0
        self._mean, self._square = np.zeros_like(weights), np.zeros_like(weights)

    def step(self, gradient: Floats) -> None:
        """Change the weights by a gradient (any,)."""
        self._steps += 1
        self._mean += (1 - MEAN_KEPT) * (gradient - self._mean)
        self._square *= SQUARE_KEPT
        self._square += (1 - SQUARE_KEPT) * gradient * gradient
        size = np.sqrt(self._square / (1 - SQUARE_KEPT**self._steps))
        size += ADDED
        self._weights *= 1 - RATE * DECAY
        self._weights -= RATE / (1 - MEAN_KEPT**self._steps) * self._mean / size


@dataclass(frozen=True, eq=False)
class Towers:
    """Two trained towers, with what whitens their inputs."""

    of_x: Whitening
    of_y: Whitening
    nets: tuple[Tower, Tower]
    steps: int

    def __call__(self, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
        """Map rows (n, d) and (n, e) to what the towers give for each, float64."""
        f, g = self.nets[0](as_inputs(self.of_x(x))), self.nets[1](as_inputs(self.of_y(y)))
        return f.astype(np.float64), g.astype(np.float64)


def as_inputs(whitened: Doubles) -> Floats:
    """Give whitened numbers (n, d) as float32 (n, d + 1), cut at `CLIP`, a column of ones behind them."""
    inputs = np.ones((len(whitened), whitened.shape[1] + 1), dtype=np.float32)
    np.clip(whitened, -CLIP, CLIP, out=inputs[:, :-1], casting="same_kind")
    return inputs


def trained(
    x: Doubles,
    y: Doubles,
    rows: Whole,
    stopping: Whole,
    start: Callable[[Canonical, np.random.Generator], tuple[Doubles, Doubles]],
    loss: Loss,
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
        loss: Of a batch, with what gives its gradients.
        steps: Most steps.
        seed: Of the MLPs' weights and the batches. The global generator is left as it was.

    Raises:
        NotMeaningful: If the rows of a side are equal, as they are beside others that are far off.
    """
    of_x, of_y = whitening(x[rows]), whitening(y[rows])
    for name, side in (("x", of_x), ("y", of_y)):
        if not side.map.shape[1]:
            raise NotMeaningful(
                f"{name} hardly differs between most rows, beside a few that are far off: nothing can be learnt of it; "
                "look for wrong units or broken rows, or take estimator='ksg'"
            )
    white_x, white_y = of_x(x), of_y(y)
    starts = start(canonical(white_x[rows], white_y[rows]), np.random.default_rng(seed))
    cut, size = Tower.size(starts[0]), sum(map(Tower.size, starts))
    weights, gradient = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = (
            Tower(starts[0], weights[:cut], gradient[:cut]),
            Tower(starts[1], weights[cut:], gradient[cut:]),
        )
    draws = torch.Generator().manual_seed(seed)
    batches = torch.randint(len(rows), (steps, min(BATCH, len(rows))), generator=draws).numpy()
    optimiser = AdamW(weights)
    train_x, train_y = as_inputs(white_x[rows]), as_inputs(white_y[rows])
    stop_x, stop_y = as_inputs(white_x[stopping]), as_inputs(white_y[stopping])
    best, kept, kept_at, since = float("inf"), weights.copy(), 0, 0
    for step, batch in enumerate(batches):
        if step % EVERY == 0:
            value, _ = loss(nets[0](stop_x), nets[1](stop_y))
            if step == 0 or value < best - LEAST_GAIN * abs(best):
                best, kept, kept_at, since = value, weights.copy(), step, 0
            else:
                since += 1
                if since == PATIENCE:
                    break
        (f, back_to_x), (g, back_to_y) = nets[0].trace(train_x[batch]), nets[1].trace(train_y[batch])
        of_f, of_g = loss(f, g)[1]()
        back_to_x(of_f)
        back_to_y(of_g)
        optimiser.step(gradient)
    weights[:] = kept
    return Towers(of_x, of_y, nets, kept_at)
