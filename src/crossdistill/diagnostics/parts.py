"""The measured parts of a forecast: stand-ins for the student against what the target can do alone. See forecast.py."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedKFold

from crossdistill.diagnostics.calibration import Proxy
from crossdistill.diagnostics.distance import kernel_tv
from crossdistill.diagnostics.estimate import Estimate, check_level
from crossdistill.diagnostics.few_labels import (
    UNLABELLED,
    PairedScores,
    balance_weights,
    episode_accuracies,
    paired_cross_validation,
    probe_answers,
)
from crossdistill.diagnostics.pilot import pilot_student
from crossdistill.diagnostics.ridge import ridge_student, standardised
from crossdistill.diagnostics.spreading import label_spreading, spread
from crossdistill.errors import DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Labels, Whole, feature_rows, label_column, unit_rows

Reference = Literal["raw", "ssl"]
Trained = Literal["pilot", "ridge"]
Parts = Mapping[str, Estimate | float]

LEAST_PAIRS = 50
LEAST_GROUPS = 5
"""Labelled groups below which their spread says nothing of the error."""
PILOT_PAIRS = 100
"""Pairs that the pilot trains on beside those held out for pseudo-labels; with fewer, none are held out."""
HELD_SHARE = 3
"""One pair in as many, at most, is held out for pseudo-labels."""
GRAPH_ROWS = 1200
"""Rows of the graph and of the probes' kernels, labelled ones included; more where there are many labels."""
SOURCE_ROWS = 2000
"""Labelled source samples that are looked at, at most: the probe's time grows as their cube."""
FEW_LABELS = 45
"""Labelled rows below which label noise was larger than all else in the first study."""
CANDIDATES = 64
"""Teacher embeddings among which a ridge student looks for its own."""
TIED = 1e-9
"""Cosines no further apart are equal but for rounding."""


@dataclass(frozen=True, eq=False)
class Target:
    """All that a forecast starts from but the teacher; made by `Target.checked`.

    Attributes:
        raw: (n, D) standardised features.
        ssl: (n, e) unit rows, or None.
        classes: (c,) labels, ascending.
        code: (m,) classes of the labelled rows, 0 .. c - 1; one of a single label is left out where others have more.
        left_out: How many classes are. Unlabelled rows may be of them, and are then unlike the labelled ones.
        index: (m,) their rows.
        groups: (n,) or None.
        rows: Rows of graph and probes, the labelled ones first.
        k: Labels of the class with the fewest.
        warnings: Sentences.
        level: Of all intervals.
        seed: Of everything random.
    """

    raw: Doubles
    ssl: Doubles | None
    classes: Labels
    code: Whole
    left_out: int
    index: Whole
    groups: Whole | None
    rows: Whole
    k: int
    warnings: tuple[str, ...]
    level: float
    seed: int

    @classmethod
    def checked(
        cls,
        target: ArrayLike,
        labels: ArrayLike,
        index: ArrayLike,
        *,
        ssl: ArrayLike | None,
        groups: ArrayLike | None,
        level: float,
        seed: int,
    ) -> Target:
        """Check what `forecast_gain` was given, and draw the rows of the graph; it raises as documented there."""
        check_level(level)
        given = feature_rows("target", target)
        n = len(given)
        if n < LEAST_PAIRS:
            raise NotMeaningful(f"a forecast needs {LEAST_PAIRS} pairs or more; received {n}")
        at = label_column("index", index)
        if at.dtype.kind not in "iu" or at.min() < 0 or at.max() >= n or len(np.unique(at)) < len(at):
            raise DataError(f"index must be distinct rows 0 to {n - 1} of the pairs, as whole numbers")
        known = label_column("labels", labels, len(at))
        if known.dtype.kind in "iuf" and not (known >= 0).all():
            bad = int(np.flatnonzero(~(known >= 0))[0])
            raise DataError(f"labels: entry {bad} is {known[bad]}, no class; give the labelled pairs alone, by index")
        classes, code = np.unique(known, return_inverse=True)
        if len(classes) < 2:
            raise NotMeaningful(f"a forecast needs labels of two classes or more; all {len(at)} are {classes[0]!s}")
        own = None if ssl is None else _unit("ssl", ssl, n)
        group = None if groups is None else np.unique(label_column("groups", groups, n), return_inverse=True)[1]
        order = np.argsort(at)  # folds are dealt by position
        at, code = at[order].astype(np.int64), code[order]
        counts = np.bincount(code)
        left_out = int((counts == 1).sum()) if (counts > 1).sum() > 1 else 0
        if left_out:
            kept = counts[code] > 1
            at, known = at[kept], classes[code[kept]]
            classes, code = np.unique(known, return_inverse=True)
        rest = np.setdiff1d(np.arange(n), at)
        more = min(len(rest), max(GRAPH_ROWS - len(at), UNLABELLED))
        rows = np.concatenate([at, np.sort(np.random.default_rng(seed).choice(rest, more, replace=False))])
        k = int(np.bincount(code).min())
        held = len(at) if group is None else len(np.unique(group[at]))
        if k > 1 and held < min(LEAST_GROUPS, len(at)):
            raise NotMeaningful(
                f"the error of a forecast is over groups: it needs labels in {LEAST_GROUPS} of them or more; "
                f"all {len(at)} are in {held}"
            )
        warnings = _warnings(given, code, left_out, own, group, at)
        return cls(standardised(given), own, classes, code, left_out, at, group, rows, k, warnings, level, seed)


