"""Checks of pairs at the border: what would spoil a study, found in seconds on two arrays, before any training.

    pairing      rows that are no partners: shuffled, slipped, mixed, or matched by label alone
    copies       the same row twice; in two groups; in two parts of a split
    teacher      a source that cannot tell the labels, or is the target once more
    scale        columns that are constant or swamp the others, rows of zeros, bytes, vectors that all point one way,
                 a source of one column
    groups       too few of them for the interval that is asked for

Each finding says what, where, how bad, and what to do. Thresholds are our own.

Shapes: n pairs, d and D columns.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from crossdistill.diagnostics.alignment import INFLATION, LEAST_PAIRS, PairingTest, pairing_test
from crossdistill.diagnostics.estimate import check_level
from crossdistill.diagnostics.ridge import ridge_student, standardised
from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Doubles, Labels, Whole, feature_rows, label_column, unit_rows

Severity = Literal["stop", "warn"]

SHOWN = 10
"""Rows or columns that a finding names."""
ALARM = 0.01
"""p of a random pairing above which it is taken for one; as many of those pass unseen."""
NEAR = 0.1
"""Of the usual distance to the fifth nearest row: what is nearer is a copy, with noise."""
LEAST_COLUMNS = 5
"""Below, rows come that near by chance."""
PROJECTED = 16
"""Dimensions in which near rows are looked for."""
NEAR_CHANCE = 0.2
"""Of the way from chance to all right: a source is taken for one without a clue if it surely stays below."""
SAME = 1e-6
"""Standard deviations within which entries are equal: what single precision leaves."""
TEACHER_ROWS, SLIP_ROWS = 2000, 1500
"""Rows that are enough for telling, where all would cost seconds."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or doubtful; made by `check_pairs`.

    Attributes:
        check: Which check found it: "pairing", "slip", "shuffled part", "mixed pairs", "label pairs", "few pairs",
            "copies", "leak", "copies across groups", "group leak", "teacher", "constant columns", "scale", "zero rows",
            "one direction", "one column", "same array", "bytes" or "groups".
        severity: "stop", training on it is wasted or its figures are wrong; "warn", look before you go on.
        what: What was found, in a line.
        do: What to do about it, in a line.
        array: Where: "source", "target", "pairs", "labels" or "groups".
        rows: The first of the rows that are meant, 10 at most; empty where all are.
        columns: The first of the columns, likewise.
    """

    check: str
    severity: Severity
    what: str
    do: str
    array: str
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain values for a JSON file."""
        return {**asdict(self), "rows": list(self.rows), "columns": list(self.columns)}


def check_pairs(
    source: ArrayLike,
    target: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    splits: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Finding, ...]:
    """Look for what would spoil a study on these pairs.

    Args:
        source: (n, d) teacher embedding of the source, or features.
        target: (n, D) features of the target, row i the partner of row i.
        labels: (n,); of whole numbers, those below 0 are unknown.
        groups: (n,) what a pair belongs to and must not be split.
        splits: (n,) the part each pair is in, in any notation.
        level: Of the intervals that are wanted.
        seed: Of what is drawn.

    Returns:
        Findings, those that stop first; empty where all is in order.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.

    Examples:
        >>> import numpy as np
        >>> z = np.random.default_rng(0).normal(size=(400, 8))
        >>> x = z + np.random.default_rng(1).normal(size=z.shape)
        >>> check_pairs(z, x)
        ()
        >>> [(found.check, found.severity) for found in check_pairs(z[::-1], x)]
        [('pairing', 'stop')]
    """
    check_level(level)
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more; received {seed}")
    arrays = {"source": feature_rows("source", source), "target": feature_rows("target", target)}
    n = len(arrays["source"])
    if len(arrays["target"]) != n:
        raise DataError(f"row i of both must be one pair; received {n} and {len(arrays['target'])} rows")
    label, group, split = (
        None if column is None else label_column(name, column, n)
        for name, column in (("labels", labels), ("groups", groups), ("splits", splits))
    )
    known = None if label is None else _known(label)
    found: list[Finding] = []
    for name, x in arrays.items():
        found += _scale(name, x)
    found += _embedding(**arrays)
    usable = all(np.ptp(x, axis=0).any() for x in arrays.values())
    if usable:
        found += _alignment(
            arrays["source"], arrays["target"], label if known is not None and known.all() else None, seed
        )
    found += _copies(arrays, group, split, seed)
    if group is not None:
        found += _groups(group, split, level)
    if usable and label is not None and known is not None:
        found += _teacher(arrays["source"], label, known, group, seed)
    return tuple(sorted(found, key=lambda finding: finding.severity != "stop"))


