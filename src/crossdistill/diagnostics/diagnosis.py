"""What can be said of candidate teachers before a student is trained: one call, a verdict, and its reasons.

    pairs ──► border checks ──► findings                 labels ──► forecast of the gain ──► verdict, ranking
        └───► distances, information, what is shared ──► estimates, each with its error, or why it is withheld

An estimate that is not meaningful on these data is withheld with its reason, never printed. The verdict is the
forecast's; the other estimates explain it and, taken alone, forecast the gain badly (`forecast`).

Shapes: n pairs, d columns of a source, D of the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.bound import rademacher_linear, reconstructed_bound, vote_certificate
from crossdistill.diagnostics.calibration import default_calibration
from crossdistill.diagnostics.complementary import Complementarity, complementarity
from crossdistill.diagnostics.distance import SIZE, kernel_kl, kernel_tv, mi_lower_bound, vote_error
from crossdistill.diagnostics.estimate import Estimate
from crossdistill.diagnostics.forecast import Forecast, Verdict, rank_sources
from crossdistill.diagnostics.information import CalibrationPoint, calibration_line
from crossdistill.diagnostics.information_prepared import probe_logits
from crossdistill.diagnostics.pairing import Finding, check_pairs
from crossdistill.diagnostics.ridge import ridge_student, standardised
from crossdistill.diagnostics.self_supervision import target_embedding
from crossdistill.diagnostics.shared import shared_information
from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, label_column

MOST_LABELS = 20
"""Labels of a class that the forecast looks at: it was calibrated up to there, and gains shrink beyond."""
INFORMATION = ("information_shared", "information_known")
DISTANCES, VOTES = ("kernel_tv", "kernel_kl", "mi_lower_bound"), ("vote_error", "certificate")
NO_LABEL = "no row has a label; give a few of each class"
SHARED = ("shared", "only_source", "only_target", "synergy", "redundancy")
SLIPPED = {"slip", "shuffled part", "mixed pairs"}
"""Findings on pairs that are right once they are put in order, which no forecast of these rows is about."""
NUMBERS = (*DISTANCES, *VOTES, *INFORMATION, "complementarity", *SHARED)
"""What is measured of a candidate beside the forecast, or else withheld; what hangs on another comes after it."""
OWN = ("target", "groups")
"""Where findings of one candidate are those of all."""


@dataclass(frozen=True)
class Withheld:
    """A number that is not given.

    Attributes:
        what: Which.
        teacher: Of which candidate; empty where of all.
        reason: Why, in a line.
    """

    what: str
    teacher: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """One candidate teacher; made by `diagnose`.

    Attributes:
        name: As given.
        forecast: Of the gain with it; None where it is withheld.
        verdict: The forecast's; "undecided" without one, and where a forecast of help meets pairs that are none.
        findings: What the border checks found of its pairs.
        estimates: By name: the parts of the forecast (`Forecast.parts`); "kernel_tv", "kernel_kl", "mi_lower_bound",
            "vote_error" and "certificate" (`distance`, `bound`), between the teacher's embedding and the ridge
            student's; "information_shared", "information_known" and "complementarity" (`complementarity`), of
            predictions by linear probes on the few labels; "shared", "only_source", "only_target", "synergy" and
            "redundancy" (`shared`).
        theory: The reconstructed bound term by term, as plain values; empty without labels.
    """

    name: str
    forecast: Forecast | None
    verdict: Verdict
    findings: tuple[Finding, ...]
    estimates: Mapping[str, Estimate]
    theory: Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """What an estimator says of data of equal size whose truth is known, beside what it says here.

    Attributes:
        teacher: Of which candidate.
        what: The name of its estimate.
        points: Of the estimator, by known truth; nats.
    """

    teacher: str
    what: str
    points: tuple[CalibrationPoint, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What is known before training; made by `diagnose`.

    Attributes:
        teachers: Best forecast first; in the order given where there is no forecast.
        differences: Forecast of one less that of another, by both names, for all couples in the order of `teachers`.
        lines: Calibration lines of the estimators of information.
        findings: Of the border checks, of target and groups; those of a candidate's pairs are with it.
        withheld: What is not given, and why.
        warnings: What a reader must know of the forecast, a sentence each.
        pairs: n.
        labelled: Rows with a label.
        used: Labelled rows that the forecast looked at.
        classes: Classes that occur.
        groups: Different groups; None where none were given.
        level: Of the forecast's interval.
        training: Whether anything was trained: the self-supervised reference, and pilots.
        seed: Of everything random.
        seconds: Of wall clock.
    """

    teachers: tuple[Candidate, ...]
    differences: Mapping[tuple[str, str], Estimate]
    lines: tuple[Line, ...]
    findings: tuple[Finding, ...]
    withheld: tuple[Withheld, ...]
    warnings: tuple[str, ...]
    pairs: int
    labelled: int
    used: int
    classes: int
    groups: int | None
    level: float
    training: bool
    seed: int
    seconds: float

    @property
    def best(self) -> Candidate:
        """The candidate with the best forecast."""
        return self.teachers[0]

    @property
    def verdict(self) -> Verdict:
        """Of the best candidate."""
        return self.best.verdict

    @property
    def gain(self) -> Estimate | None:
        """Forecast of the best candidate, a fraction of balanced accuracy; None where it is withheld."""
        return None if self.best.forecast is None else self.best.forecast.gain

    @property
    def stops(self) -> tuple[Finding, ...]:
        """Findings that spoil the study of the best candidate."""
        return tuple(f for f in (*self.best.findings, *self.findings) if f.severity == "stop")

    @property
    def sentence(self) -> str:
        """The verdict in a sentence, in points."""
        spoilt = f" But first: {self.stops[0].what}; {self.stops[0].do}." if self.stops else ""
        best, gain = self.best, self.gain
        if gain is None or best.forecast is None:
            reason = next((w.reason for w in self.withheld if w.what == "gain"), "there is no forecast")
            return f"Undecided: the gain cannot be forecast ({reason}).{spoilt}"
        low, high = 100 * (gain.low or 0.0), 100 * (gain.high or 0.0)
        against = {"raw": "the raw features of the target", "ssl": "target-only self-supervision"}
        words = {"help": "will probably help", "no help": "will probably not help", "undecided": "may or may not help"}
        who = f"Distilling from '{best.name}'" if len(self.teachers) > 1 else "Distillation"
        return (
            f"{who} {words[best.verdict]}: {100 * gain.value:+.1f} points forecast over "
            f"{against[best.forecast.reference]} ({100 * gain.level:.0f} % interval {low:+.1f} to {high:+.1f}; "
            f"{best.forecast.k} {'label' if best.forecast.k == 1 else 'labels'} of the rarest class).{spoilt}"
        )

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain values for `diagnosis.json`."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "gain": _gain(self.best.forecast),
            "teachers": [
                {
                    "name": one.name,
                    "gain": _gain(one.forecast),
                    "verdict": one.verdict,
                    "reference": None if one.forecast is None else one.forecast.reference,
                    "findings": [finding.as_json() for finding in one.findings],
                    "theory": dict(one.theory),
                }
                for one in self.teachers
            ],
            "differences": [
                {"first": a, "second": b, **difference.as_json()} for (a, b), difference in self.differences.items()
            ],
            "estimates": {
                f"{one.name}/{name}": estimate.as_json()
                for one in self.teachers
                for name, estimate in one.estimates.items()
            },
            "calibration_lines": [self._line(line) for line in self.lines],
            "findings": [finding.as_json() for finding in self.findings],
            "withheld": [{"what": w.what, "teacher": w.teacher, "reason": w.reason} for w in self.withheld],
            "warnings": list(self.warnings),
            "settings": {
                "pairs": self.pairs,
                "labelled": self.labelled,
                "labels_used": self.used,
                "classes": self.classes,
                "groups": self.groups,
                "level": self.level,
                "training": self.training,
                "seed": self.seed,
            },
            "seconds": round(self.seconds, 2),
        }

    def _line(self, line: Line) -> dict[str, Any]:
        found = next(one.estimates[line.what] for one in self.teachers if one.name == line.teacher)
        return {
            "teacher": line.teacher,
            "what": line.what,
            "points": [[point.truth, point.value, point.spread] for point in line.points],
            "value": found.value,
            "low": found.low,
            "high": found.high,
        }


