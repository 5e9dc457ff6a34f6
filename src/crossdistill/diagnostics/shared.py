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
from scipy import optimize, stats
from scipy.special import log_softmax

from crossdistill.diagnostics.estimate import Estimate, check_level
from crossdistill.diagnostics.probes import FOLDS, MOST_COLUMNS, RANDOM_FEATURES, Ridge, block, dealt_folds, expanded
from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, label_column

LEAST_ROWS = 10
"""Of a class, and units (pairs or groups) for an interval; fewer tell nothing."""
SHARPEST = 100.0
"""Factor of ridge scores, which are differences of probabilities, where classes are told apart without error."""
RESAMPLES = 400
"""Of the bootstrap, whose standard deviation is taken: it is then known to 4 %."""
UNKNOWN = -1


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
            fewer than 10 pairs or groups.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> a, b, common = rng.normal(size=(3, 1000))  # the source has a and common, the target b and common
        >>> found = shared_information(np.stack([a, common], 1), np.stack([b, common], 1), a + common > 0)
        >>> found.shared.value > 0.05, found.only_source.value > 0.2, abs(found.only_target.value) < 0.05
        (True, True, True)
    """
    check_level(level)
    if seed < 0:
        raise ConfigError(f"seed must be >= 0; received {seed}")
    x, y, label, group = _known(source, target, labels, groups)
    classes, code = np.unique(label, return_inverse=True)
    unit = np.arange(len(code)) if group is None else np.unique(group, return_inverse=True)[1]
    units = int(unit.max()) + 1
    _check_counts(classes, np.bincount(code), units, "pairs" if group is None else "groups")
    rng = np.random.default_rng(seed)
    fold = dealt_folds(code, unit, rng)
    _check_folds(classes, code, fold)
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


def _known(
    source: ArrayLike, target: ArrayLike, labels: ArrayLike, groups: ArrayLike | None
) -> tuple[Doubles, Doubles, np.ndarray, np.ndarray | None]:
    """Check, and keep the rows of known class."""
    x, y = feature_rows("source", source), feature_rows("target", target)
    if len(x) != len(y):
        raise DataError(f"row i of source and target must be one pair; received {len(x)} and {len(y)} rows")
    label = label_column("labels", labels, len(x))
    group = None if groups is None else label_column("groups", groups, len(x))
    if label.dtype.kind not in "iu":
        return x, y, label, group
    known = label != UNKNOWN
    return x[known], y[known], label[known], None if group is None else group[known]


def _check_counts(classes: np.ndarray, counts: Whole, units: int, what: str) -> None:
    if len(classes) < 2:
        raise NotMeaningful(f"information about a label needs two classes or more; received {len(classes)}")
    if counts.min() < LEAST_ROWS:
        raise NotMeaningful(
            f"shared information needs {LEAST_ROWS} rows of each class; class {classes[counts.argmin()]} has "
            f"{counts.min()}"
        )
    if units < LEAST_ROWS:
        raise NotMeaningful(f"an interval needs {LEAST_ROWS} {what} or more; received {units}")


def _check_folds(classes: np.ndarray, code: Whole, fold: Whole) -> None:
    """Refuse a class that some probe would never have seen: two folds are left out at once."""
    for k, name in enumerate(classes):
        if len(np.unique(fold[code == k])) < 3:
            raise NotMeaningful(f"class {name} is in too few groups to be left out in part and learnt from the rest")


def _information(scores: Doubles, code: Whole, fold: Whole) -> Doubles:
    """Give log p(y|x) - log p(y) of each row, (n,), with p(k|x) ~ p(k) exp( a (z_k - 1/2 mean of z_k in class k) ).

    That is a linear discriminant's form; the factor a >= 0 alone is fitted, on the other folds.
    """
    n, c = scores.shape
    found = np.empty(n)
    for h in range(FOLDS):
        rest, held = np.flatnonzero(fold != h), np.flatnonzero(fold == h)
        share = np.bincount(code[rest], minlength=c) / len(rest)
        log_share = np.log(share)
        own = np.bincount(code[rest], scores[rest, code[rest]], minlength=c) / (share * len(rest))
        centred = scores - own / 2
        a = _sharpened(centred[rest], code[rest], log_share)
        log_p = log_softmax(log_share + a * centred[held], axis=1)
        found[held] = log_p[np.arange(len(held)), code[held]] - log_share[code[held]]
    return found


def _sharpened(z: Doubles, code: Whole, log_share: Doubles) -> float:
    """Find the factor in [0, SHARPEST] with the highest likelihood: its slope falls, so the zero is unique."""
    right = z[np.arange(len(z)), code].mean()

    def slope(a: float) -> float:
        p = np.exp(log_softmax(log_share + a * z, axis=1))
        return float(right - (p * z).sum() / len(z))

    if slope(0.0) <= 0:
        return 0.0
    return SHARPEST if slope(SHARPEST) >= 0 else float(optimize.brentq(slope, 0.0, SHARPEST, xtol=1e-3))


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
