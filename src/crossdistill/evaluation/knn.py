"""Nearest neighbours by cosine: what features are worth without any training."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.errors import ConfigError
from crossdistill.evaluation._checks import Labels, feature_rows, label_column, unit_rows

BLOCK = 1024
"""Rows of x compared at once, which bounds memory to BLOCK times the training rows."""


def knn_predict(train_x: ArrayLike, train_y: ArrayLike, x: ArrayLike, *, k: int = 5) -> Labels:
    """Predict by a vote of the k nearest training rows by cosine, each with weight 1 + cosine.

    Args:
        train_x: Features (n, d).
        train_y: Labels (n,).
        x: Features (m, d) to be labelled.
        k: Neighbours; n where there are fewer. Classes with equal votes: that of the nearest neighbour among them.

    Returns:
        Labels (m,).

    Raises:
        DataError: If shapes do not fit or a feature is not finite.
        ConfigError: If k < 1.
    """
    if k < 1:
        raise ConfigError(f"k-NN needs k >= 1; received {k}")
    known = unit_rows(feature_rows("train_x", train_x))
    label = label_column("train_y", train_y, len(known))
    asked = unit_rows(feature_rows("x", x, width=known.shape[1]))
    classes, code = np.unique(label, return_inverse=True)
    k = min(k, len(known))
    found = [_vote(asked[i : i + BLOCK] @ known.T, code, len(classes), k) for i in range(0, len(asked), BLOCK)]
    return classes[np.concatenate(found)]


def _vote(cosine: Labels, code: Labels, classes: int, k: int) -> Labels:
    """Give the winning code (m,) from cosines (m, n)."""
    rows = np.arange(len(cosine))[:, None]
    near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    near = near[rows, np.argsort(-cosine[rows, near], axis=1, kind="stable")]
    votes = np.zeros((len(cosine), classes))
    np.add.at(votes, (np.broadcast_to(rows, near.shape), code[near]), 1.0 + cosine[rows, near])
    # among the neighbours, nearest first, the first whose class has the most votes
    support = votes[rows, code[near]]
    return code[near][np.arange(len(cosine)), support.argmax(axis=1)]
