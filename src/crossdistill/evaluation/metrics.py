"""Metrics as pure functions; those that can give one value a sample do, as paired tests need them.

Shapes: n samples, c classes, q queries, m candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossdistill.errors import DataError
from crossdistill.evaluation._checks import Doubles, label_column


def correct(prediction: ArrayLike, label: ArrayLike) -> NDArray[np.bool_]:
    """Tell sample by sample whether the prediction (n,) is the label (n,)."""
    truth = label_column("label", label)
    return label_column("prediction", prediction, len(truth)) == truth


def accuracy(prediction: ArrayLike, label: ArrayLike) -> float:
    """Give the share of the predictions (n,) that are the label (n,)."""
    return float(correct(prediction, label).mean())


def balanced_accuracy(prediction: ArrayLike, label: ArrayLike) -> float:
    """Give the mean over the classes that occur in `label` (n,) of the share predicted right."""
    truth = label_column("label", label)
    _, row, count = np.unique(truth, return_inverse=True, return_counts=True)
    return float((np.bincount(row, weights=correct(prediction, truth)) / count).mean())


def macro_f1(prediction: ArrayLike, label: ArrayLike) -> float:
    """Give the mean of F1 over the classes that occur in predictions (n,) or labels (n,)."""
    truth = label_column("label", label)
    guess = label_column("prediction", prediction, len(truth))
    classes, codes = np.unique(np.concatenate([truth, guess]), return_inverse=True)
    true_codes, guess_codes = codes[: len(truth)], codes[len(truth) :]
    right = np.bincount(true_codes[true_codes == guess_codes], minlength=len(classes))
    both = np.bincount(true_codes, minlength=len(classes)) + np.bincount(guess_codes, minlength=len(classes))
    return float((2 * right / both).mean())


def negative_log_likelihood(probability: ArrayLike, label: ArrayLike) -> Doubles:
    """Give -log P(label) of each sample, nats (n,).

    Args:
        probability: (n, c), rows sum to one. A zero counts as the machine's precision, so that one sure mistake does
            not make the mean infinite (36 nats in float64).
        label: Columns (n,), integers in 0 .. c - 1.

    Raises:
        DataError: If shapes or labels do not fit.
    """
    p, column = _probabilities(probability, label)
    return -np.log(np.maximum(p[np.arange(len(p)), column], np.finfo(np.float64).eps))


def expected_calibration_error(probability: ArrayLike, label: ArrayLike, *, bins: int = 15) -> float:
    """Give the mean gap between confidence and accuracy in bins of equal width (Guo et al. 2017, eq. 3).

    Args:
        probability: (n, c), rows sum to one.
        label: Columns (n,), integers in 0 .. c - 1.
        bins: Bins (i / bins, (i + 1) / bins] of the largest probability; 15 as in the paper.

    Raises:
        DataError: If shapes or labels do not fit.
    """
    p, column = _probabilities(probability, label)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == column
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def reciprocal_rank(score: ArrayLike, relevant: ArrayLike) -> Doubles:
    """Give 1 / rank of the first relevant candidate of each query (q,).

    Args:
        score: (q, m), any sign; higher is nearer. Ties count against the query, so constant scores win nothing.
        relevant: (q, m) bool, at least one true in each row.

    Raises:
        DataError: If shapes do not fit or a query has no relevant candidate.
    """
    hits, _ = _ranking(score, relevant)
    return 1.0 / (hits.argmax(axis=1) + 1)


def recall_at_k(score: ArrayLike, relevant: ArrayLike, k: int) -> Doubles:
    """Give the share of its relevant candidates that each query has among its first k (q,); ties count against it.

    Args:
        score: (q, m), any sign; higher is nearer.
        relevant: (q, m) bool, at least one true in each row.
        k: Candidates looked at, >= 1.

    Raises:
        DataError: If shapes do not fit, a query has no relevant candidate, or k < 1.
    """
    if k < 1:
        raise DataError(f"k must be >= 1; received {k}")
    hits, _ = _ranking(score, relevant)
    return hits[:, :k].sum(axis=1) / hits.sum(axis=1)


def average_precision(score: ArrayLike, relevant: ArrayLike) -> Doubles:
    """Give the area below the steps of precision over recall of each query (q,), tied scores taken together.

    Args:
        score: (q, m), any sign; higher is nearer.
        relevant: (q, m) bool, at least one true in each row.

    Raises:
        DataError: If shapes do not fit or a query has no relevant candidate.
    """
    hits, ordered = _ranking(score, relevant)
    m = hits.shape[1]
    last = np.ones_like(hits)  # the last place of each run of tied scores
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.full(hits.shape, m, dtype=np.int64)
    ends[last] = np.nonzero(last)[1]
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(hits.cumsum(axis=1), ends, axis=1) / (ends + 1)
    return (precision * hits).sum(axis=1) / hits.sum(axis=1)


def _ranking(score: ArrayLike, relevant: ArrayLike) -> tuple[NDArray[np.bool_], Doubles]:
    """Order each query's candidates, irrelevant ones first among equals; give relevance and scores in that order."""
    scores, truth = np.asarray(score, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if scores.ndim != 2 or scores.shape != truth.shape or 0 in scores.shape:
        raise DataError(f"score and relevant must both be (q, m); received {scores.shape} and {truth.shape}")
    if np.isnan(scores).any():
        raise DataError(f"the scores of query {int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])} hold a NaN")
    if not truth.any(axis=1).all():
        raise DataError(f"query {int(np.flatnonzero(~truth.any(axis=1))[0])} has no relevant candidate; leave it out")
    order = np.lexsort((truth, -scores), axis=1)
    return np.take_along_axis(truth, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _probabilities(probability: ArrayLike, label: ArrayLike) -> tuple[Doubles, NDArray[np.int64]]:
    p = np.asarray(probability, dtype=np.float64)
    if p.ndim != 2 or 0 in p.shape or not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"probabilities must be (n, c) within [0, 1]; received shape {p.shape}")
    column = label_column("label", label, len(p))
    if not np.issubdtype(column.dtype, np.integer) or column.min() < 0 or column.max() >= p.shape[1]:
        raise DataError(
            f"labels must be columns, integers in 0 .. {p.shape[1] - 1}; "
            f"received {column.dtype} {column.min()} .. {column.max()}"
        )
    return p, column.astype(np.int64)
