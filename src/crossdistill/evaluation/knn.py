"""Nearest neighbours: what features are worth without any training."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.errors import ConfigError, suggest
from crossdistill.evaluation._checks import Doubles, Labels, feature_rows, label_column, unit_rows

Nearness = Literal["cosine", "euclidean"]

BLOCK = 1024
"""Rows of x compared at once, which bounds memory to BLOCK times the training rows."""


def knn_predict(
    train_x: ArrayLike, train_y: ArrayLike, x: ArrayLike, *, k: int = 5, metric: Nearness = "cosine"
) -> Labels:
    """Predict by a vote of the k nearest training rows.

    Args:
        train_x: Features (n, d).
        train_y: Labels (n,).
        x: Features (m, d) to be labelled.
        k: Neighbours; n where there are fewer. Classes with equal votes: that of the nearest neighbour among them.
        metric: "cosine", each vote of weight 1 + cosine, for embeddings, whose length says nothing; "euclidean", each
            of weight 1, for inputs as they were measured.

    Returns:
        Labels (m,).

    Raises:
        DataError: If shapes do not fit or a feature is not finite.
        ConfigError: If k < 1, or the metric is another word.
    """
    if k < 1:
        raise ConfigError(f"k-NN needs k >= 1; received {k}")
    if metric not in get_args(Nearness):
        raise ConfigError(f"metric: '{metric}' is none of the words allowed{suggest(metric, get_args(Nearness))}")
    known = feature_rows("train_x", train_x)
    label = label_column("train_y", train_y, len(known))
    asked = feature_rows("x", x, width=known.shape[1])
    if metric == "cosine":
        known, asked = unit_rows(known), unit_rows(asked)
    classes, code = np.unique(label, return_inverse=True)
    k = min(k, len(known))
    half = 0.0 if metric == "cosine" else 0.5 * np.square(known).sum(axis=1)  # the nearest has the largest x.y - y.y/2
    found: list[Labels] = []
    for start in range(0, len(asked), BLOCK):
        near = asked[start : start + BLOCK] @ known.T - half
        found.append(_vote(near, code, len(classes), k, weighted=metric == "cosine"))
    return classes[np.concatenate(found)]


def _vote(nearness: Doubles, code: Labels, classes: int, k: int, *, weighted: bool) -> Labels:
    """Give the winning code (m,) from what is larger for nearer rows (m, n)."""
    rows = np.arange(len(nearness))[:, None]
    near = np.argpartition(-nearness, k - 1, axis=1)[:, :k]
    near = near[rows, np.argsort(-nearness[rows, near], axis=1, kind="stable")]
    votes = np.zeros((len(nearness), classes))
    weight = 1.0 + nearness[rows, near] if weighted else 1.0
    np.add.at(votes, (np.broadcast_to(rows, near.shape), code[near]), weight)
    # among the neighbours, nearest first, the first whose class has the most votes
    support = votes[rows, code[near]]
    return code[near][np.arange(len(nearness)), support.argmax(axis=1)]