def _alignment(source: Doubles, target: Doubles, label: Labels | None, seed: int) -> list[Finding]:
    n = len(source)
    if n < LEAST_PAIRS:
        what = f"{n} pairs are too few to test whether they are partners"
        return [Finding("few pairs", "warn", what, f"collect {LEAST_PAIRS} or more", "pairs")]
    test = pairing_test(source, target, labels=label, seed=seed)
    found: list[Finding] = []
    random, local = test.p_value > ALARM, test.z > 6 and test.local_z < 0.2 * test.z
    lags = (-1, 1, -2, 2) if random or local else () if test.slips else (-1, 1)
    lag = _slipped(source, target, test, lags, seed)
    if lag:
        found.append(_slip_finding(0, n - 1, lag, n))
    elif test.slips:
        found += [_slip_finding(slip.first, slip.last, slip.lag, n) for slip in test.slips]
    elif random:
        what = (
            f"the pairing carries nothing: a row's own source is the nearest of {test.set_size} to its prediction "
            f"in {test.retrieval:.1%} of cases, chance {1 / test.set_size:.1%} (p = {test.p_value:.2g})"
        )
        do = "compare how the two arrays were ordered; if they are in order, these features share nothing visible"
        found.append(Finding("pairing", "stop" if n >= 200 else "warn", what, do, "pairs"))
    elif local:
        what = "partners are right up to their neighbourhood in the array only, where rows look exchangeable"
        do = "check that rows were paired one by one, not shuffled or slipped within a class or a recording"
        found.append(Finding("label pairs", "warn", what, do, "pairs"))
    elif test.within_z is not None and test.within_z < 3 and test.z > 6:
        what = "the pairing carries nothing beyond the label"
        do = "if pairs were matched by label say so in every table: they already hold the labels; else check the order"
        found.append(Finding("label pairs", "warn", what, do, "pairs"))
    for first, last in () if test.slips else test.shuffled:  # rows that have slipped are at chance too
        what = f"rows {first} to {last} look shuffled while the others are partners"
        do = "check the order of these rows, or leave them out; rows of one odd kind can look so too"
        found.append(Finding("shuffled part", "warn", what, do, "pairs", _first(np.arange(first, last + 1))))
    if test.mixed and not found:  # all that was found above makes wrong pairs among good ones
        what = f"about {test.mixed:.0%} of the pairs look wrong among good ones"
        do = "look at the rows named; kinds that the features confuse look so too"
        worst = np.argsort(test.percentile, kind="stable")
        found.append(Finding("mixed pairs", "warn", what, do, "pairs", _first(worst)))
    return found


def _slipped(source: Doubles, target: Doubles, test: PairingTest, lags: tuple[int, ...], seed: int) -> int:
    """Give the lag at which the arrays as a whole match far better than as given; 0 if there is none.

    Each lag has a fit of its own, as one to slipped rows has learnt the slip.
    """
    few = len(source) <= SLIP_ROWS
    source, target = source[:SLIP_ROWS], target[:SLIP_ROWS]
    as_given = test.local_z if few or not lags else _match(source, target, seed)
    best, by = 0, as_given + 4  # of differences with a standard error of sqrt 2 at most
    for lag in lags:
        moved = (source[lag:], target[:-lag]) if lag > 0 else (source[:lag], target[-lag:])
        if (found := _match(*moved, seed)) > by:
            best, by = lag, found
    return best