@dataclass(frozen=True, eq=False)
class Measured:
    """The parts of a forecast, before its calibration; made by `measure`.

    Attributes:
        parts: See `Forecast.parts`.
        reference: What the student is compared with.
        standard_error: Of the stand-in's part; None with one label per class, where none is known.
        scores: Of the cross-validation; None with one label per class.
    """

    parts: Parts
    reference: Reference
    standard_error: float | None
    scores: PairedScores | None


def values_of(parts: Parts) -> dict[str, float]:
    """Give parts as plain numbers."""
    return {name: part.value if isinstance(part, Estimate) else part for name, part in parts.items()}


def measure(
    world: Target,
    teacher: ArrayLike,
    *,
    proxy: Proxy,
    source_labelled: tuple[ArrayLike, ArrayLike] | None = None,
) -> Measured:
    """Measure one teacher (n, d) by a proxy that fits the labels; the rest is as of `forecast_gain`."""
    z, rows = _unit("teacher", teacher, len(world.raw)), world.rows
    ridge = ridge_student(world.raw, z, groups=world.groups, seed=world.seed)
    found, chance = _retrieval(ridge.values, z, world.seed)
    parts: dict[str, Estimate | float] = {"r2": ridge.r2, "retrieval": found, "retrieval_chance": chance}
    with suppress(NotMeaningful):  # fewer than two sets of pairs: nothing of the forecast hangs on it
        parts["tv"] = kernel_tv(z, ridge.values, groups=world.groups, level=world.level, seed=world.seed)
    embeddings = {"raw": unit_rows(world.raw)[rows], "tea": z[rows], "ridge": ridge.values[rows]}
    views = [z[rows], world.raw[rows]]
    if world.ssl is not None:
        embeddings["ssl"] = world.ssl[rows]
        views.append(world.ssl[rows])
    m = len(world.index)
    operator = label_spreading(views, sources=np.arange(m))
    if proxy == "episodes":
        more, reference = _by_episodes(world, embeddings, operator)
        return Measured(parts | more, reference, None, None)
    if proxy == "source":
        assert source_labelled is not None
        more, reference = _by_source(world, embeddings, source_labelled)
        return Measured(parts | more, reference, None, None)
    unlabelled = None
    if proxy == "pilot":
        unseen, unlabelled = _unseen(world)
        embeddings["pilot"] = pilot_student(world.raw, z, leave_out=unseen, seed=world.seed)[rows]
    if world.left_out:  # unlabelled rows may be of classes that no labelled one is of
        unlabelled = np.empty(0, dtype=np.int64)
    groups = None if world.groups is None else world.groups[rows]
    scores = paired_cross_validation(
        embeddings, operator, np.arange(m), world.code, unlabelled=unlabelled, groups=groups, seed=world.seed
    )
    parts |= {f"acc_{name}": scores.accuracy(name, level=world.level) for name in embeddings}
    parts["p_tea"] = scores.difference("tea", "raw", level=world.level)
    leading, reference = parts["p_max"], _ = _over_the_better(scores, "ridge", world)
    if proxy == "pilot":
        leading, reference = parts["p_pilot"], _ = _over_the_better(scores, "pilot", world)
    return Measured(parts, reference, leading.standard_error, scores)