def _gain(forecast: Forecast | None) -> dict[str, Any] | None:
    return None if forecast is None else forecast.gain.as_json()


def diagnose(
    sources: Mapping[str, ArrayLike],
    target: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    splits: ArrayLike | None = None,
    training: bool = True,
    pilot: bool = False,
    level: float = 0.9,
    seed: int = 0,
) -> Diagnosis:
    """Say of one candidate teacher or several whether, and how much, distilling from it will help.

    Args:
        sources: Name to the embedding (n, any) that a teacher gives of the source side of the pairs; raw features of
            the source will do, and are then what is diagnosed.
        target: (n, D) features of the target side, row i the partner of row i.
        labels: (n,) whole numbers, -1 where unknown; None or all unknown leaves the forecast out.
        groups: (n,) what a pair belongs to and must not be split: a person, a scene.
        splits: (n,) the part each pair is in, for the search for leaks.
        training: Whether a target-only self-supervised reference is trained, for a few seconds; without it raw features
            are the only reference, and the gain is overstated where self-supervision is the better one.
        pilot: Whether a pilot student stands for the student, for some seconds a candidate, in the place of the closed
            form; the closed form went better with the gains of the bench.
        level: Of the forecast's interval, 0.8 or 0.9, for which it was calibrated.
        seed: Of everything random. Same arguments, same numbers.

    Raises:
        DataError: If shapes do not fit or a number is not finite, naming the array and the row.
        ConfigError: If there is no source, or a parameter is out of range.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 4, 300)
        >>> latent = 3 * np.eye(4)[y] + rng.normal(size=(300, 4))
        >>> target = np.concatenate([0.3 * latent + rng.normal(size=(300, 4)), rng.normal(size=(300, 20))], axis=1)
        >>> few = np.where(np.arange(300) < 60, y, -1)
        >>> found = diagnose({"photo": latent, "noise": rng.normal(size=(300, 4))}, target, labels=few, training=False)
        >>> found.best.name, [finding.check for finding in found.teachers[1].findings if finding.severity == "stop"]
        ('photo', ['pairing'])
    """
    start = time.perf_counter()
    if not sources:
        raise ConfigError("diagnose needs one source or more")
    default_calibration("ridge").quantile(level)
    if pilot and not training:
        raise ConfigError("a pilot is trained; leave out one of pilot and training=False")
    x = feature_rows("target", target)
    given = {name: feature_rows(f"source '{name}'", z) for name, z in sources.items()}
    for name, z in given.items():
        if len(z) != len(x):
            raise DataError(
                f"source '{name}' has {len(z)} rows and the target {len(x)}; row i of both must be one pair"
            )
    group = None if groups is None else label_column("groups", groups, len(x))
    code = _codes(labels, len(x))
    known = np.flatnonzero(code >= 0)
    withheld: list[Withheld] = []
    checked = {
        name: check_pairs(
            z, x, labels=code if len(known) else None, groups=group, splits=splits, level=level, seed=seed
        )
        for name, z in given.items()
    }
    index = _few(code, len(x), seed)
    live = _varied(given, x, withheld)
    forecasts, differences = _forecasts(live, x, code[index], index, group, training, pilot, level, seed, withheld)
    warnings = _of_labels(len(known), len(index), len(x)) if forecasts else ()
    teachers: list[Candidate] = []
    lines: list[Line] = []
    told = _Lines(len(x), len(known), len(np.unique(code[known])), seed)
    for name in (*forecasts, *(name for name in given if name not in forecasts)):
        mine = tuple(finding for finding in checked[name] if finding.array not in OWN)
        forecast = forecasts.get(name)
        if name not in live:
            why = next(w.reason for w in withheld if w.what == "gain" and w.teacher in ("", name))
            withheld += [Withheld(what, name, why) for what in NUMBERS]
            teachers.append(Candidate(name, None, "undecided", mine, {}, {}))
            continue
        measured = _Measured(name, given[name], x, code, group, seed, withheld)
        teachers.append(
            Candidate(name, forecast, _verdict(forecast, mine), mine, _all(measured, forecast), measured.theory())
        )
        lines += [Line(name, what, told.of(what)) for what in INFORMATION if what in measured.found]
    of_all = tuple(finding for finding in next(iter(checked.values())) if finding.array in OWN)
    return Diagnosis(
        tuple(teachers),
        differences,
        tuple(lines),
        of_all,
        tuple(withheld),
        (*warnings, *_warned(forecasts)),
        len(x),
        len(known),
        len(index),
        len(np.unique(code[known])),
        None if group is None else len(np.unique(group)),
        level,
        training,
        seed,
        time.perf_counter() - start,
    )


