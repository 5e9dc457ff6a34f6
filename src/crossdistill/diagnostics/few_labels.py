"""What few labels say of several embeddings of the same rows: paired cross-validation, and episodes for one a class.

    fold:   labels of the other folds ─► kernel-ridge probe of each embedding ─► hits on the held-out rows
                                      └► label spreading ─► pseudo-labels of all rows ─► hits against those, too

The held-out rows' own labels take part in neither probe nor pseudo-label. Our own.

Shapes: m rows, n of them labelled, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from crossdistill.diagnostics.estimate import Estimate, wilson_estimate
from crossdistill.diagnostics.ppi import ppi_mean
from crossdistill.diagnostics.spreading import spread
from crossdistill.errors import NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole

PROBE = "kernel ridge on one-hot labels, weight 0.3, bias 0.1"
WEIGHT, BIAS = 0.3, 0.1
REPEATS, FOLDS = 2, 10
EPISODES = 3
"""Draws of pseudo-labelled rows that an episode's accuracy is a mean of."""
UNLABELLED = 500
"""Unlabelled rows that pseudo-labels are looked at on, at most."""


@dataclass(frozen=True, eq=False)
class PairedScores:
    """Hits of several embeddings' probes on the same folds; made by `paired_cross_validation`.

    Attributes:
        hits: By embedding (n,), share of repeats in which the labelled row was classed rightly.
        pseudo: By embedding (n,), the same scored against pseudo-labels.
        pseudo_mean: By embedding, the mean of that over unlabelled rows, pseudo-classes counting alike; 0 of none.
        n_unlabelled: How many unlabelled rows, or groups of them where there are groups.
        weights: (n,) of mean 1: classes count alike.
        groups: (n,) what a labelled row belongs to, for the errors; None where each row is its own.
        predicted: By embedding (repeats, n), the class that each labelled row was given.
        spread: (repeats, n), its pseudo-label.
    """

    hits: Mapping[str, Doubles]
    pseudo: Mapping[str, Doubles]
    pseudo_mean: Mapping[str, float]
    n_unlabelled: int
    weights: Doubles
    groups: Whole | None
    predicted: Mapping[str, Whole]
    spread: Whole

    def difference(self, first: str, second: str, *, level: float) -> Estimate:
        """Give the accuracy of one embedding less that of another, prediction-powered, classes counting alike."""
        return powered_difference(self, first, self, second, level=level)

    def accuracy(self, name: str, *, level: float) -> Estimate:
        """Give the cross-validated balanced accuracy of one embedding, from labelled rows alone."""
        values = _influences(self.hits[name], self.weights, self.groups)
        value, n = float(values.mean()), len(values)
        return wilson_estimate(
            value, float(values.std(ddof=1)) / n**0.5, n, level=level, kind=f"cross-validation on labelled {self.of}"
        )

    @property
    def of(self) -> str:
        """What errors are counted over."""
        return "rows" if self.groups is None else "groups"


def powered_difference(scores: PairedScores, name: str, others: PairedScores, other: str, *, level: float) -> Estimate:
    """Give the accuracy of an embedding less that of one in other scores of the same rows and folds.

    Each is scored against the pseudo-labels of its own graph, which leaves the mean unbiased.
    """
    found = ppi_mean(
        _influences(scores.hits[name] - others.hits[other], scores.weights, scores.groups),
        _influences(scores.pseudo[name] - others.pseudo[other], scores.weights, scores.groups),
        scores.pseudo_mean[name] - others.pseudo_mean[other],
        scores.n_unlabelled,
        level=level,
    )
    return replace(found, kind=f"prediction-powered mean over labelled {scores.of}")


def paired_cross_validation(
    embeddings: Mapping[str, Doubles],
    operator: Doubles,
    labelled: Whole,
    code: Whole,
    *,
    unlabelled: Whole | None = None,
    groups: Whole | None = None,
    seed: int = 0,
) -> PairedScores:
    """Score all embeddings on the same stratified folds of the labelled rows, two repeats.

    Args:
        embeddings: By name (m, any width), unit rows.
        operator: (m, n), columns of `label_spreading` for the labelled rows.
        labelled: Positions (n,) of the labelled rows.
        code: Their classes (n,), 0 .. c - 1, each with two rows or more.
        unlabelled: Positions (any,) of the rows that pseudo-labels are looked at on; None takes all that are not
            labelled, and none leaves plain cross-validation. They must be to every embedding what the labelled rows
            are: where a network was trained on them and not on the labelled ones, differences are biased.
        groups: (m,) of all rows; no group is on both sides of a fold, where every class is in two groups. Errors are
            over groups, and no unlabelled row is looked at that shares one with a labelled row.
        seed: Of folds, and of the unlabelled rows where there are more than 500.

    Raises:
        NotMeaningful: If a class has a single label: held out, it has no example.
    """
    classes, least = int(code.max()) + 1, int(np.bincount(code).min())
    if least < 2:
        raise NotMeaningful(
            f"cross-validation needs two labels of each class; class {int(np.bincount(code).argmin())} has {least}"
        )
    rng = np.random.default_rng(seed)
    rest = np.setdiff1d(np.arange(len(operator)) if unlabelled is None else unlabelled, labelled)
    mine = None if groups is None else groups[labelled]
    if groups is not None:
        rest = rest[~np.isin(groups[rest], groups[labelled])]
    rest = np.sort(rng.choice(rest, UNLABELLED, replace=False)) if len(rest) > UNLABELLED else rest
    probes = {name: _Probe(rows[np.concatenate([labelled, rest])], len(labelled)) for name, rows in embeddings.items()}
    n, reach = len(labelled), operator[np.concatenate([labelled, rest])]
    hits, pseudo = ({name: np.zeros(n) for name in probes} for _ in range(2))
    predicted = {name: np.zeros((REPEATS, n), dtype=np.int64) for name in probes}
    means: dict[str, float] = dict.fromkeys(probes, 0.0)
    pseudo_labels = np.zeros((REPEATS, n), dtype=np.int64)
    for repeat in range(REPEATS):
        folds = _folds(code, mine, least, REPEATS * seed + repeat)
        for held in folds:
            kept = np.setdiff1d(np.arange(n), held)
            found = spread(reach[:, kept], code[kept], classes)
            balance = balance_weights(found[n:], classes)
            pseudo_labels[repeat, held] = found[held]
            for name, probe in probes.items():
                answer = probe.without(held, code, classes)
                predicted[name][repeat, held] = answer[held]
                hits[name][held] += (answer[held] == code[held]) / REPEATS
                pseudo[name][held] += (answer[held] == found[held]) / REPEATS
                means[name] += float((balance * (answer[n:] == found[n:])).sum()) / (REPEATS * len(folds))
    count = len(rest) if groups is None else len(np.unique(groups[rest]))
    weights = n * balance_weights(code, classes)
    return PairedScores(hits, pseudo, means, count, weights, mine, predicted, pseudo_labels)


