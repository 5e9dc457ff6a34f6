"""How much two views of the same pairs say of one another: mutual information in nats, with its error and its bounds.

    mutual_information      one number, by one of six estimators, with an interval from sub-samples
    calibration_line        what the same estimator says of data of equal size whose truth is known

No estimator is right everywhere, and none is usable on many raw columns of few rows unless what is shared is of few
dimensions. So every estimate names its settings, and the calibration line says how far to trust it.

| estimator | for | fails by |
| --- | --- | --- |
| ksg | up to some 8 columns in all; Ross's form where one side is classes | too low beyond, or where rows are too few |
| gaussian | what is linear, any columns below the rows; classes as indicators | blind to the rest |
| latent | many columns that share few dimensions; a second or two | lower estimate |
| infonce | the same; reports its cap, log of the batch | low where rows are few |
| discrete | predictions; logits are taken by their largest | at most the entropy of either |
| classifier | numbers against classes: H(class) less the held-out cross-entropy of a linear probe | lower estimate |

Shapes: n pairs, d and e columns, c classes. Sides are float (n, d), or classes (n,) of whole numbers or words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.estimate import Estimate, check_level
from crossdistill.diagnostics.information_known import known_pairs
from crossdistill.diagnostics.information_prepared import Estimator, check_estimator, prepare, side
from crossdistill.diagnostics.sub_samples import DRAWS, SubSamples
from crossdistill.errors import ConfigError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole

QUARTERS = (0.0, 0.25, 0.5, 0.75)
TRUTH_DRAWS = 10_000
"""Rows that the information of Gaussian classes is averaged over."""


def mutual_information(
    x: ArrayLike,
    y: ArrayLike,
    *,
    estimator: Estimator = "auto",
    k: int = 3,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Estimate I(x; y) in nats, with an interval from sub-samples without replacement.

    Estimates from few rows may be below 0; they are not cut, so that means stay right. Constant columns are left out,
    and all are standardised. Sub-samples hold half of the pairs or groups, 2000 at most. What an estimator is off by is
    not in the interval, but for ksg and latent of two sides of numbers: each end is moved outwards to the information
    of the Gaussians of equal size and columns of which the estimator says that end (of ksg, Gaussians whose canonical
    correlations divide it as those of the pairs do; of latent, by what it misses of Gaussians that share in as many
    dimensions). `standard_error` is of the spread alone.

    Args:
        x: Numbers (n, d), or classes (n,) of whole numbers or words; float (n,) is one column. n >= 50.
        y: The same of the partners; e columns.
        estimator: See the table of the module. "auto": discrete for two sides of classes; ksg up to 6 columns in all;
            beyond, "classifier" against classes, else "latent".
        k: Neighbours of ksg and latent, 1 or more; 3 is common.
        groups: (n,), drawn and held out as a whole. Rows of one group that repeat each other still inflate ksg.
        level: Confidence of the interval, in (0, 1).
        draws: Sub-samples, 2 or more.
        seed: Of sub-samples, halves and networks.

    Returns:
        Nats. `settings` names estimator, rows and columns, and the cap of infonce; `n` counts pairs, or groups.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are fewer than 50 pairs, 20 groups or 10 of a class, no column varies, or none but in a
            few rows, columns are too many for the estimator, or one side determines the other.

    Examples:
        >>> import numpy as np
        >>> x, noise = np.random.default_rng(0).normal(size=(2, 1000, 2))
        >>> found = mutual_information(x, 0.8 * x + 0.6 * noise, estimator="gaussian")  # the truth is 1.02
        >>> round(found.value, 1), found.low < 1.02 < found.high
        (1.0, True)
    """
    check_level(level)
    first, second = side("x", x), side("y", y)
    prepared = prepare(first, second, estimator=estimator, k=k, groups=groups, seed=seed)
    draw = SubSamples(len(first), groups, draws=draws, seed=seed)
    value = prepared.at(np.arange(len(first)))
    found = draw.estimate(
        value, draw.ask(prepared.at), level, fixed=prepared.fixed, settings=prepared.settings, note=prepared.note
    )
    return found if prepared.truth is None else _widened(found, prepared.truth)


def _widened(found: Estimate, truth: Callable[[float], float]) -> Estimate:
    """Move the ends of an interval outwards to the Gaussians of which the estimator says them."""
    assert found.low is not None
    assert found.high is not None
    low, high, known = (truth(value) for value in (found.low, found.high, found.value))
    note = f"of Gaussians of this size that share {known:.2f} nats the estimator says as much"
    return replace(
        found,
        low=min(found.low, low),
        high=max(found.high, high),
        kind=f"{found.kind}, widened by what the estimator misses of Gaussians of equal size",
        note="; ".join(filter(None, (found.note, note * (not found.low <= known <= found.high)))),
    )