def _over_the_better(scores: PairedScores, name: str, world: Target) -> tuple[Estimate, Reference]:
    """Give the smaller of the differences from the references, and which that is."""
    known: tuple[Reference, ...] = ("raw",) if world.ssl is None else ("raw", "ssl")
    found = {reference: scores.difference(name, reference, level=world.level) for reference in known}
    better = min(known, key=lambda reference: found[reference].value)
    settings = {**found[better].settings, "reference": better}
    return replace(found[better], settings=settings), better


def _by_episodes(
    world: Target, embeddings: Mapping[str, Doubles], operator: Doubles
) -> tuple[dict[str, float], Reference]:
    """Measure with one label per class: episodes of spread labels."""
    classes, m = len(world.classes), len(world.index)
    pseudo = spread(operator, world.code, classes)
    compared = {name: rows for name, rows in embeddings.items() if name != "tea"}
    accuracy = episode_accuracies(compared, pseudo, world.k, seed=world.seed)
    reference = _better(accuracy)
    balance = balance_weights(pseudo[m:], classes)
    against: dict[str, float] = {}
    for name in ("tea", "raw"):  # probes on the true labels, scored against the spread ones
        rows = embeddings[name]
        answers = probe_answers(rows[:m], world.code, rows[m:], classes)
        against[name] = float((balance * (answers == pseudo[m:])).sum())
    parts = {f"acc_{name}": value for name, value in accuracy.items()} | {"acc_tea": against["tea"]}
    e, t = accuracy["ridge"] - accuracy[reference], against["tea"] - against["raw"]
    return parts | {"e": e, "t": t}, reference


def _by_source(
    world: Target, embeddings: Mapping[str, Doubles], source_labelled: tuple[ArrayLike, ArrayLike]
) -> tuple[dict[str, float], Reference]:
    """Measure with one label per class and labels of the source: episodes that the teacher's probe labels."""
    z = embeddings["tea"]
    known = unit_rows(feature_rows("source_labelled, the embeddings", source_labelled[0], width=z.shape[1]))
    label = label_column("source_labelled, the labels", source_labelled[1], len(known))
    if set(label.tolist()) != set(world.classes.tolist()):
        raise DataError(
            "source_labelled must have the classes of the labelled pairs, each of them; "
            f"received {sorted(set(label.tolist()))} and {world.classes.tolist()}"
        )
    rng, classes = np.random.default_rng(world.seed), len(world.classes)
    kept = np.sort(rng.permutation(len(known))[:SOURCE_ROWS])
    known, code = known[kept], np.searchsorted(world.classes, label[kept])
    folds = min(5, int(np.bincount(code, minlength=classes).min()))
    if folds < 2:
        raise NotMeaningful("the teacher's accuracy on the source needs two labelled samples of each class there")
    answers = np.empty(len(known), dtype=np.int64)
    for train, held in StratifiedKFold(folds, shuffle=True, random_state=world.seed).split(known, code):
        answers[held] = probe_answers(known[train], code[train], known[held], classes)
    right = float((balance_weights(code, classes) * (answers == code)).sum())
    rivals = {name: rows for name, rows in embeddings.items() if name in ("raw", "ssl")}
    accuracy = episode_accuracies(rivals, probe_answers(known, code, z, classes), world.k, seed=world.seed)
    reference = _better(accuracy)
    parts = {f"acc_{name}": value for name, value in accuracy.items()}
    return parts | {"a_source": right, "a_reference": accuracy[reference]}, reference


def _better(accuracy: Mapping[str, float]) -> Reference:
    return "ssl" if accuracy.get("ssl", 0.0) > accuracy["raw"] else "raw"


