"""The charts: all methods as bars, paired differences as a forest, losses as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crossdistill.errors import DataError
from crossdistill.experiments.arms import Role
from crossdistill.report.inputs import Comparison, parse_results, read_results
from crossdistill.report.summary import Column, Curve, Entry, League, Learning, league
from crossdistill.report.svg import GRID, INK, QUIET, as_file, blank, style, to_svg

ROLE_COLOURS: Mapping[Role, str] = {
    "method": "#1f6feb",
    "baseline": "#c26a00",
    "control": "#6b7684",
    "ceiling": "#7a4fbf",
}
GOOD, BAD, UNSURE = "#137a3c", "#b42318", "#6b7684"
WIDE, NARROW = 860, 340


def league_chart_svg(results: Mapping[str, Any] | str | Path) -> str:
    """Draw the bar chart of all methods as an SVG file of its own, for a README.

    Args:
        results: The content of results.json, its path, or the run folder that holds it.

    Returns:
        A whole SVG document on a white ground.

    Raises:
        DataError: If there are no results.
    """
    if isinstance(results, Mapping):
        parsed = parse_results(results)
    else:
        path = Path(results)
        path = path / "results.json" if path.is_dir() else path
        loaded = read_results(path)
        if loaded is None:
            raise DataError(f"{path} does not exist; run an experiment first with 'crossdistill run'")
        parsed = loaded
    table = league(parsed)
    if not table.columns:
        raise DataError("the results hold no rows, so there is nothing to draw")
    return as_file(bars(table, "league", width=WIDE, classes=parsed.data.classes))


def two_widths(wide: str, narrow: str) -> Markup:
    """Put a desk's and a phone's drawing side by side; the style sheet shows the one that fits."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(Markup(wide), Markup(narrow))