def episode_accuracies(
    embeddings: Mapping[str, Doubles], pseudo: Whole, shots: int, *, seed: int = 0
) -> dict[str, float]:
    """Give the accuracy of each embedding's probe in episodes of pseudo-labelled rows, a mean over three draws.

    Args:
        embeddings: By name (m, any width), unit rows.
        pseudo: (m,) pseudo-labels; in a draw, `shots` rows of each class teach the probe and the others score it.
        shots: Rows of each pseudo-class; fewer of one that has no more than these.
        seed: Of the draws.

    Returns:
        Balanced accuracies in [0, 1].

    Raises:
        NotMeaningful: If the pseudo-labels are all of one class, or no row is left to score.
    """
    rng, (names, code) = np.random.default_rng(seed), np.unique(pseudo, return_inverse=True)
    if len(names) < 2 or len(code) <= shots * len(names):
        raise NotMeaningful("label spreading left one class, or no row beside those of an episode; label more rows")
    found = dict.fromkeys(embeddings, 0.0)
    for _ in range(EPISODES):
        drawn = np.concatenate([rng.permutation(np.flatnonzero(code == c))[:shots] for c in range(len(names))])
        scored = np.setdiff1d(np.arange(len(code)), drawn)
        balance = balance_weights(code[scored], len(names))
        for name, rows in embeddings.items():
            answer = probe_answers(rows[drawn], code[drawn], rows[scored], len(names))
            found[name] += float((balance * (answer == code[scored])).sum()) / EPISODES
    return found


def probe_answers(known: Doubles, code: Whole, asked: Doubles, classes: int) -> Whole:
    """Fit the kernel-ridge probe on rows (n, d) with classes (n,) and answer for rows (m, d): classes (m,)."""
    kernel = known @ known.T + BIAS
    kernel[np.diag_indices_from(kernel)] += WEIGHT
    return ((asked @ known.T + BIAS) @ cho_solve(cho_factor(kernel), np.eye(classes)[code])).argmax(axis=1)


def balance_weights(code: Whole, classes: int) -> Doubles:
    """Give weights (n,) that sum to 1 and let the classes that occur count alike."""
    counts = np.bincount(code, minlength=classes)
    return 1.0 / (counts[code] * max(1, int((counts > 0).sum())))


class _Probe:
    """Kernel ridge that is refitted without some labelled rows at the price of a product.

    Args:
        rows: (n + u, d), the labelled rows first.
        n: How many those are.
    """

    def __init__(self, rows: Doubles, n: int) -> None:
        self.kernel = rows @ rows[:n].T + BIAS
        self.inverse = np.linalg.inv(self.kernel[:n] + WEIGHT * np.eye(n))

    def without(self, held: Whole, code: Whole, classes: int) -> Whole:
        """Give the classes (n + u,) that the probe answers when `held` (h,) take no part in it."""
        hot = np.eye(classes)[code]
        hot[held] = 0.0
        # the inverse of a block from the inverse of the whole (Schur complement)
        dual = self.inverse @ hot
        dual -= self.inverse[:, held] @ np.linalg.solve(self.inverse[np.ix_(held, held)], dual[held])
        dual[held] = 0.0
        return (self.kernel @ dual).argmax(axis=1)


def _folds(code: Whole, groups: Whole | None, least: int, seed: int) -> list[Whole]:
    """Give the held-out labelled rows of each stratified fold; no group is split where every class has two."""
    count = min(least, FOLDS)
    if groups is not None:
        fewest = min(len(np.unique(groups[code == c])) for c in range(int(code.max()) + 1))
        if fewest >= 2:
            by_group: Any = StratifiedGroupKFold(min(fewest, count), shuffle=True, random_state=seed)
            held = [fold for _, fold in by_group.split(code, code, groups)]
            return [fold for fold in held if len(fold)]  # large groups may fill fewer
    by_row: Any = StratifiedKFold(count, shuffle=True, random_state=seed)
    return [fold for _, fold in by_row.split(code, code)]


def _influences(values: Doubles, weights: Doubles, groups: Whole | None) -> Doubles:
    """Give numbers whose mean is the weighted mean of values (n,), and whose variance by their count is its variance.

    One a row, or one a group, of its rows' summed influences: rows of a group are no independent draws.
    """
    centre = float((weights * values).mean())
    influence: Doubles = weights * (values - centre)
    if groups is not None:
        names, member = np.unique(groups, return_inverse=True)
        sums = np.zeros(len(names))
        np.add.at(sums, member, influence)
        influence = sums
    return centre + influence * (len(influence) / len(values))
