"""Does a teacher of another modality help? The Cross-modal Complementarity Hypothesis (Xie, Xu and Sanguinetti 2025).

    gap = I(teacher; student) - I(student; label),      above 0: it helps; of several teachers the one of largest gap

    complementarity     the gap of one teacher with both terms, an interval, and what shuffled pairs give
    rank_teachers       several teachers on the same sub-samples, with paired differences

Teacher and student are what networks that were trained apart, on other samples than these, say of the pairs:
predictions or logits, as in the theorem. On raw features the first term grows with every nuisance that modalities
share (light, speaker) and the gap with it, whatever the labels are; `information_prepared.probe_logits` makes
predictions of features. On samples that the teacher was trained on it repeats the labels, and the gap is 0 by itself.

The ranking is to be read first, the sign second. Of hard predictions ("discrete") the gap is hardly ever above 0, since
few teachers agree with the student more than it agrees with the labels; it ranks well. And the sign is sufficient
for nothing but some small weight of distillation, necessary for nothing: see `gaussian_risk` for what it leaves out.

Source: the rule from the abstract; the rest of the paper was not available to us. Error bars, controls and "undecided"
are our own.

Shapes: n pairs, d and e columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.estimate import Estimate, check_level
from crossdistill.diagnostics.information_prepared import Estimator, Prepared, Side, prepare, side
from crossdistill.diagnostics.sub_samples import DRAWS, MOST_DRAWN, SubSamples
from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Doubles, Whole, label_column

Verdict = Literal["help", "no help", "undecided"]
UNKNOWN = -1
"""Label of pairs without one."""
BIASED = 0.5
"""Share of the gap above which the estimator's own gap of shuffled pairs forbids a verdict."""


@dataclass(frozen=True)
class Complementarity:
    """The gap of one teacher; made by `complementarity`.

    Attributes:
        shared: I(teacher; student), nats, over all pairs.
        known: I(student; label), nats, over the labelled ones.
        gap: Their difference, on the same sub-samples.
        null_shared: I(teacher; student) by the same estimator once pairs are shuffled, which is 0 in truth.
        null_known: I(student; label) likewise.
        verdict: "help" or "no help" where the interval lies on one side of 0 and shuffled pairs do not explain it.
        reason: Why, in a line.
    """

    shared: Estimate
    known: Estimate
    gap: Estimate
    null_shared: float
    null_known: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Ranking:
    """Several teachers; made by `rank_teachers`.

    Attributes:
        teachers: By name, the largest gap first.
        differences: Gap of the first less that of the second, by both names, in that order; the label's term cancels.
        best: The first, where its difference to every other is above 0 with its interval; else None.
    """

    teachers: Mapping[str, Complementarity]
    differences: Mapping[tuple[str, str], Estimate]
    best: str | None