def shorten(text: str, length: int) -> str:
    """Cut a name to at most `length` characters, the last one an ellipsis if something was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def lay_rows(names: Sequence[str], roles: Sequence[str], width: int) -> tuple[Figure, Axes, float]:
    """Lay out one row a name; returns the figure, its axes (row i at y = -i), and the height of a bar in rows.

    On a wide page the names stand left of the axes, on a narrow one above each bar.
    """
    narrow = width < 500
    row = 46 if narrow else 38
    longest = max(7.2 * max(len(shorten(n, 30)) for n in names), 5.6 * max(map(len, roles)), 90)
    left = 10 if narrow else min(longest + 16, 240)
    foot, head, right = 40, 6, 14
    height = head + row * len(names) + foot
    figure = blank(width, height)
    axes = figure.add_axes((left / width, foot / height, (width - left - right) / width, row * len(names) / height))
    axes.set_ylim(-len(names) + 0.5, 0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for index, (name, role) in enumerate(zip(names, roles, strict=True)):
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        if narrow:
            place["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # the chance line runs below names
            axes.annotate(shorten(name, 32), (0, -index), (0, 7), fontsize=11, **place)
            axes.annotate(role, (1, -index), (0, 7), fontsize=10, color=QUIET, ha="right", **place)
        else:
            axes.annotate(shorten(name, 30), (0, -index), (-10, 1), fontsize=12, ha="right", **place)
            axes.annotate(role, (0, -index), (-10, -11), fontsize=10, color=QUIET, ha="right", **place)
    return figure, axes, 0.36 if narrow else 0.58


def bars(table: League, name: str, *, width: int, classes: int | None = None) -> str:
    """Draw the headline evaluation of every method: bar, 95 % interval, one dot a seed, chance as a dashed line.

    Args:
        table: The league; it must have a column.
        name: A word unique in the page.
        width: In CSS pixels; below 500 the narrow layout.
        classes: Number of classes, for the chance line of accuracies.

    Returns:
        The <svg> element.
    """
    column = table.columns[0]
    entries = [entry for entry in table.entries if column in entry.cells]
    tips: dict[str, str] = {}
    with style():
        figure, axes, thick = lay_rows([entry.name for entry in entries], [entry.role for entry in entries], width)
        centre = -0.22 if width < 500 else 0.0
        most = max(max(e.cells[column].high or 0, *e.cells[column].values) for e in entries) * column.scale
        values = [value * column.scale for e in entries for value in e.cells[column].values]
        least, longest = min(0.0, *values), max(values)
        end = _end_axis(axes, column, least, most, longest, 1.2 if width < 500 else 1.1)
        for index, entry in enumerate(entries):
            _bar(axes, entry, column, centre - index, thick, f"{name}-bar{index}")
            tips[f"{name}-bar{index}"] = tip(entry, column)
            at = max(e for e in (entry.cells[column].high, *entry.cells[column].values) if e is not None)
            text = column.show(entry.cells[column].mean)
            axes.annotate(
                text,
                (min(at * column.scale, end), centre - index),
                (7, 0),
                textcoords="offset points",
                va="center",
                weight="bold",
            )
        if classes and classes > 1 and column.metric == "accuracy":
            axes.axvline(100 / classes, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        axes.set_xlabel(column.words + (f" ({column.unit.strip()})" if column.unit else ""))
        label = f"Bar chart of {column.words}. " + "; ".join(tip(entry, column) for entry in entries)
        return to_svg(figure, name, label, tips)


def _end_axis(axes: Axes, column: Column, least: float, most: float, longest: float, room: float) -> float:
    """Set the limits of a bar chart's axis, with room for a number after the longest bar; gives where it ends.

    An interval of Student's may pass 100 %, which no share can: there the axis ends, and the room is left beyond it.
    """
    end = least + (most - least or 1.0) * room
    top = max(100.0, longest)  # a metric that passes 100 is no share, whatever it is called
    if column.unit and end > top:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0, box.width / room, box.height))
        end = top
    axes.set_xlim(least, end)
    return end


def _bar(axes: Axes, entry: Entry, column: Column, y: float, thick: float, gid: str) -> None:
    cell, colour, scale = entry.cells[column], ROLE_COLOURS[entry.role], column.scale
    drawn: Any = axes.barh([y], [cell.mean * scale], height=thick, color=colour, alpha=0.82, linewidth=0)
    drawn[0].set_gid(gid)
    if cell.low is not None and cell.high is not None:
        axes.plot([cell.low * scale, cell.high * scale], [y, y], color=INK, linewidth=1.6, solid_capstyle="butt")
        axes.plot([cell.low * scale, cell.high * scale], [y, y], "|", color=INK, markersize=8, markeredgewidth=1.6)
    values = [value * scale for value in cell.values]
    offsets = [
        y + thick * (0.36 - 0.72 * (index + 0.5) / len(values)) for index in range(len(values))
    ]  # not on top of each other
    dots: Any = {"color": "white", "markeredgecolor": INK, "markeredgewidth": 0.8}
    axes.plot(values, offsets, "o", markersize=4, clip_on=False, **dots)  # whole ones at 0 and 100 % too


def tip(entry: Entry, column: Column) -> str:
    """Say one cell of the league in words."""
    cell = entry.cells[column]
    seeds = f"{len(cell.values)} seed{'s' if len(cell.values) > 1 else ''}"
    text = f"{entry.name} ({entry.role}): {column.show(cell.mean)}{column.unit}"
    if cell.low is None:
        return f"{text}, {seeds}, no interval"
    return f"{text}, 95 % interval {column.show(cell.low)} to {column.show(cell.high)}, {seeds}"


def difference_words(comparison: Comparison) -> tuple[str, str]:
    """Say a paired difference and its interval: ("+4.2 points", "95 % interval +1.1 to +7.3 over ...")."""
    column = Column(comparison.evaluation, comparison.metric)
    size = column.show(comparison.difference, signed=True) + (" points" if column.unit else "")
    if comparison.low is None or comparison.high is None:
        seeds = "one seed" if comparison.seeds == 1 else f"{comparison.seeds} seeds"
        return size, f"{seeds}: no interval, so chance cannot be told from effect"
    low, high = column.show(comparison.low, signed=True), column.show(comparison.high, signed=True)
    over = f"{comparison.seeds} paired seeds and test items" if comparison.seeds > 1 else "test items, one seed"
    return size, f"95 % interval {low} to {high} over {over}"


def forest(comparisons: Sequence[Comparison], name: str, *, width: int) -> str:
    """Draw paired differences with their intervals around a zero line.

    Args:
        comparisons: One a row, at least one, all of the same evaluation and metric.
        name: A word unique in the page.
        width: In CSS pixels; below 500 the narrow layout.

    Returns:
        The <svg> element; an interval above zero is green, below it red, across it, absent or of one seed grey
        and hollow.
    """
    column = Column(comparisons[0].evaluation, comparisons[0].metric)
    rows = [
        Mark(
            name=c.method,
            below=f"minus {shorten(c.against, 24)}",
            value=c.difference,
            low=c.low,
            high=c.high,
            tip=f"{c.method} minus {c.against}: " + ", ".join(difference_words(c)),
            sure=None if c.seeds > 1 else False,
        )
        for c in comparisons
    ]
    with style():
        share = bool(column.unit) and max(abs(c.difference) for c in comparisons) <= 1
        figure, tips = marks(rows, name, width=width, scale=column.scale, share=share)
        figure.axes[0].set_xlabel(f"difference in {column.words}" + (" (points)" if column.unit else ""))
        return to_svg(figure, name, "Paired differences. " + "; ".join(tips.values()), tips)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One row of a forest: an estimate around zero with its bounds, what stands below its name, and its words.

    `sure` is whether the sign is beyond doubt, where that is known otherwise than by the bounds.
    """

    name: str
    below: str
    value: float
    low: float | None
    high: float | None
    tip: str
    sure: bool | None = None