def _match(source: Doubles, target: Doubles, seed: int) -> float:
    return pairing_test(source, target, permutations=99, seed=seed).local_z if len(source) >= LEAST_PAIRS else 0.0


def _slip_finding(first: int, last: int, lag: int, n: int) -> Finding:
    where = "the target's rows" if (first, last) == (0, n - 1) else f"the target's rows {first} to {last} or so"
    way = f"{abs(lag)} row{'s' * (abs(lag) > 1)} {'later' if lag > 0 else 'earlier'}"
    what = f"{where} have their partner {way} in the source"
    do = "find the row that was dropped or added before them in one of the arrays, and shift"
    return Finding("slip", "stop", what, do, "pairs", _first(np.arange(first, last + 1)))


class _Links(NamedTuple):
    """Couples of rows that are copies of each other, (links,) each, and whether exactly."""

    first: Whole
    second: Whole
    exact: NDArray[np.bool_]


def _copies(arrays: dict[str, Doubles], group: Labels | None, split: Labels | None, seed: int) -> list[Finding]:
    """Find copies in each array, and say what they break: a split, a group, or a count."""
    found: list[Finding] = []
    for name, x in arrays.items():
        if not np.ptp(x, axis=0).any():
            continue  # all rows are one: `_scale` says so
        first, second, exact = _links(x, np.random.default_rng(seed))
        across_splits = np.zeros(len(first), dtype=bool) if split is None else split[first] != split[second]
        across_groups = np.zeros(len(first), dtype=bool) if group is None else group[first] != group[second]
        cases: list[tuple[str, Severity, NDArray[np.bool_], str, str]] = [
            ("leak", "stop", across_splits, "in two parts of the split", "put copies into one part, or drop them"),
            (
                "copies across groups",
                "warn",
                across_groups & ~across_splits,
                "in two groups",
                "merge the groups, which are not independent, or drop the copies",
            ),
            (
                "copies",
                "warn",
                np.full(len(first), group is None) & ~across_splits,
                "more than once",
                "give groups that hold copies together (a photo with several sketches), or drop them",
            ),
        ]
        for check, severity, which, where, do in cases:
            if which.any():
                rows = np.unique(np.concatenate([first[which], second[which]]))
                kinds = [f"{np.sum(which & is_one)} {word}" for is_one, word in ((exact, "exact"), (~exact, "near"))]
                what = f"{len(rows)} rows of the {name} are {where} (couples: {', '.join(kinds)})"
                found.append(Finding(check, severity, what, do, name, _first(rows)))
    return found


def _links(x: Doubles, rng: np.random.Generator) -> _Links:
    """Find couples of equal or nearly equal rows, every copy linked to one other at least."""
    contiguous = np.ascontiguousarray(x + 0.0)  # -0.0 and 0.0 are one number
    _, kept, of = np.unique(
        contiguous.view(np.dtype((np.void, contiguous.dtype.itemsize * x.shape[1])))[:, 0],
        return_index=True,
        return_inverse=True,
    )
    origin = kept[of]
    copies = np.flatnonzero(origin != np.arange(len(x)))
    near = kept[_near(standardised(x)[kept], rng)]
    first, second = np.concatenate([origin[copies], near[:, 0]]), np.concatenate([copies, near[:, 1]])
    return _Links(first, second, np.arange(len(first)) < len(copies))


