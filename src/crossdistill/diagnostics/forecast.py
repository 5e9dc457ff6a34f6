"""Will distillation help, by how much, how sure? The gain, forecast before the student is trained.

    gain = acc(student) - max( acc(raw features), acc(target-only self-supervision) )       one probe, a few labels

    pairs ─► ridge student, pilot student ─┐
    few labels ─► paired cross-validation ─┼─► prediction-powered differences ─► calibrated forecast, interval, verdict
    graph of all views ─► pseudo-labels ───┘

    forecast_gain      of one teacher
    rank_sources       of several for one target, with paired differences
    calibrate          refit the coefficients on gains that came true (calibration.py)

All accuracies are balanced (means of recalls) and fractions. The forecast is of the gain's mean over draws of the
labels; that of one's own draw scatters around it. Nothing depends on a rotation of the teacher's embedding.

Differences are corrected by pseudo-labels of unlabelled pairs, which must be like the labelled ones to all that was
trained: the pilot trains on neither. (Section 3.5 of the first study's sheet left the labelled ones alone out and took
pseudo-labels on the others, where the pilot remembers its teacher: weak targets were forecast far too high.) The
self-supervised embedding may have seen all rows: it saw labelled and unlabelled ones alike, and neither label nor
teacher, so that the correction stays unbiased. What it gains on rows it has seen, over new ones, it keeps as a
reference.

Source: our own; coefficients are of a first study on six data sets (calibration.py). Scope: small networks, 150 to 1800
pairs, 3 to 40 classes, up to 20 labels per class, a probe on frozen features. Segmentation, fine-tuning and large
pretrained teachers were not measured.

Shapes: n pairs, D target features, d of the teacher, m labelled pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.calibration import SIX, Calibration, Loss, Proxy, default_calibration
from crossdistill.diagnostics.estimate import Estimate
from crossdistill.diagnostics.few_labels import powered_difference
from crossdistill.diagnostics.parts import Measured, Reference, Target, Trained, measure, values_of
from crossdistill.errors import ConfigError

Verdict = Literal["help", "no help", "undecided"]

STUDIED = "150 to 1800 pairs, 3 to 40 classes and up to 20 labels per class"
LEAST_STUDIED, MOST_STUDIED, MOST_CLASSES, MOST_LABELS = 150, 5000, 40, 20
"""Sizes outside which a forecast by the first study's coefficients is warned of; of pairs, some way above it."""


@dataclass(frozen=True)
class Forecast:
    """The gain to be expected from distillation; made by `forecast_gain`.

    Attributes:
        gain: Student less the best reference, as a fraction of balanced accuracy, with its calibrated interval. Its
            standard error is the labels' noise: None with one label per class, where it is not known.
        verdict: "help" where the whole interval is above zero; "no help" where it is wholly below: the student is
            expected to be worse than the best reference; "undecided" where it holds zero, which is not "no help".
        parts: What the gain was forecast from, fractions. With two labels of each class or more: "p_max" (ridge student
            less the better reference), "p_pilot" (the same of the pilot student), "p_tea" (teacher less raw features),
            accuracies "acc_raw", "acc_ssl", "acc_tea", "acc_ridge", "acc_pilot" by cross-validation. With one: "e"
            (ridge student less the better reference) and "t" (teacher less raw features) in episodes of pseudo-labels,
            with source labels "a_source" and "a_reference"; the accuracies there are of episodes. Always: "r2" of the
            ridge student, "retrieval" (share of rows whose ridge embedding finds its teacher among 64) and its level of
            chance, "retrieval_chance"; with 128 pairs or more "tv" (`kernel_tv` of teacher and ridge student), shown
            because it is asked for: it does not foretell the gain, and no forecast looks at it.
        reference: The better of raw features and target-only self-supervision, which the gain is less.
        n_labels: Labelled pairs that were used.
        k: Labels of the class with the fewest. Classes with a single label are left out, and told of in a warning,
            where two or more others have more.
        calibration: Where coefficients and interval come from.
        warnings: What a reader must know, a sentence each.
        seconds: Of wall clock.
    """

    gain: Estimate
    verdict: Verdict
    parts: Mapping[str, Estimate | float]
    reference: Reference
    n_labels: int
    k: int
    calibration: Calibration
    warnings: tuple[str, ...]
    seconds: float

    def values(self) -> dict[str, float]:
        """Give the parts as plain numbers, as `calibrate` takes them."""
        return values_of(self.parts)

    @property
    def more_labels(self) -> bool:
        """Whether more labels would narrow the interval: their noise exceeds the model's own error, or is not known.

        It is not with one label per class, where a second one of each allows cross-validation. Otherwise, up to the
        calibration's floor, only the pilot, or one run of the student, tells more.
        """
        error = self.gain.standard_error
        return error is None or error > self.calibration.floor

    def __str__(self) -> str:
        """Say it in points: ``+6 points, 90 % interval -6 to +18, undecided``."""
        low, high = self.gain.low or 0.0, self.gain.high or 0.0
        return (
            f"{100 * self.gain.value:+.0f} points, {100 * self.gain.level:.0f} % interval "
            f"{100 * low:+.0f} to {100 * high:+.0f}, {self.verdict}"
        )