def _unseen(world: Target) -> tuple[Whole, Whole]:
    """Give the rows that the pilot is not trained on, and the positions in `rows` of the unlabelled ones among them.

    The pilot remembers its teacher on the pairs it was distilled on, and pseudo-labels are spread along the teacher, so
    that it agrees with them there far better than on others. A prediction-powered mean needs unlabelled rows like the
    labelled ones: they are left out of training, too, by whole groups. No rows are given where too few pairs would
    remain, nor where no other rows are like the labelled ones: those of classes left out are among them, or the
    labelled rows' own groups are trained on.
    """
    n, m = len(world.raw), len(world.index)
    group = np.arange(n) if world.groups is None else world.groups
    near = np.isin(group, group[world.index])
    none = np.empty(0, dtype=np.int64)
    if world.groups is not None and 2 * int(near.sum()) > n:
        return world.index, none
    away = m + np.flatnonzero(~near[world.rows[m:]])
    order = np.random.default_rng(world.seed).permutation(np.unique(group[world.rows[away]]))
    whole, drawn = (np.bincount(of, minlength=int(group.max()) + 1)[order] for of in (group, group[world.rows[away]]))
    held = order[(whole.cumsum() <= n // HELD_SHARE) & (drawn.cumsum() <= UNLABELLED)]
    left_out = near | np.isin(group, held)
    if world.left_out or n - int(left_out.sum()) < PILOT_PAIRS:
        return np.flatnonzero(near), none
    return np.flatnonzero(left_out), away[np.isin(group[world.rows[away]], held)]


def _retrieval(student: Doubles, teacher: Doubles, seed: int) -> tuple[float, float]:
    """Give the share of rows whose ridge embedding finds its own teacher embedding among 64, and that of chance.

    Groups of candidates are drawn, as rows may be sorted by class; there is one where there are fewer rows. Of t
    candidates that are nearest alike, the right one among them counts 1 / t, as if one of them were drawn: a teacher of
    few distinct embeddings is not below chance, and a constant one at it.
    """
    n, size = len(student), min(CANDIDATES, len(student))
    order = np.random.default_rng(seed).permutation(n)
    found: list[float] = []
    for start in range(0, n - size + 1, size):
        rows = order[start : start + size]
        near = student[rows] @ teacher[rows].T
        nearest = near >= near.max(axis=1, keepdims=True) - TIED
        found.extend((nearest.diagonal() / nearest.sum(axis=1)).tolist())
    return float(np.mean(found)), 1 / size


def _warnings(
    target: Doubles, code: Whole, left_out: int, ssl: Doubles | None, groups: Whole | None, index: Whole
) -> tuple[str, ...]:
    found: list[str] = []
    counts = np.bincount(code)
    if len(code) < FEW_LABELS:
        found.append(f"{len(code)} labels are few: below {FEW_LABELS} the forecast is mostly their noise")
    if left_out:
        of = f"{left_out} of {left_out + len(counts)} classes"
        found.append(f"{of} had a single label: the forecast is of the other {len(counts)}")
    if counts.min() == 1 < counts.max():
        found.append("a class has a single label: all were treated as if one label per class were known")
    if ssl is None:
        found.append("no target-only self-supervised embedding was given: the gain is over raw features alone")
    if _like_pixels(target):
        found.append("the target looks like pixels, in which no shallow map lives: give generic features of them")
    if groups is not None:
        held, there = len(np.unique(groups[index])), int(groups.max()) + 1
        if held < 5 and 2 * held <= there:
            found.append(f"labels sit in {held} of {there} groups, and speak for these alone")
    return tuple(found)


def _like_pixels(target: Doubles) -> bool:
    """Tell whether 64 columns or more hold whole numbers 0 .. 255, or those divided by 255."""
    if target.shape[1] < 64 or target.min() < 0 or target.max() > 255 or target.max() == target.min():
        return False
    scaled = target * 255 if target.max() <= 1 else target
    return bool(np.abs(scaled - np.round(scaled)).max() < 1e-3)


def _unit(name: str, x: ArrayLike, n: int) -> Doubles:
    rows = feature_rows(name, x)
    if len(rows) != n:
        raise DataError(f"{name} must have a row for each of the {n} pairs; received {len(rows)}")
    return unit_rows(rows)