def marks(rows: Sequence[Mark], name: str, *, width: int, scale: float, share: bool) -> tuple[Figure, dict[str, str]]:
    """Draw one mark a row around a zero line; call within `style()`.

    Args:
        rows: At least one.
        name: A word unique in the page.
        width: In CSS pixels; below 500 the narrow layout.
        scale: From values to the axis.
        share: Whether the values are differences of shares, which no interval of Student's makes larger than 100 %.

    Returns:
        The figure, and what hovering over each row says.
    """
    centre, tips = -0.22 if width < 500 else 0.0, dict[str, str]()
    figure, axes, _ = lay_rows([row.name for row in rows], [row.below for row in rows], width)
    ends = [scale * v for row in rows for v in (row.value, row.low, row.high) if v is not None] + [0.0]
    span = max(ends) - min(ends) or 1.0
    low, high = min(ends) - 0.06 * span, max(ends) + 0.06 * span
    if share:
        low, high = max(low, -100.0), min(high, 100.0)
    axes.set_xlim(low, high)
    axes.axvline(0, color=INK, linewidth=1.2)
    for index, row in enumerate(rows):
        y, gid = centre - index, f"{name}-row{index}"
        clear = row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)
        sure = clear if row.sure is None else row.sure
        colour = (GOOD if row.value > 0 else BAD) if sure else UNSURE
        if row.low is not None and row.high is not None:
            axes.plot([row.low * scale, row.high * scale], [y, y], color=colour, linewidth=2.6, solid_capstyle="round")
        face = colour if sure else "white"
        (dot,) = axes.plot(
            [row.value * scale], [y], "D", markersize=8, color=face, markeredgecolor=colour, markeredgewidth=1.8
        )
        dot.set_gid(gid)
        tips[gid] = row.tip
    return figure, tips


def curves(learning: Learning, name: str) -> str:
    """Draw training loss (solid, dots) and held-out loss (dashed, squares) against the epoch, with a band over seeds.

    Args:
        learning: One method and stage.
        name: A word unique in the page.

    Returns:
        The <svg> element, 300 by 210 units.
    """
    with style():
        figure = blank(300, 210)
        axes = figure.add_axes((46 / 300, 40 / 210, 244 / 300, 160 / 210))
        axes.grid(color=GRID, linewidth=0.8)
        _curve(axes, learning.train, ROLE_COLOURS["method"], "-")
        _curve(axes, learning.held_out, ROLE_COLOURS["baseline"], (0, (5, 2.5)))
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.set_xlabel("epoch")
        parts = [(w, c) for w, c in (("training", learning.train), ("held-out", learning.held_out)) if c]
        ends = "; ".join(f"{what} loss from {c.mean[0]:.3g} to {c.mean[-1]:.3g}" for what, c in parts)
        return to_svg(figure, name, f"Learning curves of {learning.method} {learning.stage}: {ends}")


def _curve(axes: Axes, curve: Curve | None, colour: str, line: str | tuple[float, tuple[float, float]]) -> None:
    if curve is None:
        return
    marker = ("o" if line == "-" else "s") if len(curve.epochs) < 2 else ""  # one epoch makes no line
    if curve.seeds > 1:
        axes.fill_between(curve.epochs, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(curve.epochs, curve.mean, color=colour, linewidth=1.8, linestyle=line, marker=marker, markersize=5)