def complementarity(
    teacher: ArrayLike,
    student: ArrayLike,
    label: ArrayLike,
    *,
    estimator: Estimator = "gaussian",
    k: int = 3,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Complementarity:
    """Estimate the gap of one teacher, both terms by the same estimator.

    Args:
        teacher: Logits or other numbers (n, d), or predicted classes (n,), of pairs that it was not trained on.
        student: Of the same pairs (n, e) or (n,), by a student trained without a teacher.
        label: Classes (n,) of whole numbers, -1 where unknown, or words; or numbers (n, any) of a regression, all
            known.
        estimator: One that treats both terms alike: "gaussian" by default, which compares logits with indicators of
            classes; "discrete" for the ranking of hard predictions; "ksg", "latent" and "infonce" use another form
            against classes, whose bias differs. "classifier" has no first term.
        k: Neighbours of ksg and latent.
        groups: (n,), drawn and held out as a whole.
        level: Confidence of intervals, in (0, 1).
        draws: Sub-samples, 2 or more.
        seed: Of sub-samples, shuffling, halves and networks.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: As `information.mutual_information`, of either term.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> student = rng.normal(size=(2000, 1))
        >>> teacher, label = student + 0.3 * rng.normal(size=(2, 2000, 1)) * [[[1]], [[5]]]
        >>> complementarity(teacher, student, label).verdict
        'help'
    """
    made = _Student(student, label, estimator, k, groups, level, draws, seed)
    return made.judge(made.taught("teacher", teacher))


def rank_teachers(
    teachers: Mapping[str, ArrayLike],
    student: ArrayLike,
    label: ArrayLike,
    *,
    estimator: Estimator = "gaussian",
    k: int = 3,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Ranking:
    """Rank teachers by their gaps, with the differences of every two on the same sub-samples.

    Intervals of differences are for one comparison each. Without a `best`, which teacher is best cannot be told.

    Args:
        teachers: By name, each as `complementarity` takes it.
        student: As there, and so are the others.
        label: As there.
        estimator: As there.
        k: As there.
        groups: As there.
        level: As there.
        draws: As there.
        seed: As there.

    Raises:
        DataError: As there.
        ConfigError: As there, or if there is no teacher.
        NotMeaningful: As there.
    """
    if not teachers:
        raise ConfigError("rank_teachers needs one teacher or more; received none")
    made = _Student(student, label, estimator, k, groups, level, draws, seed)
    taught = {name: made.taught(name, values) for name, values in teachers.items()}
    judged = {name: made.judge(one) for name, one in taught.items()}
    order = sorted(judged, key=lambda name: -judged[name].gap.value)
    differences = {(a, b): made.difference(taught[a], taught[b]) for a, b in combinations(order, 2)}
    clear = all((differences[order[0], other].low or 0.0) > 0 for other in order[1:])
    return Ranking({name: judged[name] for name in order}, differences, order[0] if clear else None)


@dataclass(frozen=True, eq=False)
class _Term:
    """One of the two terms: of all pairs, and of each sub-sample, (draws,)."""

    value: float
    found: Doubles
    made: Prepared


@dataclass(frozen=True, eq=False)
class _Taught:
    """What a teacher shares with the student: of the pairs as they are, and shuffled."""

    shared: _Term
    null: float


class _Student:
    """The student's half of the rule, which all teachers have in common."""

    def __init__(
        self,
        student: ArrayLike,
        label: ArrayLike,
        estimator: Estimator,
        k: int,
        groups: ArrayLike | None,
        level: float,
        draws: int,
        seed: int,
    ):
        check_level(level)
        if estimator in ("auto", "classifier"):
            raise ConfigError(
                f"both terms need one estimator, and '{estimator}' is none; take 'gaussian' or 'discrete'"
            )
        self._student, self._level, self._seed = side("student", student), level, seed
        self._estimator: Estimator = estimator
        self._k, self._groups, self._every = k, groups, np.arange(len(self._student))
        shown, self._labelled = _labels(label, len(self._student))
        most = MOST_DRAWN if len(self._labelled) == len(self._student) else None  # or few of them would have a label
        self._drawn = SubSamples(len(self._student), groups, draws=draws, most=most, seed=seed)
        own = (
            self._student
            if len(self._labelled) == len(self._every)
            else side("student", np.asarray(student)[self._labelled])
        )
        here = None if groups is None else np.asarray(groups)[self._labelled]
        self._place = np.full(len(self._student), -1)
        self._place[self._labelled] = np.arange(len(self._labelled))
        known = prepare(own, shown, estimator=estimator, k=k, groups=here, seed=seed)
        self._known = self._term(known, lambda rows: known.at(self._with_label(rows)))
        order = self._shuffled(len(own))
        shuffled = prepare(own, shown.part(order), estimator=estimator, k=k, groups=here, seed=seed)
        self._null_known = shuffled.at(np.arange(len(own)))

    def taught(self, name: str, teacher: ArrayLike) -> _Taught:
        """Prepare the first term for one teacher."""
        given = side(name, teacher)
        if len(given) != len(self._student):
            raise DataError(
                f"{name} and student must be of the same pairs; received {len(given)}, {len(self._student)}"
            )
        shared = self._prepared(given)
        null = self._prepared(given.part(self._shuffled(len(given)))).at(self._every)
        return _Taught(self._term(shared, shared.at), null)

    def judge(self, taught: _Taught) -> Complementarity:
        """Apply the rule."""
        first, second = taught.shared, self._known
        gap = self._estimate(first.value - second.value, first.found - second.found, first.made, second.made)
        shared = self._estimate(first.value, first.found, first.made)
        known = self._estimate(second.value, second.found, second.made)
        verdict, reason = _verdict(gap, taught.null - self._null_known)
        return Complementarity(shared, known, gap, taught.null, self._null_known, verdict, reason)

    def difference(self, first: _Taught, second: _Taught) -> Estimate:
        """Give the first teacher's gap less the second's."""
        a, b = first.shared, second.shared
        return self._estimate(a.value - b.value, a.found - b.found, a.made, b.made)

    def _term(self, made: Prepared, at: Callable[[Whole], float]) -> _Term:
        return _Term(at(self._every), self._drawn.ask(at), made)

    def _prepared(self, teacher: Side) -> Prepared:
        return prepare(
            teacher, self._student, estimator=self._estimator, k=self._k, groups=self._groups, seed=self._seed
        )

    def _shuffled(self, n: int) -> Whole:
        return np.random.default_rng([self._seed, 3]).permutation(n)

    def _with_label(self, rows: Whole) -> Whole:
        """Give the places among labelled pairs of those of some pairs that have a label."""
        here = self._place[rows]
        return here[here >= 0]

    def _estimate(self, value: float, found: Doubles, *made: Prepared) -> Estimate:
        note = "; ".join(dict.fromkeys(note for one in made for note in one.notes))
        settings = {**made[0].settings, "labelled": len(self._labelled)}
        return self._drawn.estimate(value, found, self._level, fixed=made[0].fixed, settings=settings, note=note)


def _labels(label: ArrayLike, n: int) -> tuple[Side, Whole]:
    """Give the labels that are known, as a side, and the rows they are of."""
    given = np.asarray(label)
    if not given.ndim or len(given) != n:
        raise DataError(f"label must have one entry for each of {n} pairs; received shape {given.shape}")
    if given.ndim > 1 or given.dtype.kind not in "iu":
        return side("label", given), np.arange(n)
    known = np.flatnonzero(label_column("label", given) != UNKNOWN)
    if not len(known):
        raise DataError("no pair has a label: all are -1")
    return side("label", given[known]), known


def _verdict(gap: Estimate, null: float) -> tuple[Verdict, str]:
    low, high = gap.low or 0.0, gap.high or 0.0
    span = f"the gap is {gap.value:+.3f} nats, {100 * gap.level:g} % interval {low:+.3f} to {high:+.3f}"
    if low <= 0 <= high:
        return "undecided", f"{span}, which holds 0"
    if abs(null) > BIASED * abs(gap.value):
        return "undecided", f"{span}, but shuffled pairs give {null:+.3f}: the estimator's own bias"
    if low > 0:
        return "help", f"{span}: the teacher says more of the student than the label does"
    return "no help", f"{span}: the teacher says less of the student than the label does"
