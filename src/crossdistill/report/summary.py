"""The numbers behind the page: means and intervals over seeds, the league, and the comparison that counts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from crossdistill.report.inputs import Comparison, Headline, LossLine, Results, Role, Score

FRACTION = re.compile(r"accuracy|precision|recall|top|map|mrr|f1|auroc|auc|iou|ndcg", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds; `low` and `high` bound its 95 % t-interval and are None where one seed ran."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, order=True)
class Column:
    """One way to measure a method."""

    evaluation: str
    metric: str

    @property
    def words(self) -> str:
        """The column's name for a reader, such as "linear accuracy"."""
        return f"{self.evaluation} {self.metric}".replace("_", " ")

    @property
    def scale(self) -> float:
        """100 for fractions, which are shown in percent, else 1."""
        return 100.0 if FRACTION.search(self.metric) else 1.0

    @property
    def unit(self) -> str:
        """What follows a value: a percent sign or nothing."""
        return " %" if self.scale == 100 else ""

    def show(self, value: float | None, *, signed: bool = False) -> str:
        """Write a value for a reader: percent with one decimal, other metrics with three digits; None as a dash."""
        if value is None:
            return "\N{EN DASH}"
        text = (
            f"{value * self.scale:{'+' if signed else ''}.1f}" if self.unit else f"{value:{'+' if signed else ''}.3g}"
        )
        if float(text) == 0:  # no "-0.0"
            text = text.replace("-", "+" if signed else "")
        return text.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the league."""

    name: str
    title: str
    role: Role
    cells: dict[Column, Estimate]
    comparison: Comparison | None


@dataclass(frozen=True, kw_only=True)
class League:
    """All methods in one setting, the best in the headline evaluation first.

    Attributes:
        source: The rich modality, empty if unknown.
        target: The poor modality.
        columns: Ways to measure, the headline's first.
        entries: Rows.
        left_out: How many rows of results.json belong to another setting and are not in the means.
    """

    source: str
    target: str
    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]
    left_out: int


def estimate(values: Sequence[float]) -> Estimate:
    """Give the mean and its 95 % t-interval, mean ± t(0.975, n−1) s/√n (Student 1908).

    Args:
        values: One number a seed, at least one.

    Returns:
        The mean; with one value there is no interval.
    """
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean=mean, low=None, high=None, values=tuple(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean=mean, low=mean - half, high=mean + half, values=tuple(values))


def league(results: Results) -> League:
    """Collect the rows of results.json into a table.

    Means are taken within one setting (data, source, target): that of the headline's method. A ceiling may see
    another modality, and baselines use no source, so those are matched by data, or data and target.

    Args:
        results: The checked results.

    Returns:
        The league; without rows it is empty.
    """
    headline = results.headline
    lead = next((row for row in results.rows if headline and row.method == headline.method), None)
    lead = lead or next((row for row in results.rows if results.role(row.method) == "method"), None)
    rows = [row for row in results.rows if lead is None or _same_setting(row, lead, results.role(row.method))]
    columns = list(dict.fromkeys(Column(row.evaluation, row.metric) for row in rows))
    first = Column(headline.evaluation, headline.metric) if headline else None
    columns.sort(key=lambda column: column != first)
    entries = [
        Entry(
            name=name,
            title=results.title(name),
            role=results.role(name),
            cells=_cells((row for row in rows if row.method == name), columns),
            comparison=strictest(results.comparisons, name, headline),
        )
        for name in dict.fromkeys(row.method for row in rows)
    ]
    if columns:
        entries.sort(key=lambda entry: -entry.cells[columns[0]].mean if columns[0] in entry.cells else math.inf)
    return League(
        source=lead.source if lead else "",
        target=lead.target if lead else "",
        columns=tuple(columns),
        entries=tuple(entries),
        left_out=len(results.rows) - len(rows),
    )


def _same_setting(row: Score, lead: Score, role: Role) -> bool:
    if row.data != lead.data:
        return False
    if role == "ceiling":
        return True
    return row.target == lead.target and (role != "method" or row.source == lead.source)


def _cells(rows: Iterable[Score], columns: Sequence[Column]) -> dict[Column, Estimate]:
    values: dict[Column, list[float]] = {}
    for row in sorted(rows, key=lambda row: row.seed):
        values.setdefault(Column(row.evaluation, row.metric), []).append(row.value)
    return {column: estimate(values[column]) for column in columns if column in values}


def strictest(comparisons: Iterable[Comparison], method: str, headline: Headline | None) -> Comparison | None:
    """Pick the comparison a method is judged by: against the headline's rival, else against the hardest one to beat.

    Args:
        comparisons: All of them.
        method: The method to judge.
        headline: What the run's verdict is about; only its evaluation and metric count.

    Returns:
        The comparison, or None if there is none in that evaluation.
    """
    mine = [c for c in comparisons if c.method == method]
    if headline:
        mine = [c for c in mine if (c.evaluation, c.metric) == (headline.evaluation, headline.metric)]
        chosen = [c for c in mine if c.against == headline.against]
        mine = chosen or mine
    return min(mine, key=lambda c: c.difference, default=None)


def stronger_controls(table: League, headline: Headline | None) -> list[str]:
    """Name the controls whose mean passes that of the one the verdict is measured against."""
    if headline is None or not table.columns:
        return []
    column = table.columns[0]
    means = {
        entry.name: entry.cells[column].mean
        for entry in table.entries
        if entry.role == "control" and column in entry.cells
    }
    bar = means.get(headline.against)
    return [] if bar is None else [name for name, mean in means.items() if mean > bar]


def against_baselines(results: Results) -> list[Comparison]:
    """Give the headline method's comparisons with other objectives, which tell whether the choice of loss matters."""
    head = results.headline
    if head is None:
        return []
    wanted = (head.method, head.evaluation, head.metric)
    return [
        c
        for c in results.comparisons
        if (c.method, c.evaluation, c.metric) == wanted and results.role(c.against) == "baseline"
    ]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A loss against the epoch: mean over seeds, and the lowest and highest seed; lists of equal length."""

    epochs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Learning:
    """The two curves of one method and stage; either may be missing."""

    method: str
    stage: str
    train: Curve | None
    held_out: Curve | None


def learning_curves(lines: Iterable[LossLine]) -> list[Learning]:
    """Average loss lines within an epoch, then over seeds; methods and stages keep the order of the file."""
    groups: dict[tuple[str, str], list[LossLine]] = {}
    for line in lines:
        groups.setdefault((line.method, line.stage), []).append(line)
    curves: list[Learning] = []
    for (method, stage), group in groups.items():
        train = _curve((line.epoch, line.seed, line.loss) for line in group)
        held_out = _curve((line.epoch, line.seed, line.held_out) for line in group)
        if train or held_out:
            curves.append(Learning(method=method, stage=stage, train=train, held_out=held_out))
    return curves


def _curve(points: Iterable[tuple[float | None, int, float | None]]) -> Curve | None:
    table: dict[float, dict[int, list[float]]] = {}
    for epoch, seed, value in points:
        if epoch is not None and value is not None and math.isfinite(value):
            table.setdefault(epoch, {}).setdefault(seed, []).append(value)
    if not table:
        return None
    epochs = sorted(table)
    seeds = [[fmean(values) for values in table[epoch].values()] for epoch in epochs]
    return Curve(
        epochs=epochs,
        mean=[fmean(values) for values in seeds],
        low=[min(values) for values in seeds],
        high=[max(values) for values in seeds],
        seeds=max(len(values) for values in seeds),
    )