@dataclass(frozen=True)
class Ranking:
    """Candidate teachers for one target; made by `rank_sources`.

    Attributes:
        names: Best forecast first.
        forecasts: By name, best first.
        differences: Forecast of the first named less that of the second, by (name, name), for every pair in the order
            of `names`. Labels' noise is that of the paired difference on the same folds; the interval is the
            calibration's with one floor, as the common reference cancels: our choice, not calibrated on differences,
            nor corrected for the number of comparisons. Equal embeddings differ by 0, without a width.
    """

    names: tuple[str, ...]
    forecasts: Mapping[str, Forecast]
    differences: Mapping[tuple[str, str], Estimate]

    def compare(self, first: str, second: str) -> Literal["better", "worse", "cannot tell"]:
        """Say whether the first teacher is forecast to help more than the second, beyond the noise.

        Raises:
            ConfigError: If a name is not ranked, or both are one.
        """
        turned = (first, second) not in self.differences
        difference = self.differences.get((second, first) if turned else (first, second))
        if difference is None:
            raise ConfigError(f"compare takes two of {', '.join(self.names)}; received {first}, {second}")
        if (difference.low or 0.0) > 0:
            return "worse" if turned else "better"
        if (difference.high or 0.0) < 0:
            return "better" if turned else "worse"
        return "cannot tell"