# Labels and forecast -----------------------------------------------------------------------------------------------


def _codes(labels: ArrayLike | None, n: int) -> Whole:
    """Give labels as (n,) int64, -1 where unknown."""
    if labels is None:
        return np.full(n, -1)
    column = label_column("labels", labels, n)
    if column.dtype.kind not in "iu" or (len(column) and column.min() < -1):
        raise DataError("labels must be whole numbers from 0, and -1 where a row has none")
    return column.astype(np.int64)


def _few(code: Whole, n: int, seed: int) -> Whole:
    """Choose labelled rows for the forecast, ascending: at most 20 of a class, and half of the pairs."""
    order = np.random.default_rng(seed).permutation(n)
    order = order[code[order] >= 0]
    place = np.zeros(len(order), dtype=np.int64)
    for c in np.unique(code[order]):
        mine = np.flatnonzero(code[order] == c)
        place[mine] = np.arange(len(mine))
    most = MOST_LABELS
    while most > 1 and int((place < most).sum()) > n // 2:
        most -= 1
    return np.sort(order[place < most])


def _of_labels(known: int, used: int, n: int) -> tuple[str, ...]:
    if used == known:
        return ()
    return (
        f"the forecast is for {used} of the {known} labelled rows, {MOST_LABELS} of a class at most and half of the "
        f"{n} pairs: with more labels gains are smaller, and nothing was calibrated there",
    )