def _near(x: Doubles, rng: np.random.Generator) -> Whole:
    """Find couples (any, 2) of distinct rows that are far nearer to each other than rows are to their fifth nearest."""
    x = x[:, x.any(axis=0)]
    n, width = len(x), int(x.shape[1])
    none = np.empty((0, 2), dtype=np.int64)
    if n < 20 or width < LEAST_COLUMNS:
        return none
    asked = rng.choice(n, min(n, 300), replace=False)
    square = np.square(x).sum(axis=1)
    apart = np.maximum(square[asked, None] + square - 2 * x[asked] @ x.T, 0)
    radius = NEAR * float(np.sqrt(np.median(np.partition(apart, 5, axis=1)[:, 5])))
    if radius == 0:
        return none
    # a random projection shortens distances alike: couples twice as far there as expected are lost once in 10^7
    wide = width > PROJECTED
    seen = x @ rng.standard_normal((width, PROJECTED)) / PROJECTED**0.5 if wide else x
    couples: Whole = cKDTree(seen).query_pairs(2 * radius if wide else radius, output_type="ndarray").astype(np.int64)
    if not len(couples):
        return none
    distance = np.linalg.norm(x[couples[:, 0]] - x[couples[:, 1]], axis=1)
    return couples[distance <= radius]


def _groups(group: Labels, split: Labels | None, level: float) -> list[Finding]:
    found: list[Finding] = []
    names, code, size = np.unique(group, return_inverse=True, return_counts=True)
    if split is not None:
        parts = np.unique(np.stack([code, np.unique(split, return_inverse=True)[1]], axis=1), axis=0)[:, 0]
        torn = np.flatnonzero(np.bincount(parts, minlength=len(names)) > 1)
        if len(torn):
            what = f"{len(torn)} of {len(names)} groups are in two parts of the split, such as {names[torn[0]]!s}"
            rows = _first(np.flatnonzero(np.isin(code, torn)))
            found.append(Finding("group leak", "stop", what, "split by group", "groups", rows))
    # the sign of all groups agrees by chance once in 2^(groups - 1)
    least = 1 + math.ceil(-math.log2(1 - level) - 1e-9)
    if len(names) < least:
        severity: Severity = "stop" if len(names) < 2 else "warn"
        many = "1 group is" if len(names) == 1 else f"{len(names)} groups are"
        what = f"{many} too few for a {level:.0%} interval over groups, which takes {least}"
        do = "collect more groups, or ask for a lower level; rows of a group do not stand in for others"
        found.append(Finding("groups", severity, what, do, "groups"))
    elif 2 * size.max() > len(group):
        what = f"group {names[size.argmax()]!s} holds {size.max()} of {len(group)} rows: intervals hang on it"
        rows = _first(np.flatnonzero(code == size.argmax()))
        found.append(Finding("groups", "warn", what, "report it alone, or take fewer of its rows", "groups", rows))
    return found


def _teacher(
    source: Doubles, label: Labels, known: NDArray[np.bool_], group: Labels | None, seed: int
) -> list[Finding]:
    """Compare what a ridge classifier on the source reaches out of fold with chance, as balanced accuracy."""
    rows = np.flatnonzero(known)
    if len(rows) > TEACHER_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, TEACHER_ROWS, replace=False))
    classes, code, size = np.unique(label[rows], return_inverse=True, return_counts=True)
    c = len(classes)
    own = None if group is None else group[rows]
    if c < 2 or len(rows) < LEAST_PAIRS or (own is not None and len(np.unique(own)) < 2):
        return []  # there is no telling
    fitted = ridge_student(source[rows], np.eye(c)[code], groups=own, seed=seed).values
    answer = (fitted * len(rows) / size).argmax(axis=1)
    right = np.bincount(code[answer == code], minlength=c)
    reached, chance = float((right / size).mean()), 1 / c
    # whatever is answered without regard to the labels is right once in c, balanced
    share = np.bincount(answer, minlength=c) / len(rows)
    apart = (reached - chance) / (INFLATION * float(np.sqrt(np.sum(share * (1 - share) / size))) / c)
    if apart > 2.33:  # one in a hundred sources without a clue passes
        return []
    # one row more of each answer: none right of five does not make sure
    recall = (right + 1) / (size + 2)
    error = INFLATION * float(np.sqrt(np.sum(recall * (1 - recall) / size))) / c
    said = f"{reached:.1%} of {c} classes, chance {chance:.1%}"
    if float(recall.mean()) + 1.64 * error > chance + NEAR_CHANCE * (1 - chance):
        least = int(size.argmin())
        what = f"the source cannot be told from chance on the labels: {said} ({size[least]} rows of {classes[least]!s})"
        return [Finding("teacher", "warn", what, "label more rows of the rarest classes", "source")]
    worse = "worse" if apart < -2.33 else "no better"
    do = "check that labels and rows are in one order; if they are, this teacher has nothing to teach about them"
    what = f"the source tells the labels {worse} than chance: {said}"
    return [Finding("teacher", "stop" if len(rows) >= 200 else "warn", what, do, "source")]


