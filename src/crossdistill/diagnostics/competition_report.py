"""What became of each modality in a network that was trained on several: from what its branches say, held out.

In a network whose logits are a sum of branches, one for each modality, joint training may learn only some of them: what
the winner explains leaves no error for the loser. A teacher trained on both then does not hold its loser's knowledge.

    competition_report      who won which class, which branches are used, what an ensemble of networks alone would gain
    probe_gap               of an encoder in the joint network and the same trained alone: the fairest single number
    LearningSpeed           which branch leads during training, from gradients and weights

A branch "won" a class if its mean contribution to that class's logit, on samples of the class, is the largest. Early
fusion, attention between modalities and batch norm have other dynamics: nothing here is said of them.

Source: Huang et al. 2022, see `fusion_network`; utilisation of Wu et al. 2022 and learning speed of its released code,
the former from memory, unverified; limits of "lost" are ours. Shapes: n pairs, r modalities, c classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from crossdistill.diagnostics.estimate import Estimate
from crossdistill.diagnostics.labelled import UNKNOWN, Counted, check_classes, labelled_pairs
from crossdistill.diagnostics.probes import FOLDS, RANDOM_FEATURES, Ridge, block, dealt_folds, expanded
from crossdistill.errors import DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, label_column

LOST_GAP, LOST_USE = -0.05, 0.05
"""Of a lost modality: its probe gap is below the one and its utilisation below the other (ours)."""
FAILED = 0.5
"""Share of its recall alone below which a branch has failed a class."""


@dataclass(frozen=True, eq=False)
class CompetitionReport:
    """What became of each modality in one joint network; made by `competition_report`.

    Attributes:
        modalities: Their names, r.
        classes: (c,) labels as they were given.
        contribution: (r, c) mean contribution to a class's logit on samples of that class, less its mean over all.
        recall: (r, c) share of a class that a branch alone has right.
        recall_alone: (r, c) the same of networks trained alone; None without these.
        joint: Accuracy of the joint network.
        branch: Accuracy of each branch, the others left out; partly low because of offsets that fitted the sum.
        utilisation: (accuracy less that without this modality) / accuracy, "without" being its mean contribution.
        headroom: Accuracy less the joint network's of the "ensemble" of networks trained alone (averaged
            log-probabilities) and of the "best" of them on these pairs; empty without. Above 0, competition costs.
    """

    modalities: tuple[str, ...]
    classes: np.ndarray
    contribution: Doubles
    recall: Doubles
    recall_alone: Doubles | None
    joint: Estimate
    branch: Mapping[str, Estimate]
    utilisation: Mapping[str, Estimate]
    headroom: Mapping[str, Estimate]

    @property
    def winners(self) -> tuple[str, ...]:
        """The modality that won each class, c."""
        winners: list[int] = self.contribution.argmax(axis=0).tolist()
        return tuple(self.modalities[r] for r in winners)

    @property
    def win_share(self) -> dict[str, float]:
        """Share of classes that each modality won; a few classes say little."""
        return {name: self.winners.count(name) / len(self.classes) for name in self.modalities}

    @property
    def failed(self) -> dict[str, float]:
        """Share of classes where a branch has less than half of its recall alone; empty without networks alone."""
        if self.recall_alone is None:
            return {}
        gone = self.recall < FAILED * self.recall_alone
        return dict(zip(self.modalities, gone.mean(axis=1).tolist(), strict=True))

    def lost(self, gaps: Mapping[str, Estimate]) -> tuple[str, ...]:
        """Name the modalities that joint training lost, given `probe_gap` of each."""
        return tuple(
            name for name, gap in gaps.items() if gap.value < LOST_GAP and self.utilisation[name].value < LOST_USE
        )


def competition_report(
    branches: Mapping[str, ArrayLike],
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    alone: Mapping[str, ArrayLike] | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> CompetitionReport:
    """Say what became of each modality in a joint network, from what its branches say on held-out pairs.

    Args:
        branches: Modality to its contribution to the logits, (n, c): in late fusion the modality's slice of the head
            times its features. Two or more; their sum, and `bias`, are the joint logits.
        labels: (n,) whole numbers 0 to c - 1, columns of the logits; -1 where unknown, left out.
        bias: (c,) of the head, shared by the branches; none if not given.
        alone: Modality to the logits (n, c) of a network trained on it alone, for the same pairs.
        groups: (n,) what a pair belongs to; errors are then of groups.
        level: Of the intervals, normal ones.

    Raises:
        DataError: If shapes do not fit, names differ or a number is not finite.
        ConfigError: If `level` is not in (0, 1).
        NotMeaningful: If there are fewer than two classes among the labels, or one has fewer than 10 rows.
    """
    names = tuple(branches)
    if len(names) < 2 or (alone is not None and set(alone) != set(names)):
        raise DataError(
            f"branches must be of two modalities or more, and alone of the same; received {', '.join(names)}"
        )
    given = {name: feature_rows(f"branches['{name}']", z) for name, z in branches.items()}
    n, c = given[names[0]].shape
    apart = {} if alone is None else {name: feature_rows(f"alone['{name}']", alone[name]) for name in names}
    if any(z.shape != (n, c) for z in (*given.values(), *apart.values())):
        raise DataError(f"all logits must be of the same pairs and classes, ({n}, {c}) as those of '{names[0]}'")
    shift = np.zeros(c) if bias is None else np.asarray(bias, dtype=np.float64)
    if shift.shape != (c,) or not np.isfinite(shift).all():
        raise DataError(f"bias must be ({c},), finite; received shape {shift.shape}")
    label = label_column("labels", labels, n)
    if label.dtype.kind not in "iu" or label.min() < UNKNOWN or label.max() >= c:
        raise DataError(f"labels must be whole numbers from 0 to {c - 1}, or -1 where unknown")
    rows = np.flatnonzero(label != UNKNOWN)
    code, seen = label[rows], np.unique(label[rows])
    check_classes(seen, np.bincount(code, minlength=c)[seen])
    count = Counted(None if groups is None else label_column("groups", groups, n)[rows], len(rows), level)
    z = np.stack([given[name][rows] for name in names])
    whole = z.sum(axis=0) + shift
    right = right_rows(whole, code)
    single = np.stack([right_rows(branch + shift, code) for branch in z])
    without = np.stack([right_rows(whole - branch + branch.mean(axis=0), code) for branch in z])
    by_class = (code[:, None] == seen).astype(np.float64) / np.bincount(code, minlength=c)[seen]
    said = (z - z.mean(axis=1, keepdims=True))[:, np.arange(len(rows)), code]
    recall_alone, headroom = None, {}
    if apart:
        other = np.stack([apart[name][rows] for name in names])
        own = np.stack([right_rows(logits, code) for logits in other])
        recall_alone = own @ by_class
        together = right_rows(log_softmax(other, axis=2).sum(axis=0), code)
        headroom = {
            "ensemble": count.mean(together - right, "accuracy of the networks alone, averaged, less the joint one's"),
            "best": count.mean(own[own.mean(axis=1).argmax()] - right, "accuracy of the best alone less the joint's"),
        }
    return CompetitionReport(
        names,
        seen,
        said @ by_class,
        single @ by_class,
        recall_alone,
        count.mean(right, "accuracy"),
        {name: count.mean(single[r], "accuracy of a branch") for r, name in enumerate(names)},
        {name: count.share(right - without[r], right, "utilisation") for r, name in enumerate(names)},
        headroom,
    )


def probe_gap(
    joint: ArrayLike,
    alone: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Give the accuracy of a ridge probe on an encoder's features in the joint network less that trained alone.

    Below 0 the encoder is under-trained: its modality lost.

    Args:
        joint: (n, d) features of the encoder in the joint network, on pairs it was not trained on.
        alone: (n, any) of the same encoder trained alone.
        labels: (n,) classes; -1 where unknown, left out.
        groups: (n,) what must not be split.
        level: Of the interval, a normal one of pairs or groups; probes are not fitted anew.
        seed: Of folds and random features.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are fewer than two classes, or one has fewer than 10 rows.
    """
    x, y, label, group = labelled_pairs("joint", joint, "alone", alone, labels, groups, seed)
    classes, code = np.unique(label, return_inverse=True)
    count = Counted(group, len(code), level)
    rng = np.random.default_rng(seed)
    fold = dealt_folds(code, count.unit, rng)
    onehot = np.eye(len(classes))[code]
    right = [
        right_rows(Ridge(expanded([block(side, rng)], rng), fold).scores(onehot) + onehot.mean(axis=0), code)
        for side in (x, y)
    ]
    settings = {"probe": f"ridge on features and {RANDOM_FEATURES} random ReLU features", "folds": FOLDS, "seed": seed}
    return count.mean(right[0] - right[1], "probe accuracy in the joint network less alone", settings)


