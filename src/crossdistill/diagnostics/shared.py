"""What do two modalities know of the label together, each alone, and only side by side? Estimates for real data.

    source, target, both   V-information I(X -> Y) = mean of log p(y|x) / p(y), out of fold, of a ridge probe on X
    followed               the same of what one modality foretells of the other's probe: E[ z_source | target ]
    shared                 the least of source, target and both directions of `followed`
    only_source            source - shared;  only_target likewise
    synergy                both - source - target + shared
    redundancy             sum_y p(y) min over modalities of the class's own information: I_min, for comparison

The four parts add up to `both`. **They are no gamma**: gamma counts deciding features, which data do not show; where
they are known, `venn_ratios` gives it. Neither are they the information that is there, but what a shallow probe finds.

Why not I_min or BROJA, the usual redundancies? Those hang on p(source, label) and p(target, label) alone, and so cannot
tell a feature that both modalities have from two that say as much: of MFH's worlds without any shared feature they call
everything shared. A modality that follows the other's probe has what it uses; that is also what a student must do.

Source: our own definition of `shared`; V-information of Xu et al. 2020, I_min of Williams & Beer 2010, both from
memory, unverified. Shapes: n pairs, c classes, p columns of a probe, h folds. All in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from crossdistill.diagnostics.estimate import Estimate, check_level
from crossdistill.diagnostics.labelled import labelled_pairs
from crossdistill.diagnostics.probes import (
    FOLDS,
    MOST_COLUMNS,
    RANDOM_FEATURES,
    Ridge,
    block,
    check_folds,
    dealt_folds,
    expanded,
    log_probabilities,
)
from crossdistill.diagnostics.varying import check_varies
from crossdistill.errors import NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole

LEAST_UNITS = 10
"""Groups for an interval; there are more pairs than that, as each class has ten."""
RESAMPLES = 400
"""Of the bootstrap, whose standard deviation is taken: it is then known to 4 %."""


@dataclass(frozen=True)
class SharedInformation:
    """What two modalities know of the label, in nats; made by `shared_information`.

    Estimates are not cut at 0: out of fold, a probe without anything to find is a little worse than class frequencies.

    Attributes:
        shared: What each of them has and can foretell of the other.
        only_source: What the source's probe finds beyond that.
        only_target: The target's likewise.
        synergy: What is found in both together beyond the other three parts; negative where the probe of both, which
            has more to learn, falls short of them.
        source: Found in the source alone: shared + only_source.
        target: In the target alone: shared + only_target.
        both: In the two together: the sum of the first four.
        redundancy: I_min, what both know as much of class by class, be it the same or not.
    """

    shared: Estimate
    only_source: Estimate
    only_target: Estimate
    synergy: Estimate
    source: Estimate
    target: Estimate
    both: Estimate
    redundancy: Estimate


def shared_information(
    source: ArrayLike,
    target: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> SharedInformation:
    """Estimate the shared and the specific information of two modalities about a label; the module says which.

    Probes are ridge regressions of the classes on the features and 256 random ReLU features of them, out of five folds,
    sharpened to probabilities by one factor. The penalty is the mean squared length of a row: Bayes' choice where half
    of the variance can be explained. What one modality follows of the other is fitted in nested folds, so that no probe
    has seen the label of a row that it speaks of.

    Args:
        source: (n, any) features of the source.
        target: (n, any) of the target; row i is of the same pair.
        labels: (n,) classes; rows of the whole number -1, unknown, are left out.
        groups: (n,) what must not be split, a person or a scene: whole groups are left out and resampled.
        level: Of the intervals, value ± t times the standard deviation of a bootstrap of pairs or groups. Probes are
            not fitted anew for it: what another training set would have given is not in it.
        seed: Of folds, random features and resamples.

    Raises:
        DataError: If shapes do not fit or a feature is not finite.
        ConfigError: If `level` is not in (0, 1) or the seed is negative.
        NotMeaningful: If there is one class alone, a class has fewer than 10 rows or is in too few groups, or there are
            fewer than 10 pairs or groups, or no column of a modality varies.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a, b, common = rng.normal(size=(3, 1000))  # the source has a and common, the target b and common
        >>> found = shared_information(np.stack([a, common], 1), np.stack([b, common], 1), a + common > 0)
        >>> found.shared.value > 0.05, found.only_source.value > 0.2, abs(found.only_target.value) < 0.05
        (True, True, True)
    """
    check_level(level)
    x, y, label, group = labelled_pairs("source", source, "target", target, labels, groups, seed)
    check_varies("source", x)
    check_varies("target", y)
    classes, code = np.unique(label, return_inverse=True)
    unit = np.arange(len(code)) if group is None else np.unique(group, return_inverse=True)[1]
    units = int(unit.max()) + 1
    if units < LEAST_UNITS:
        raise NotMeaningful(f"an interval needs {LEAST_UNITS} groups or more; received {units}")
    rng = np.random.default_rng(seed)
    fold = dealt_folds(code, unit, rng)
    check_folds(classes, code, fold)
    onehot = np.eye(len(classes))[code]
    first, second = block(x, rng), block(y, rng)
    probes = [Ridge(expanded(blocks, rng), fold) for blocks in ([first], [second], [first, second])]
    said = [probe.scores(onehot) for probe in probes]
    said += [probes[1].follow(probes[0], onehot), probes[0].follow(probes[1], onehot)]
    local = np.stack([_information(scores, code, fold) for scores in said], axis=1)
    values, errors = _resampled(local, code, unit, rng)
    wide = max(x.shape[1], y.shape[1]) > MOST_COLUMNS
    settings = {
        "definition": "what one modality follows of the other's probe; I_min for redundancy",
        "unit": "nats",
        "folds": FOLDS,
        "random_features": RANDOM_FEATURES,
        "classes": len(classes),
        "columns": [x.shape[1], y.shape[1]],
        "seed": seed,
    }
    half = float(stats.t.ppf((1 + level) / 2, units - 1))
    kind = f"bootstrap of {units} {'pairs' if group is None else 'groups'}, probes as they are"
    note = "what ridge probes find, out of fold: a lower bound of what is there" if not wide else (
        f"what ridge probes find, out of fold, in {MOST_COLUMNS} random directions: a lower bound of what is there"
    )  # fmt: skip
    told = {
        "shared": "a share of information, no gamma: deciding features are not known on real data",
        "only_source": "also holds what the target has, but its probe cannot follow",
        "only_target": "also holds what the source has, but its probe cannot follow",
        "synergy": "difference of probes of unequal difficulty; also negative",
        "redundancy": "I_min (Williams & Beer 2010): as much of each class, not the same",
    }
    return SharedInformation(**{
        name: Estimate(values[name], errors[name], values[name] - half * errors[name],
                       values[name] + half * errors[name], units, level, kind, settings,
                       "; ".join(filter(None, (told.get(name, ""), note))))
        for name in values
    })  # fmt: skip


def _information(scores: Doubles, code: Whole, fold: Whole) -> Doubles:
    """Give log p(y|x) - log p(y) of each row, (n,)."""
    log_p, log_share = log_probabilities(scores, code, fold)
    return log_p[np.arange(len(code)), code] - log_share[fold, code]


def _resampled(
    local: Doubles, code: Whole, unit: Whole, rng: np.random.Generator
) -> tuple[dict[str, float], dict[str, float]]:
    """Give all parts and their standard errors from the information of rows (n, 5)."""
    units, c = int(unit.max()) + 1, int(code.max()) + 1
    totals, sizes, by_class = np.zeros((units, 5)), np.bincount(unit), np.zeros((units, c, 3))
    np.add.at(totals, unit, local)
    np.add.at(by_class, (unit, code), np.concatenate([local[:, :2], np.ones((len(local), 1))], axis=1))
    by_class = by_class.reshape(units, -1)
    values = _parts(np.ones((1, units)), totals, sizes, by_class)
    drawn = {name: np.empty(RESAMPLES) for name in values}
    step = max(1, 4_000_000 // units)  # which bounds memory to some 32 MB
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        often = rng.multinomial(units, np.full(units, 1 / units), size=rows).astype(np.float64)
        for name, found in _parts(often, totals, sizes, by_class).items():
            drawn[name][start : start + rows] = found
    return ({name: float(value[0]) for name, value in values.items()},
            {name: float(found.std(ddof=1)) for name, found in drawn.items()})  # fmt: skip


def _parts(often: Doubles, totals: Doubles, sizes: Whole, by_class: Doubles) -> dict[str, Doubles]:
    """Give all parts, (r,) each, of resamples that hold units so often, (r, units)."""
    count = often @ sizes
    source, target, both, followed, back = ((often @ totals) / count[:, None]).T
    shared = np.min([source, target, followed, back], axis=0)
    known = (often @ by_class).reshape(len(often), -1, 3)
    return {
        "shared": shared,
        "only_source": source - shared,
        "only_target": target - shared,
        "synergy": both - source - target + shared,
        "source": source,
        "target": target,
        "both": both,
        "redundancy": known[:, :, :2].min(axis=2).sum(axis=1) / count,
    }