def _scale(name: str, x: Doubles) -> list[Finding]:
    found: list[Finding] = []
    span = np.ptp(x, axis=0)
    constant = np.flatnonzero(span == 0)
    if len(constant) == x.shape[1]:
        what = f"all rows of the {name} are the same"
        return [Finding("constant columns", "stop", what, "check how it was made; it carries nothing", name)]
    if len(constant):
        what = f"{len(constant)} of {x.shape[1]} columns of the {name} are constant"
        found.append(Finding("constant columns", "warn", what, "drop them", name, columns=_first(constant)))
    large = np.abs(x).max(axis=0)
    usual = float(np.median(span[span > 0]))
    swamping = np.flatnonzero(span > 100 * usual)
    if len(swamping):
        what = f"{len(swamping)} columns of the {name} span more than 100 times what the usual one does"
        do = "standardise columns: cosines and distances see these alone"
        found.append(Finding("scale", "warn", what, do, name, columns=_first(swamping)))
    zero = np.flatnonzero(~x.any(axis=1))
    if len(zero):
        what = f"{len(zero)} rows of the {name} are zero throughout"
        found.append(Finding("zero rows", "warn", what, "drop them if they stand for missing data", name, _first(zero)))
    direction = float(np.linalg.norm(unit_rows(x).mean(axis=0)))
    if direction > 0.99 and not len(swamping):
        what = f"all rows of the {name} point nearly one way: the mean cosine of two is {direction**2:.3f}"
        found.append(Finding("one direction", "warn", what, "subtract the mean of each column", name))
    if 100 < large.max() <= 255 and x.min() >= 0 and (x == np.rint(x)).all():
        what = f"the {name} looks like bytes, whole numbers from {x.min():.0f} to {large.max():.0f}"
        found.append(Finding("bytes", "warn", what, "scale pixels, and take features rather than pixels", name))
    return found


def _embedding(source: Doubles, target: Doubles) -> list[Finding]:
    """Find a source that says no more than the target does, or whose cosines say next to nothing."""
    found: list[Finding] = []
    if source.shape == target.shape and _same(standardised(source), standardised(target)):
        what = "source and target are one array, up to the order and scale of columns"
        do = "check what was given twice; a student of its own input is not across modalities"
        found.append(Finding("same array", "warn", what, do, "source"))
    if source.shape[1] == 1:
        what = "the source is one column: its unit rows are signs alone"
        found.append(Finding("one column", "warn", what, "give an embedding, of several columns", "source"))
    return found


def _same(x: Doubles, y: Doubles) -> bool:
    """Tell whether two standardised arrays (n, d) have the same columns, which a random direction puts in order."""
    direction = np.random.default_rng(0).normal(size=len(x))
    x, y = (z[:, np.argsort(direction @ z)] for z in (x, y))
    return bool(np.abs(x - y).max() < SAME)


def _known(label: Labels) -> NDArray[np.bool_]:
    return label >= 0 if label.dtype.kind in "if" else np.ones(len(label), dtype=bool)


def _first(places: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in places[:SHOWN])