class LearningSpeed:
    """Which branch learns faster, from gradients and weights: the sum over steps of |gradient|^2 / |weights|^2.

    Call `add` after each backward pass; an early leader is the likely winner. Adam rescales steps, and so the race:
    watch it with the optimiser that is used.
    """

    def __init__(self) -> None:
        self.speed: dict[str, float] = {}

    def add(self, branches: Mapping[str, Iterable[tuple[ArrayLike, ArrayLike]]]) -> None:
        """Count one step: modality to (weight, gradient) of its parameters, arrays or tensors on the CPU.

        Raises:
            DataError: If all weights of a branch are 0.
        """
        for name, parameters in branches.items():
            weights, gradients = 0.0, 0.0
            for weight, gradient in parameters:
                weights += float(np.square(np.asarray(weight, dtype=np.float64)).sum())
                gradients += float(np.square(np.asarray(gradient, dtype=np.float64)).sum())
            if weights == 0:
                raise DataError(f"all weights of '{name}' are 0; learning speed is relative to them")
            self.speed[name] = self.speed.get(name, 0.0) + gradients / weights

    @property
    def leads(self) -> dict[str, float]:
        """Base-10 logarithm of each branch's speed over the fastest other's; above 0 it leads."""
        if len(self.speed) < 2 or not min(self.speed.values()) > 0:
            raise NotMeaningful("learning speeds compare two branches or more that have moved")
        return {
            name: float(np.log10(speed / max(other for rival, other in self.speed.items() if rival != name)))
            for name, speed in self.speed.items()
        }


def right_rows(logits: Doubles, code: Whole) -> Doubles:
    """Say which rows of logits (n, c) have their largest at the label, (n,) 0 or 1."""
    return (logits.argmax(axis=1) == code).astype(np.float64)
