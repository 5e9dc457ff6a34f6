"""The linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Doubles, Labels, feature_rows, label_column, unit_rows

GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties that "cv" chooses from."""

FOLDS = 5
"""Folds of "cv"; fewer where the smallest class has fewer samples."""

SHARED = 4_000_000
"""Entries of the features from which on threads are worth their keep: on a busy machine two threads that wait for each
other made a fit of 1,200 rows a hundred times as long."""

HELD = 1 << 25
"""Logits that a prediction holds at a time: 256 MiB. Ten thousand test rows of ten thousand classes have 800 MB."""

STEPS = 2000
"""Iterations of L-BFGS at most; 20 to 30 are common."""

TOLERANCE = 1e-5
"""Largest gradient entry of the mean loss at the end. Many classes make its entries small: the library's own 1e-4 ends
the fit of 242 classes half way."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe; make one with `linear_probe`.

    Attributes:
        weight: (c, d) float64.
        bias: (c,) float64.
        classes: (c,) the labels that columns stand for, ascending; only those seen in training.
        normalise: Whether features are scaled to unit length first.
        c: Inverse penalty used.
        converged: Whether the optimiser ended within its steps.
    """

    weight: Doubles
    bias: Doubles
    classes: Labels
    normalise: bool
    c: float
    converged: bool

    def logits(self, x: ArrayLike) -> Doubles:
        """Give logits (n, c) of features (n, d).

        Raises:
            DataError: If the features do not fit.
        """
        rows = feature_rows("x", x, width=self.weight.shape[1])
        return (unit_rows(rows) if self.normalise else rows) @ self.weight.T + self.bias

    def predict_proba(self, x: ArrayLike) -> Doubles:
        """Give probabilities (n, c) of features (n, d), columns in the order of `classes`."""
        return softmax(self.logits(x), axis=1)

    def predict(self, x: ArrayLike) -> Labels:
        """Give the likeliest label (n,) of features (n, d)."""
        rows = feature_rows("x", x, width=self.weight.shape[1])
        step = max(1, HELD // len(self.classes))
        parts = [self.logits(rows[start : start + step]).argmax(axis=1) for start in range(0, len(rows), step)]
        return self.classes[np.concatenate(parts)]

    def head(self) -> nn.Module:
        """Give the probe as a float32 torch module from features (b, d) to logits (b, c), for deployment."""
        linear = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(self.weight))
            linear.bias.copy_(torch.from_numpy(self.bias))
        return nn.Sequential(UnitLength(), linear) if self.normalise else nn.Sequential(linear)


class UnitLength(nn.Module):
    """Scale features (b, d) to unit length; a zero row stays zero."""

    def forward(self, features: Tensor) -> Tensor:
        """Give the scaled features, (b, d)."""
        largest = features.detach().abs().amax(dim=1, keepdim=True)
        zero = largest == 0
        x = features / torch.where(zero, 1.0, largest)  # squares then neither overflow nor vanish
        square = x.square().sum(dim=1, keepdim=True)
        return x * torch.where(zero, 1.0, square).rsqrt()


def linear_probe(
    train_x: ArrayLike, train_y: ArrayLike, *, c: float | Literal["cv"] = 10.0, normalise: bool = True
) -> LinearProbe:
    """Fit multinomial logistic regression with an L2 penalty; the intercept is not penalised. Deterministic.

    Args:
        train_x: Features (n, d), frozen.
        train_y: Labels (n,), two classes or more.
        c: Inverse penalty, on the sum of the losses; 10 was within a point of the best of `GRID` for Omniglot's 242
            characters at 1 and 5 labels each (pixels, 64 and 128 principal components). "cv" takes the best of
            `GRID` by stratified cross-validation (likelihood; smaller on ties), which costs some 20 fits, and 10 where
            a class has a single sample.
        normalise: Scale features to unit length first, as contrastive objectives leave the length free.

    Raises:
        DataError: If shapes do not fit, a feature is not finite, or there is one class only.
        ConfigError: If c is not positive.
    """
    x = feature_rows("train_x", train_x)
    y = label_column("train_y", train_y, len(x))
    classes, code = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"a probe needs two classes or more; all {len(y)} labels are {classes[0]!s}")
    if c != "cv" and (isinstance(c, str) or not (np.isfinite(c) and c > 0)):
        raise ConfigError(f"c must be a positive number or cv; received {c!r}")
    x = unit_rows(x) if normalise else x
    strength = _cross_validated(x, code) if c == "cv" else float(c)
    weight, bias, converged = _fit(x, code, strength)
    return LinearProbe(weight, bias, classes, normalise, strength, converged)


def _fit(x: Doubles, code: Labels, strength: float) -> tuple[Doubles, Doubles, bool]:
    """Fit on codes 0 .. c - 1; give weight (c, d), bias (c,) and whether it converged."""
    # of two classes the library penalises the difference of their rows, which is twice the penalty of the two rows
    factor = 2.0 if code.max() == 1 else 1.0
    model: Any = LogisticRegression(C=factor * strength, max_iter=STEPS, tol=TOLERANCE)
    alone = threadpool_limits(1, user_api="blas") if x.size < SHARED else nullcontext()
    with alone, warnings.catch_warnings():  # `converged` says it, and is part of the result
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one label a class is our trade
        model.fit(x, code)
    weight, bias = cast("Doubles", model.coef_), cast("Doubles", model.intercept_)
    if len(weight) == 1:  # two classes: the library keeps the difference of their logits
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return weight, bias, bool(np.max(model.n_iter_) < STEPS)


def _cross_validated(x: Doubles, code: Labels) -> float:
    folds = min(FOLDS, int(np.bincount(code).min()))
    if folds < 2:
        return 10.0
    splitter: Any = StratifiedKFold(folds, shuffle=True, random_state=0)
    splits = list(splitter.split(x, code))
    losses: list[float] = []
    for strength in GRID:
        loss = 0.0
        for train, held_out in splits:
            weight, bias, _ = _fit(x[train], code[train], strength)
            log_probability = log_softmax(x[held_out] @ weight.T + bias, axis=1)
            loss -= float(log_probability[np.arange(len(held_out)), code[held_out]].sum())
        losses.append(loss)
    return GRID[int(np.argmin(losses))]