def forecast_gain(
    target: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    index: ArrayLike,
    *,
    ssl: ArrayLike | None = None,
    source_labelled: tuple[ArrayLike, ArrayLike] | None = None,
    groups: ArrayLike | None = None,
    loss: Loss = "similarity",
    proxy: Trained = "ridge",
    calibration: Calibration | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Forecast:
    """Forecast what distillation from a teacher gains on a target with few labels.

    Args:
        target: (n, D) features of the pairs' target side, standardised here; of images, any generic feature, as a
            shallow map does not live in pixels.
        teacher: (n, d) embedding of their source side.
        labels: (m,) classes of the labelled pairs, drawn at random: everything is conditional on that.
        index: (m,) their rows.
        ssl: (n, e) target-only self-supervised embedding; None leaves raw features as the only reference, and the gain
            is overstated where self-supervision is the better one.
        source_labelled: Teacher embeddings (any, d) of labelled source samples, and their labels; used with one label
            per class alone, where they are worth having.
        groups: (n,) what a pair belongs to (a person, a scene); none is split by the ridge student's folds, nor, where
            every class is labelled in two groups or more, by the cross-validation. The labels' noise is that over
            groups, whose rows are no independent draws.
        loss: Of the student to be trained, which decides the default coefficients.
        proxy: What stands for the student: "ridge", a closed form, which trains nothing and went better with the gains
            of the bench (docs/benchmarks/forecast.md); "pilot" trains a small network for some seconds beside it. With
            one label per class nothing is trained.
        calibration: One's own, made by `calibrate`, of the proxy that applies; None takes the first study's.
        level: Of the calibrated interval. 0.9 rather than 0.8, as errors on new data sets are larger than on those of
            the calibration; the first study has these two alone.
        seed: Of everything random. Same arguments, same numbers.

    Raises:
        DataError: If shapes do not fit, a value is not finite, `index` is not of distinct rows of pairs, a label is
            unknown (-1), or a class of the source has no label.
        ConfigError: If a parameter is out of range, the calibration is of another proxy, or the level was not
            calibrated.
        NotMeaningful: If there are fewer than 50 pairs, only one class is labelled, or several labelled rows share a
            group and there are fewer than 5 labelled groups: their spread would say nothing of the error.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 4, 300)
        >>> latent = 3 * np.eye(4)[y] + rng.normal(size=(300, 4))
        >>> target = np.concatenate([0.3 * latent + rng.normal(size=(300, 4)), rng.normal(size=(300, 20))], axis=1)
        >>> found = forecast_gain(target, latent, y[:60], np.arange(60), proxy="ridge")
        >>> found.reference, found.n_labels, found.verdict in ("help", "no help", "undecided")
        ('raw', 60, True)
    """
    start = time.perf_counter()
    _checked_level(calibration, proxy, loss, level)
    world = Target.checked(target, labels, index, ssl=ssl, groups=groups, level=level, seed=seed)
    chosen = _chosen(calibration, world, proxy, loss, source=source_labelled is not None)
    return _forecast(measure(world, teacher, proxy=chosen.proxy, source_labelled=source_labelled), world, chosen, start)


def rank_sources(
    sources: Mapping[str, ArrayLike],
    target: ArrayLike,
    labels: ArrayLike,
    index: ArrayLike,
    *,
    ssl: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    loss: Loss = "similarity",
    proxy: Trained = "ridge",
    calibration: Calibration | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Ranking:
    """Rank candidate teachers for one target; easier than a verdict on each, as the reference cancels.

    Args:
        sources: Teacher embeddings (n, any width) of the same pairs, by name.
        target: As of `forecast_gain`, and so are all others; all candidates share rows, folds and seeds.
        labels: (m,).
        index: (m,).
        ssl: (n, e) or None.
        groups: (n,) or None.
        loss: Of the student.
        proxy: What stands for the student.
        calibration: One's own, or None.
        level: Of all intervals.
        seed: Of everything random.

    Raises:
        DataError: As of `forecast_gain`.
        ConfigError: As of `forecast_gain`, or if there is no source.
        NotMeaningful: As of `forecast_gain`.
    """
    if not sources:
        raise ConfigError("rank_sources needs one teacher embedding or more")
    _checked_level(calibration, proxy, loss, level)
    world = Target.checked(target, labels, index, ssl=ssl, groups=groups, level=level, seed=seed)
    chosen = _chosen(calibration, world, proxy, loss, source=False)
    measured: dict[str, Measured] = {}
    forecasts: dict[str, Forecast] = {}
    for name, teacher in sources.items():
        start = time.perf_counter()
        measured[name] = measure(world, teacher, proxy=chosen.proxy)
        forecasts[name] = _forecast(measured[name], world, chosen, start)
    names = tuple(sorted(forecasts, key=lambda name: -forecasts[name].gain.value))
    differences = {
        (a, b): _nothing(forecasts[a])
        if np.array_equal(np.asarray(sources[a]), np.asarray(sources[b]))
        else _difference(forecasts[a], measured[a], forecasts[b], measured[b])
        for a, b in combinations(names, 2)
    }
    return Ranking(names, {name: forecasts[name] for name in names}, differences)


def _forecast(measured: Measured, world: Target, calibration: Calibration, start: float) -> Forecast:
    gain = calibration.forecast(
        values_of(measured.parts), measured.standard_error, n=len(world.index), level=world.level
    )
    verdict: Verdict = "undecided"
    if gain.low is not None and gain.low > 0:
        verdict = "help"
    if gain.high is not None and gain.high < 0:
        verdict = "no help"
    warnings = world.warnings
    if calibration.data_sets == SIX and (outside := _outside(world)):
        warnings = (*warnings, f"the default calibration is of {STUDIED}; outside lie {', '.join(outside)}")
    return Forecast(
        gain,
        verdict,
        measured.parts,
        measured.reference,
        len(world.index),
        world.k,
        calibration,
        (*warnings, f"calibration: {calibration.note}") if calibration.note else warnings,
        time.perf_counter() - start,
    )


def _outside(world: Target) -> list[str]:
    """Name what lies outside the sizes that the first study saw, or, of pairs, far above them."""
    n, classes, each = len(world.raw), len(world.classes), len(world.index) / len(world.classes)
    found = [] if LEAST_STUDIED <= n <= MOST_STUDIED else [f"{n} pairs"]
    found += [] if 2 < classes <= MOST_CLASSES else [f"{classes} classes"]
    return found + ([] if each <= MOST_LABELS else [f"{each:.0f} labels per class"])


def _checked_level(calibration: Calibration | None, proxy: Trained, loss: Loss, level: float) -> None:
    """Refuse, before any work, a level that the calibration does not have; all defaults of a loss have the same."""
    if proxy not in get_args(Trained):
        raise ConfigError(f"proxy must be 'pilot' or 'ridge'; received '{proxy}'")
    (calibration or default_calibration(proxy, loss)).quantile(level)


def _chosen(
    calibration: Calibration | None, world: Target, trained: Trained, loss: Loss, *, source: bool
) -> Calibration:
    """Give the calibration that applies, and refuse before anything is measured one that does not."""
    proxy: Proxy = trained if world.k > 1 else "source" if source else "episodes"
    if calibration is None:
        return default_calibration(proxy, loss)
    if calibration.proxy != proxy or calibration.loss != loss:
        raise ConfigError(
            f"the calibration is of {calibration.proxy}, {calibration.loss}; this forecast is by {proxy}, {loss}"
        )
    return calibration


def _nothing(of: Forecast) -> Estimate:
    """Give the difference between two forecasts of one embedding."""
    return Estimate(0.0, 0.0, 0.0, 0.0, of.n_labels, of.gain.level, "the same embedding twice", of.gain.settings)


def _difference(a: Forecast, of_a: Measured, b: Forecast, of_b: Measured) -> Estimate:
    """Give the forecast of a less that of b; the labels' noise is that of the paired difference of their stand-ins."""
    error, level = None, a.gain.level
    if of_a.scores is not None and of_b.scores is not None:
        paired = powered_difference(of_a.scores, a.calibration.proxy, of_b.scores, b.calibration.proxy, level=level)
        error = paired.standard_error
    value = a.gain.value - b.gain.value
    half = a.calibration.quantile(level) * math.hypot(error or 0.0, a.calibration.floor)
    kind = "paired difference of forecasts on the same folds; one floor, our choice"
    return Estimate(value, error, value - half, value + half, a.n_labels, level, kind, a.gain.settings)