@dataclass(frozen=True)
class CalibrationPoint:
    """What an estimator says of data whose information is known; made by `calibration_line`.

    Attributes:
        truth: Nats.
        value: Mean of the estimates.
        spread: Their standard deviation over draws.
    """

    truth: float
    value: float
    spread: float


def calibration_line(
    estimator: Estimator,
    n: int,
    d: int,
    e: int,
    *,
    classes: int | None = None,
    truths: Sequence[float] | None = None,
    k: int = 3,
    draws: int = 3,
    seed: int = 0,
) -> list[CalibrationPoint]:
    """Ask an estimator about Gaussian data of equal size whose information is known.

    Two Gaussians share min(d, e) pairs of columns, all equally: what is hardest for the estimators, as real data
    share fewer dimensions than they have columns. Against classes: Gaussians of unit spread around means that are
    equally far from one another where d >= c - 1, and random otherwise; their truth is a mean over 10,000 draws.

    Args:
        estimator: As in `mutual_information`, but not "discrete".
        n: Rows.
        d: Columns of x.
        e: Columns of y; without meaning where there are classes.
        classes: Of y, 2 or more; None for numbers.
        truths: Nats, 0 or more; below log(classes). None: 0, 0.5, 1 and 2, or no, a quarter, half and three quarters of
            log(classes).
        k: Neighbours.
        draws: Data sets for each, 2 or more.
        seed: Of the data.

    Raises:
        ConfigError: If a parameter is out of range.
        NotMeaningful: As `mutual_information`.
    """
    check_estimator(estimator)
    if truths is None:
        truths = (0.0, 0.5, 1.0, 2.0) if classes is None else [share * math.log(max(classes, 1)) for share in QUARTERS]
    if min(d, e, n) < 1 or draws < 2 or min(truths, default=0) < 0 or estimator == "discrete":
        raise ConfigError(
            "a calibration needs n, d, e >= 1, draws >= 2, truths >= 0 and an estimator of numbers; received "
            f"{n}, {d}, {e}, {draws}, {list(truths)}, '{estimator}'"
        )
    if classes is not None and (classes < 2 or max(truths, default=0) >= math.log(classes)):
        raise ConfigError(f"of {classes} classes no more than log({classes}) can be known; received {list(truths)}")
    line: list[CalibrationPoint] = []
    for truth in truths:
        found: list[float] = []
        means = None if classes is None else _means(d, classes, truth, np.random.default_rng(seed))
        for draw in range(draws):
            rng = np.random.default_rng([seed, draw])
            shared = min(d, e)
            each = np.full(shared, truth / shared)
            x, y = known_pairs(n, (d, e), each, rng) if means is None else _classes(n, means, rng)
            found.append(prepare(side("x", x), side("y", y), estimator=estimator, k=k, seed=seed).at(np.arange(n)))
        line.append(CalibrationPoint(truth, float(np.mean(found)), float(np.std(found, ddof=1))))
    return line


def _classes(n: int, means: Doubles, rng: np.random.Generator) -> tuple[Doubles, Whole]:
    """Draw unit Gaussians around means (c, d), as many of each."""
    code = np.arange(n) % len(means)
    return means[code] + rng.normal(size=(n, means.shape[1])), code


def _means(d: int, classes: int, truth: float, rng: np.random.Generator) -> Doubles:
    """Place means (c, d) so far apart that a row of unit Gaussians around them says `truth` nats of its class."""
    if d >= classes - 1:
        simplex = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, : classes - 1]
        means = np.concatenate([simplex, np.zeros((classes, d - classes + 1))], axis=1)
    else:
        means = rng.normal(size=(classes, d)) / d**0.5
    code, noise = np.arange(TRUTH_DRAWS) % classes, rng.normal(size=(TRUTH_DRAWS, d))

    def known(scale: float) -> float:
        x = scale * means[code] + noise
        fit = scale * x @ means.T - 0.5 * scale**2 * (means**2).sum(axis=1)
        fit -= fit.max(axis=1, keepdims=True)
        return math.log(classes) + float((fit[np.arange(len(x)), code] - np.log(np.exp(fit).sum(axis=1))).mean())

    low, high = 0.0, 1.0
    while known(high) < truth:
        low, high = high, 2 * high
        if high > 1e6:
            raise NotMeaningful(f"{classes} Gaussians in {d} columns could not be told apart by {truth} nats")
    for _ in range(12 if truth else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if known(middle) < truth else (low, middle)
    return low * means