def _varied(given: Mapping[str, Doubles], x: Doubles, withheld: list[Withheld]) -> dict[str, Doubles]:
    """Give the sources that vary, none where the target does not; of the others all is withheld."""
    if not np.ptp(x, axis=0).any():
        withheld.append(Withheld("gain", "", "every column of the target is constant"))
        return {}
    live = {name: z for name, z in given.items() if np.ptp(z, axis=0).any()}
    withheld += [Withheld("gain", name, "every column of the source is constant") for name in given if name not in live]
    return live


def _reference(x: Doubles, training: bool, seed: int, withheld: list[Withheld]) -> Doubles | None:
    """Give the target's own self-supervised embedding, or None."""
    if not training:
        return None
    try:
        return target_embedding(standardised(x), seed=seed)
    except NotMeaningful as error:
        withheld.append(Withheld("self_supervision", "", str(error)))
        return None


def _forecasts(
    given: Mapping[str, Doubles],
    x: Doubles,
    labels: Whole,
    index: Whole,
    group: Any,
    training: bool,
    pilot: bool,
    level: float,
    seed: int,
    withheld: list[Withheld],
) -> tuple[dict[str, Forecast], Mapping[tuple[str, str], Estimate]]:
    """Give the forecasts, the best first, and their differences; nothing where they cannot be made."""
    if not given:
        return {}, {}
    if not len(index):
        withheld.append(Withheld("gain", "", NO_LABEL))
        return {}, {}
    how: dict[str, Any] = {
        "ssl": _reference(x, training, seed, withheld),
        "groups": group,
        "level": level,
        "seed": seed,
    }
    try:
        found = rank_sources(given, x, labels, index, proxy="pilot" if pilot else "ridge", **how)
    except NotMeaningful as error:
        withheld.append(Withheld("gain", "", str(error)))
        return {}, {}
    return dict(found.forecasts), found.differences


def _warned(forecasts: Mapping[str, Forecast]) -> list[str]:
    """Give the warnings of all forecasts, each once."""
    return list(dict.fromkeys(w for forecast in forecasts.values() for w in forecast.warnings))


def _verdict(forecast: Forecast | None, findings: tuple[Finding, ...]) -> Verdict:
    if forecast is None:
        return "undecided"
    checks = {finding.check for finding in findings}
    if SLIPPED & checks or ("pairing" in checks and forecast.verdict == "help"):
        return "undecided"
    return forecast.verdict


# The other estimates -----------------------------------------------------------------------------------------------


