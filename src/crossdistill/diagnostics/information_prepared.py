"""What stands between arrays and estimators of information: checks of the two sides, and one form for all estimators.

An estimator that has seen the pairs is a function of rows: asked about all it gives the estimate, about sub-samples the
error, and about the same sub-samples for two teachers the error of their difference.

Shapes: n pairs, d and e columns, c classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from crossdistill.diagnostics.information_closed import discrete, entropy, gaussian, gaussian_shares
from crossdistill.diagnostics.information_contrast import contrast_information
from crossdistill.diagnostics.information_knn import ksg, ross, untied
from crossdistill.diagnostics.information_known import TOTALS, KnownGaussians, known_pairs
from crossdistill.diagnostics.information_latent import LatentInformation, latent_information
from crossdistill.diagnostics.sub_samples import LEAST_UNITS, MOST_DRAWN, group_code
from crossdistill.diagnostics.varying import check_varies, varying
from crossdistill.errors import ConfigError, DataError, NotMeaningful, suggest
from crossdistill.evaluation._checks import Doubles, Whole, as_array, feature_rows, label_column
from crossdistill.evaluation.linear import linear_probe

Estimator = Literal["auto", "ksg", "gaussian", "latent", "infonce", "discrete", "classifier"]

LEAST_ROWS, LEAST_CLASS = 50, 10
"""Pairs, and pairs of a class, below which nothing is estimated."""
FEW_COLUMNS, MANY_COLUMNS = 6, 8
"""Columns in all up to which "auto" takes nearest neighbours; and above which they are known to be low."""
DUPLICATES = 0.01
"""Share of rows with a twin above which neighbours are said to be misleading."""
NEAR_CAP = 0.75
"""Share of its cap above which InfoNCE says no more than "at least this"."""
INFONCE_BATCH = 2048
KNOWN_ROWS = 2000
"""Of Gaussians that ksg is asked about, at most, which bounds the time to a second; of more rows it misses less."""


@dataclass(frozen=True, eq=False)
class Side:
    """One side of pairs, checked; made by `side`.

    Attributes:
        rows: (n, d) float64, standardised; of classes, their indicators (n, c).
        code: (n,) classes 0 .. c - 1; None for numbers.
        raw: What was given, (n, d), before standardising; of classes, their indicators.
        dropped: Constant columns that were left out.
    """

    rows: Doubles
    code: Whole | None
    raw: Doubles
    dropped: int = 0

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.rows)

    def part(self, rows: Whole) -> Side:
        """Give some of the pairs, standardised as in all."""
        return Side(self.rows[rows], None if self.code is None else self.code[rows], self.raw[rows], self.dropped)

    @property
    def choice(self) -> Whole:
        """Give classes: those given, or the column that is largest, (n,)."""
        return self.raw.argmax(axis=1) if self.code is None else self.code


@dataclass(frozen=True, eq=False)
class Prepared:
    """An estimator that has seen the pairs: from rows, whole numbers (any,), to nats.

    Attributes:
        at: Networks, if there are any, are trained already and stay as they are.
        settings: What the numbers depend on.
        notes: What a reader must know.
        fixed: What is held fixed when rows change, for the reader.
        truth: Of Gaussians of equal size, the information of those of which the estimator says a number; None where
            that is not asked.
    """

    at: Callable[[Whole], float]
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    fixed: str = ""
    truth: Callable[[float], float] | None = None

    @property
    def note(self) -> str:
        """Give all notes in a line."""
        return "; ".join(self.notes)


def side(name: str, values: ArrayLike) -> Side:
    """Check one side of pairs.

    Raises:
        DataError: If it is neither finite numbers nor classes.
        NotMeaningful: If no column varies.
    """
    given = as_array(name, values)
    if given.dtype.kind not in "biufUS":
        raise DataError(f"{name} must be numbers, or classes as whole numbers or words; received {given.dtype} entries")
    if given.ndim == 1 and given.dtype.kind in "biuUS":
        classes, code = np.unique(label_column(name, given), return_inverse=True)
        if len(classes) < 2:
            raise NotMeaningful(f"{name}: all {len(given)} entries are {classes[0]!s}, which says nothing")
        raw = np.eye(len(classes))[code]
        return Side(_standard(raw), code.astype(np.int64), raw)
    raw = feature_rows(name, given[:, None] if given.ndim == 1 else given)
    check_varies(name, raw)
    varies = varying(raw)
    return Side(_standard(raw[:, varies]), None, raw, int((~varies).sum()))


def prepare(
    x: Side, y: Side, *, estimator: Estimator, k: int = 3, groups: ArrayLike | None = None, seed: int = 0
) -> Prepared:
    """Let an estimator see the pairs; see `mutual_information`.

    Raises:
        DataError: If rows differ.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If the estimator has no meaning for such data.
    """
    check_estimator(estimator)
    if k < 1 or seed < 0:
        raise ConfigError(f"need k >= 1 neighbours and seed >= 0; received {k} and {seed}")
    n = len(x)
    if len(y) != n:
        raise DataError(f"the two sides must have as many rows; received {n} and {len(y)}")
    if n < max(LEAST_ROWS, 4 * (k + 1)):
        raise NotMeaningful(f"information is not estimated from fewer than {max(LEAST_ROWS, 4 * (k + 1))} pairs: {n}")
    if x.code is not None and y.code is None:
        x, y = y, x  # classes second, which changes nothing: information is symmetric
    estimator = _chosen(estimator, x, y)
    settings: dict[str, Any] = {"estimator": estimator, "rows": n, "columns": [x.rows.shape[1], y.rows.shape[1]]}
    notes = [f"{x.dropped + y.dropped} constant columns were left out"] if x.dropped + y.dropped else []
    if estimator == "discrete":
        if any(one.code is None and one.raw.shape[1] < 2 for one in (x, y)):
            raise ConfigError("'discrete' needs classes, or two columns or more of which the largest is taken")
        return Prepared(lambda rows: discrete(x.choice[rows], y.choice[rows]), settings, tuple(notes))
    if y.code is not None:
        _check_classes(y.code)
    if estimator == "gaussian":
        return _prepared_gaussian(x, y, settings, notes)
    if estimator == "ksg":
        return _prepared_ksg(x, y, k, settings | {"k": k}, notes)
    if estimator == "classifier":
        return _prepared_classifier(x, y, groups, settings | {"seed": seed}, notes, seed)
    halves = _halves(n, groups, seed)
    settings |= {"seed": seed}
    if estimator == "infonce":
        terms = contrast_information(x.rows, y.rows, halves, batch=INFONCE_BATCH, seed=seed)
        settings |= {"cap": terms.cap}
        if float(terms.terms.mean()) > NEAR_CAP * terms.cap:
            notes.append(f"near the cap {terms.cap:.2f}, the log of the batch: the truth may be larger")
        return Prepared(terms, settings, tuple(notes), "critics held fixed")
    latents = latent_information(x.rows, y.rows, y.code, halves, k=k, seed=seed)
    settings |= {"k": k, "latents": latents.width, "networks": latents.network, "uncorrected": latents.plain}
    truth = None if y.code is not None else _truth_of_latents(latents, (x, y), halves, k, seed)
    return Prepared(latents, settings, tuple(notes), "encoders held fixed", truth)


def probe_logits(
    features: ArrayLike,
    label: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Doubles:
    """Give log probabilities (n, c) by linear probes that were not trained on the row's group: features as predictions.

    Args:
        features: (n, d).
        label: (n,) classes as whole numbers; -1 where unknown: such rows are told by a probe of all labelled ones.
        groups: (n,), which folds do not cut.
        folds: Of the labelled rows, 2 or more.
        seed: Of the folds.

    Returns:
        (n, c), a column for each known class, ascending; a class that a fold's training lacks has a very low one.

    Raises:
        DataError: If shapes do not fit.
        ConfigError: If `folds` is below 2.
        NotMeaningful: If there are fewer groups or pairs than folds, or one class, or no column varies.
    """
    x = feature_rows("features", features)
    check_varies("features", x)
    y = label_column("label", label, len(x))
    if folds < 2:
        raise ConfigError(f"probes need folds >= 2; received {folds}")
    known = np.flatnonzero(y != -1) if y.dtype.kind in "iu" else np.arange(len(y))
    classes = np.unique(y[known])
    code = np.arange(len(x)) if groups is None else group_code(groups, len(x))
    units = np.unique(code[known])
    if len(units) < folds or len(classes) < 2:
        raise NotMeaningful(
            f"{folds} folds need as many labelled pairs or groups, and two classes; "
            f"received {len(units)} and {len(classes)}"
        )
    fold = np.full(len(x), -1)
    position = dict(zip(np.random.default_rng(seed).permutation(units).tolist(), range(len(units)), strict=True))
    fold[known] = [position[unit] % folds for unit in code[known].tolist()]
    logits = np.full((len(x), len(classes)), np.log(1e-12))
    for number in np.unique(fold):
        asked = fold == number
        train = known[fold[known] != number]
        if len(np.unique(y[train])) < 2:
            raise NotMeaningful("a fold's training rows are of one class; labels are too few")
        probe = linear_probe(x[train], y[train])
        found = probe.logits(x[asked])
        columns = np.searchsorted(classes, probe.classes)
        logits[np.ix_(asked, columns)] = found - logsumexp(found, axis=1, keepdims=True)
    return logits


def _chosen(estimator: Estimator, x: Side, y: Side) -> Estimator:
    """Resolve "auto", and refuse what does not fit the sides."""
    if estimator == "auto":
        if x.code is not None and y.code is not None:
            return "discrete"
        if x.rows.shape[1] + (0 if y.code is not None else y.rows.shape[1]) <= FEW_COLUMNS:
            return "ksg"
        return "latent" if y.code is None else "classifier"
    if x.code is not None and estimator in ("ksg", "classifier", "latent", "infonce"):
        raise ConfigError(
            f"'{estimator}' is for numbers on one side at least; for two sides of classes take 'discrete'"
        )
    if estimator == "classifier" and y.code is None:
        raise ConfigError("'classifier' needs classes on one side; received numbers on both")
    return estimator


def _prepared_gaussian(x: Side, y: Side, settings: dict[str, Any], notes: list[str]) -> Prepared:
    n, columns = len(x), x.rows.shape[1] + y.rows.shape[1]
    if min(n // 2, MOST_DRAWN) - 1 <= columns:
        raise NotMeaningful(f"the Gaussian estimate and its error need more than {2 * columns + 3} pairs: {n}")
    if n < 5 * columns:
        notes.append(f"{n} pairs are few for {columns} columns: the error is large")
    return Prepared(lambda rows: gaussian(x.rows[rows], y.rows[rows]), settings, tuple(notes))


def _prepared_ksg(x: Side, y: Side, k: int, settings: dict[str, Any], notes: list[str]) -> Prepared:
    first, columns = untied(x.rows), x.rows.shape[1] + (0 if y.code is not None else y.rows.shape[1])
    if columns > MANY_COLUMNS:
        notes.append(f"nearest neighbours in {columns} columns are biased low; see the calibration line")
    both = np.concatenate([x.rows, y.rows], axis=1)
    twins = 1 - len(np.unique(both, axis=0)) / len(both)
    if twins > DUPLICATES and y.code is None:
        notes.append(f"{100 * twins:.0f} % of pairs repeat others, which nearest neighbours take for information")
    if y.code is not None:
        code = y.code
        return Prepared(lambda rows: ross(first[rows], code[rows], k), settings, tuple(notes))
    second, sides = untied(y.rows, seed=1), (x.rows.shape[1], y.rows.shape[1])
    # what few of many columns share is missed the most
    known = KnownGaussians(min(len(x), KNOWN_ROWS), sides, gaussian_shares(x.rows, y.rows), k=k)
    return Prepared(lambda rows: ksg(first[rows], second[rows], k), settings, tuple(notes), truth=known.truth)


def _truth_of_latents(
    latents: LatentInformation, sides: tuple[Side, Side], halves: tuple[Whole, Whole], k: int, seed: int
) -> Callable[[float], float]:
    """Learn latents anew of Gaussians that share as much in as many dimensions, twice, and shift by what is missed."""
    n, columns = len(sides[0]), (sides[0].rows.shape[1], sides[1].rows.shape[1])
    shares = latents.shares[: min(columns)]

    @cache
    def missed() -> float:
        value = max(latents(np.arange(n)), 0.0)
        off, rng = 0.0, np.random.default_rng([seed, 3])
        for _ in range(2):  # the second time about where the truth is taken to be
            total = min(value + max(off, 0.0), TOTALS[-1])
            x, y = (_standard(side) for side in known_pairs(n, columns, total * shares / shares.sum(), rng))
            off = total - latent_information(x, y, None, halves, k=k, seed=seed)(np.arange(n))
        return off

    return lambda value: value + missed()


def _prepared_classifier(
    x: Side, y: Side, groups: ArrayLike | None, settings: dict[str, Any], notes: list[str], seed: int
) -> Prepared:
    """Barber's and Agakov's bound: H(class) less the held-out cross-entropy, whose terms are averaged over rows."""
    code = cast("Whole", y.code)
    logits = probe_logits(x.rows, code, groups=groups, seed=seed)
    said = logits[np.arange(len(code)), code]
    return Prepared(
        lambda rows: entropy(code[rows]) + float(said[rows].mean()), settings, tuple(notes), "probes held fixed"
    )


def _halves(n: int, groups: ArrayLike | None, seed: int) -> tuple[Whole, Whole]:
    """Halve the pairs by groups, in random order."""
    code = np.arange(n) if groups is None else group_code(groups, n)
    rng = np.random.default_rng([seed, 2])
    units = int(code.max()) + 1
    if units < LEAST_UNITS:
        raise NotMeaningful(f"learning on one half and asking the other needs {LEAST_UNITS} groups or more: {units}")
    first = np.zeros(units, dtype=bool)
    first[rng.permutation(units)[: units // 2]] = True
    order = rng.permutation(n)
    return order[first[code[order]]], order[~first[code[order]]]


def _check_classes(code: Whole) -> None:
    counts = np.bincount(code)
    if counts.min() < LEAST_CLASS:
        raise NotMeaningful(f"each class needs {LEAST_CLASS} pairs or more; the smallest has {counts.min()}")


def check_estimator(estimator: str) -> None:
    """Refuse a word that is no estimator.

    Raises:
        ConfigError: With what is allowed.
    """
    if estimator not in get_args(Estimator):
        raise ConfigError(f"estimator: '{estimator}' is none{suggest(estimator, get_args(Estimator))}")


def _standard(x: Doubles) -> Doubles:
    size = np.abs(x).max(axis=0)
    x = x / np.where(size > 0, size, 1.0)  # squares then neither overflow nor vanish
    return (x - x.mean(axis=0)) / x.std(axis=0)
