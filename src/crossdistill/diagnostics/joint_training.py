"""Step 1 of MFH's Algorithm 1 for linear networks: a teacher and a student that are trained together, to be ranked.

    CE(z_t, y) + CE(z_s, y) + pull mean (z_t - z_s)^2,   z_t = x_t W_t' + b_t,   z_s = x_s W_s' + b_s

Together they prefer what both can see; of networks trained apart `modality_generality` finds far fewer shared channels.

Source: Xue et al. 2023, released code (synthetic data). Shapes: n pairs, d channels, k classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from crossdistill.diagnostics.labelled import labelled_pairs
from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Doubles, Whole

MOMENTUM = 0.9


class Linear(NamedTuple):
    """A linear network, as `modality_generality` takes it for a head."""

    weight: Doubles
    """(k, d)."""
    bias: Doubles
    """(k,)."""

    def logits(self, x: Doubles) -> Doubles:
        """Give (n, k) of (n, d)."""
        return x @ self.weight.T + self.bias


class Aligned(NamedTuple):
    """Two networks that were trained together; made by `align_jointly`."""

    teacher: Linear
    student: Linear


def align_jointly(
    source: ArrayLike,
    target: ArrayLike,
    labels: ArrayLike,
    *,
    pull: float = 1.0,
    rate: float = 0.01,
    steps: int = 1000,
    seed: int = 0,
) -> Aligned:
    """Train a linear teacher and a linear student together, by full-batch gradient descent with momentum 0.9.

    Features are taken as they are: standardise them. A step costs some 8 n d k multiplications.

    Args:
        source: (n, d) the teacher's features.
        target: (n, any) the student's, of the same pairs.
        labels: (n,) classes; -1 where unknown, left out.
        pull: Weight of the squared distance of logits, mean over pairs and classes; 1 as released. 0 trains apart.
        rate: Learning rate; 0.01 as released.
        steps: 1000 as released; they are too few for the training error to vanish, which is part of the method.
        seed: Of the initial weights, uniform within 1 / sqrt(d) as torch's are.

    Raises:
        DataError: If shapes do not fit or a number is not finite, or training left the finite numbers.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are fewer than two classes, or one has fewer than 10 rows.

    Examples:
        >>> import numpy as np
        >>> from crossdistill.diagnostics import modality_generality
        >>> rng = np.random.default_rng(0)
        >>> shared, own, noise = rng.normal(size=(3, 300, 4))
        >>> x, t = np.concatenate([shared, own], 1), np.concatenate([shared, noise], 1)
        >>> nets = align_jointly(x, t, (shared + own).sum(1) > 0)
        >>> modality_generality(x, nets.teacher, nets.student.logits(t)).kept(4)
        array([0, 1, 2, 3])
    """
    if pull < 0 or not 0 < rate < float("inf") or steps < 1:
        raise ConfigError(f"need pull >= 0, rate > 0 and steps >= 1; received {pull}, {rate} and {steps}")
    x, y, label, _ = labelled_pairs("source", source, "target", target, labels, None, seed)
    classes, code = np.unique(label, return_inverse=True)
    rng = np.random.default_rng(seed)
    inputs = [np.concatenate([side, np.ones((len(side), 1))], axis=1) for side in (x, y)]
    weights = [_initial(side.shape[1], len(classes), rng) for side in (x, y)]
    speeds = [np.zeros_like(w) for w in weights]
    for _ in range(steps):
        for i, gradient in enumerate(_gradients(inputs, weights, code, pull)):
            speeds[i] = MOMENTUM * speeds[i] + gradient
            weights[i] = weights[i] - rate * speeds[i]
    if not all(np.isfinite(w).all() for w in weights):
        raise DataError(
            f"training at rate {rate} left the finite numbers; standardise the features or take a lower one"
        )
    teacher, student = (Linear(w[:, :-1], w[:, -1]) for w in weights)
    return Aligned(teacher, student)


def _initial(d: int, k: int, rng: np.random.Generator) -> Doubles:
    return rng.uniform(-1, 1, size=(k, d + 1)) / d**0.5


def _gradients(inputs: list[Doubles], weights: list[Doubles], code: Whole, pull: float) -> list[Doubles]:
    """Give the loss's gradient with respect to both weights, (k, d + 1), the last column the bias."""
    logits = [x @ w.T for x, w in zip(inputs, weights, strict=True)]
    n, k = logits[0].shape
    apart = 2 * pull * (logits[0] - logits[1]) / (n * k)
    found: list[Doubles] = []
    for x, z, towards in zip(inputs, logits, (apart, -apart), strict=True):
        error: Doubles = softmax(z, axis=1) / n
        error[np.arange(n), code] -= 1 / n
        found.append((error + towards).T @ x)
    return found