class _Measured:
    """The estimates of one candidate, each measured when asked for, or withheld."""

    def __init__(
        self, name: str, z: Doubles, x: Doubles, code: Whole, group: Any, seed: int, withheld: list[Withheld]
    ) -> None:
        self.name, self.z, self.code, self.group, self.seed, self.withheld = name, z, code, group, seed, withheld
        self.known, self.views = np.flatnonzero(code >= 0), (z, x)
        self.student = self._try("ridge_student", lambda: ridge_student(x, z, groups=group, seed=seed))
        self.found: dict[str, Estimate] = {}

    def all(self) -> dict[str, Estimate]:
        """Measure distances, the bound on information, and the certificate."""
        z, seed, group = self.z, self.seed, self.group
        if self.student is not None:
            own = self.student.values
            self._add("kernel_tv", lambda: kernel_tv(z, own, groups=group, seed=seed))
            self._add("kernel_kl", lambda: kernel_kl(z, own, groups=group, seed=seed))
            self._add("mi_lower_bound", lambda: mi_lower_bound(z, own, groups=group, seed=seed))
        self._votes()
        self._information()
        self._name_the_rest()
        return self.found

    def _name_the_rest(self) -> None:
        """Say of every other number why it is not there: what it hangs on is withheld, or there are no labels."""
        reasons = {w.what: w.reason for w in self.withheld if w.teacher == self.name}
        hangs = dict.fromkeys((*DISTANCES, *VOTES), "ridge_student") | {"certificate": "vote_error"}
        hangs |= dict.fromkeys(INFORMATION, "complementarity") | dict.fromkeys(SHARED, "shared")
        for what in NUMBERS:
            if what in self.found or what in reasons:
                continue
            needs_labels = what not in DISTANCES and not len(self.known)
            reasons[what] = NO_LABEL if needs_labels else reasons[hangs[what]]
            self.withheld.append(Withheld(what, self.name, reasons[what]))

    def _votes(self) -> None:
        """Measure how often the source's neighbours err, and certify what the student's can."""
        if not len(self.known) or self.student is None:
            return
        z, seed, group = self.z, self.seed, self.group
        rows = self.known
        theirs = None if group is None else group[rows]
        if len(rows) < 2 * SIZE:
            reason = f"votes need two sets of {SIZE} labelled rows; there are {len(rows)}"
            self.withheld += [Withheld(what, self.name, reason) for what in ("vote_error", "certificate")]
            return
        err = self._add("vote_error", lambda: vote_error(z[rows], self.code[rows], groups=theirs, seed=seed))
        if err is None:
            return
        own, code = self.student.values[rows], self.code[rows]

        def bound() -> Estimate:  # by class: far tighter, and as good for votes on these labels
            return vote_certificate(err, kernel_tv(z[rows], own, labels=code, groups=theirs, seed=seed)).bound

        self._add("certificate", bound)

    def _information(self) -> None:
        """Measure what teacher and target say of each other and of the label, by probes on the few labels."""
        if not len(self.known):
            return
        code, group, seed = self.code, self.group, self.seed

        def gap() -> Complementarity:
            teacher, student = (probe_logits(view, code, groups=group, seed=seed) for view in self.views)
            return complementarity(teacher, student, code, groups=group, seed=seed)

        found = self._try("complementarity", gap)
        if found is not None:
            self.found |= {"information_shared": found.shared, "information_known": found.known}
            self.found["complementarity"] = replace(found.gap, note=found.reason)
        parts = self._try("shared", lambda: shared_information(*self.views, code, groups=group, seed=seed))
        if parts is not None:
            self.found |= {name: getattr(parts, name) for name in SHARED}

    def theory(self) -> dict[str, Any]:
        """Lay out the reconstructed bound, where there are labels."""
        distance = self.found.get("kernel_tv")
        if distance is None or len(self.known) < 2 or self.student is None:
            return {}
        classes = len(np.unique(self.code[self.known]))
        if classes < 2:
            return {}
        complexity = rademacher_linear(self.student.values[self.known], classes, seed=self.seed)
        return reconstructed_bound(distance, complexity).as_json()

    def _add(self, what: str, make: Callable[[], Estimate]) -> Estimate | None:
        made = self._try(what, make)
        if made is not None:
            self.found[what] = made
        return made

    def _try(self, what: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except NotMeaningful as error:
            self.withheld.append(Withheld(what, self.name, str(error)))
            return None


class _Lines:
    """Calibration lines of the Gaussian estimator on class scores, each drawn once for all candidates."""

    def __init__(self, n: int, known: int, classes: int, seed: int) -> None:
        self.sizes = {"information_shared": (n, None), "information_known": (known, classes)}
        self.columns, self.seed = classes, seed
        self.made: dict[str, tuple[CalibrationPoint, ...]] = {}

    def of(self, what: str) -> tuple[CalibrationPoint, ...]:
        """Give the line of an estimate."""
        if what not in self.made:
            n, classes = self.sizes[what]
            c = self.columns
            self.made[what] = tuple(calibration_line("gaussian", n, c, c, classes=classes, seed=self.seed))
        return self.made[what]


def _all(measured: _Measured, forecast: Forecast | None) -> dict[str, Estimate]:
    """Put the forecast's parts before the other estimates."""
    parts: dict[str, Estimate] = {}
    if forecast is not None:
        for name, part in forecast.parts.items():
            if name == "tv":  # `kernel_tv` says it
                continue
            parts[name] = (
                part
                if isinstance(part, Estimate)
                else Estimate(
                    part, None, None, None, len(measured.z), kind="all pairs", settings={"seed": measured.seed}
                )
            )
    return {**parts, **measured.all()}
