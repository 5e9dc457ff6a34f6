"""The charts of a suite: gains, ranks, and gains against labels, pairs and compute; and a picture's three files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crossdistill.experiments.arms import Role
from crossdistill.files import whole_file, write_text
from crossdistill.report import figures
from crossdistill.report.figures import NARROW, ROLE_COLOURS, WIDE, Mark, lay_rows, marks, shorten
from crossdistill.report.svg import GRID, INK, QUIET, as_file, blank, style, to_svg

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a07800", "#56b4e9")
"""Okabe and Ito's (2008) colours that stand out from white; lines differ by marker too."""

MARKERS = ("o", "s", "^", "D", "v", "P")
PANELS = 12
DPI = 144


@dataclass(frozen=True)
class Drawing:
    """A figure, what a person who cannot see it is told, and what hovering over its parts says."""

    figure: Figure
    label: str
    tips: Mapping[str, str]


Draw = Callable[[str, int], Drawing]
"""From a name that is unique in the page and a width in CSS pixels to a drawing."""


def picture(folder: Path, name: str, draw: Draw, *, narrow: bool = False) -> Markup:
    """Draw for a desk and for a phone, write folder/name.svg and .png of the former, and give both for the page.

    Args:
        folder: Where the files go.
        name: Of the files, and unique in the page.
        draw: What is drawn.
        narrow: Whether the page has no room for the wide drawing anywhere.
    """
    with style():
        wide = draw(f"{name}-wide", WIDE)
        inline = to_svg(wide.figure, f"{name}-wide", wide.label, wide.tips)
        write_text(folder / f"{name}.svg", as_file(inline))
        with whole_file(folder / f"{name}.png") as temporary:
            wide.figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        small = draw(f"{name}-narrow", NARROW)
        other = to_svg(small.figure, f"{name}-narrow", small.label, small.tips)
    return Markup(other) if narrow else figures.two_widths(inline, other)


def file_name(*parts: str) -> str:
    """Join words to a name that any file system and any id attribute takes."""
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-").lower() or "x" for part in parts)


def points(value: float | None, *, signed: bool = True) -> str:
    """Write a share as percent or points with one decimal and a proper minus sign; None as a dash."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    if float(text) == 0:
        text = text.replace("-", "+" if signed else "")
    return text.replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, *, signed: bool = True) -> str:
    """Write bounds: "+1.0 to +7.2", or "no interval"."""
    known = low is not None and high is not None
    return f"{points(low, signed=signed)} to {points(high, signed=signed)}" if known else "no interval"


def gains_chart(rows: Sequence[Mapping[str, Any]], words: str) -> Draw:
    """Draw each distillation method's gain over the best control with its interval; rows as in standings.json."""
    mine = sorted((row for row in rows if row["gain"] is not None), key=lambda row: -row["gain"]["value"])

    def draw(name: str, width: int) -> Drawing:
        shown = [
            Mark(
                name=row["method"],
                below=f"{points(row['gain']['value'])} points",
                value=row["gain"]["value"],
                low=row["gain"]["low"],
                high=row["gain"]["high"],
                tip=gain_words(row),
            )
            for row in mine
        ]
        figure, tips = marks(shown, name, width=width, scale=100, share=True)
        figure.axes[0].set_xlabel("gain over the best control (points of accuracy)")
        return Drawing(figure, f"Gains, {words}. " + "; ".join(tips.values()), tips)

    return draw


def gain_words(row: Mapping[str, Any]) -> str:
    """Say a league row's gain in words."""
    gain = row["gain"]
    n = gain["experiments"]
    over = f"over {n} experiments" if n > 1 else "over seeds and test items of one experiment"
    bounds = interval(gain["low"], gain["high"])
    known = "95 % interval " if gain["low"] is not None else ""
    return f"{row['method']}: {points(gain['value'])} points, {known}{bounds} {over}"


def rank_chart(league: Mapping[str, Any], roles: Mapping[str, Role], words: str) -> Draw:
    """Draw average ranks, best on top: a diamond a method, a dot an experiment, bars joining what was not told apart.

    It is Demšar's (2006) critical-difference diagram turned on its side, so that any number of names stays legible.
    """
    rows = sorted(
        (row for row in league["rows"] if row["average_rank"] is not None), key=lambda row: row["average_rank"]
    )
    place = {row["method"]: index for index, row in enumerate(rows)}
    groups: Sequence[Sequence[str]] = league["cliques"] or ()
    bars = [(place[group[0]], place[group[-1]]) for group in groups]
    lanes = _lanes(bars)
    experiments = len(league["experiments"])

    def draw(name: str, width: int) -> Drawing:
        names = [shorten(row["method"], 24 if width < 500 and bars else 30) for row in rows]
        below = [f"{roles[row['method']]} · {row['average_rank']:.2f}" for row in rows]
        figure, axes, _ = lay_rows(names, below, width)
        centre, tips = -0.22 if width < 500 else 0.0, dict[str, str]()
        cd, best = league["critical_difference"], rows[0]["average_rank"]
        least, most = 1 - 0.02 * len(rows), max(1.02 * len(rows), best + (cd or 0.0))
        box = axes.get_position()
        room = min(14 * (max(lanes) + 1) + 8, 120) / width if bars else 0.0
        figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + 34 / 72)
        height = figure.get_figheight() * 72
        axes.set_position((box.x0, 40 / height, box.width - room, (height - 80) / height))
        axes.set_ylim(-len(rows) + 0.5, 0.5)
        axes.set_xlim(least, most)
        rules = [(x, centre - index) for index in range(len(rows)) for x in (least, most, np.nan)]
        axes.plot(*zip(*rules, strict=True), color=GRID, linewidth=0.8, zorder=0.5)
        for index, row in enumerate(rows):
            y, colour, gid = centre - index, ROLE_COLOURS[roles[row["method"]]], f"{name}-row{index}"
            seen, often = np.unique(row["ranks"], return_counts=True)
            axes.scatter(seen, np.full(len(seen), y), s=16 + 10 * (often - 1), color=colour, alpha=0.28, linewidth=0)
            (dot,) = axes.plot([row["average_rank"]], [y], "D", markersize=8, color=colour)
            dot.set_gid(gid)
            tips[gid] = f"{row['method']}: average rank {row['average_rank']:.2f} of {len(rows)}"
        if cd is not None:
            _critical(axes, best, cd, height - 80)
        for number, ((top, bottom), lane) in enumerate(zip(bars, lanes, strict=True)):
            x = 1 + (8 + (room * width - 8) * (lane + 0.5) / (max(lanes) + 1)) / (width * (box.width - room))
            gid = f"{name}-bar{number}"
            (bar,) = axes.plot(
                [x, x], [0.28 + centre - top, -0.28 + centre - bottom], color=INK, linewidth=4, clip_on=False,
                transform=axes.get_yaxis_transform(), solid_capstyle="round",
            )  # fmt: skip
            bar.set_gid(gid)
            tips[gid] = "not told apart: " + ", ".join(row["method"] for row in rows[top : bottom + 1])
        axes.set_xlabel(f"average rank over {experiments} experiments (1 is best)")
        return Drawing(figure, f"Average ranks, {words}. " + "; ".join(tips.values()), tips)

    return draw


def _critical(axes: Axes, best: float, cd: float, height: float) -> None:
    """Draw Nemenyi's critical difference as a ruler above the rows, beginning at the best rank."""
    ruler: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False, "color": INK}
    y = 1 + 16 / height
    axes.plot([best, best + cd], [y, y], linewidth=1.6, solid_capstyle="butt", **ruler)
    axes.plot([best, best + cd], [y, y], "|", markersize=9, markeredgewidth=1.6, **ruler)
    axes.annotate(
        f"critical difference {cd:.2f}", (best, y), (0, 6), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", fontsize=10, color=QUIET, annotation_clip=False,
    )  # fmt: skip


def _lanes(bars: Sequence[tuple[int, int]]) -> list[int]:
    """Give each bar the first lane in which it touches no other."""
    ends: list[int] = []
    lanes: list[int] = []
    for top, bottom in bars:
        lane = next((i for i, end in enumerate(ends) if end < top), len(ends))
        ends[lane : lane + 1] = [bottom]
        lanes.append(lane)
    return lanes


@dataclass(frozen=True, kw_only=True)
class Line:
    """A method's gains (shares) along an axis, with bounds."""

    method: str
    x: Sequence[float]
    gain: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]


def line_chart(
    lines: Sequence[Line], shown: Sequence[str], axis: str, words: str, ticks: Sequence[str] | None = None
) -> Draw:
    """Draw gains as lines: those in `shown` in colour with their intervals and names, the others thin and grey.

    Args:
        lines: All of them.
        shown: At most six methods, the first with the thickest line.
        axis: What stands below.
        words: What the chart is of.
        ticks: Names of the places 0, 1, ...; None for a logarithmic axis of numbers.
    """

    def draw(name: str, width: int) -> Drawing:
        narrow = width < 500
        coloured = [line for method in shown for line in lines if line.method == method]
        foot, right = (64 + 18 * len(coloured), 12) if narrow else (48, 190)
        height = (250 if narrow else 330) + foot
        figure, tips = blank(width, height), dict[str, str]()
        axes = figure.add_axes((56 / width, foot / height, (width - 56 - right) / width, (height - foot - 14) / height))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.axhline(0, color=INK, linewidth=1.2)
        for line in lines:
            if line.method not in shown:
                axes.plot(line.x, np.multiply(line.gain, 100), color="#9aa5b1", linewidth=0.9, alpha=0.7)
        for index, line in enumerate(coloured):
            gid = f"{name}-line{index}"
            shift = 0.035 * (index - (len(coloured) - 1) / 2)  # intervals side by side, not on top of each other
            x = np.asarray(line.x, dtype=np.float64)
            _line(axes, line, x + shift if ticks else x * np.exp(shift), index, gid)
            tips[gid] = f"{line.method}: " + ", ".join(
                f"{points(g)} ({interval(a, b)})" for g, a, b in zip(line.gain, line.low, line.high, strict=True)
            )
        _x_axis(axes, lines, ticks)
        axes.set_xlabel(axis)
        axes.set_ylabel("gain (points)")
        _name_lines(figure, axes, coloured, width, foot)
        return Drawing(figure, f"{words}. " + "; ".join(tips.values()), tips)

    return draw


def _line(axes: Axes, line: Line, x: Any, index: int, gid: str) -> None:
    colour = LINES[index % len(LINES)]
    (drawn,) = axes.plot(
        x, np.multiply(line.gain, 100), color=colour, linewidth=2.6 if index == 0 else 1.6,
        marker=MARKERS[index % len(MARKERS)], markersize=7 if index == 0 else 6, zorder=3 - 0.1 * index,
    )  # fmt: skip
    drawn.set_gid(gid)
    for at, low, high in zip(x, line.low, line.high, strict=True):
        if low is not None and high is not None:
            axes.plot([at, at], [100 * low, 100 * high], color=colour, linewidth=1.2, alpha=0.55, zorder=2)


def _x_axis(axes: Axes, lines: Sequence[Line], ticks: Sequence[str] | None) -> None:
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.3, len(ticks) - 0.7)
        return
    places = sorted({value for line in lines for value in line.x})
    _log_axis(axes, places, places[0] / 1.12, places[-1] * 1.12)


def _log_axis(axes: Axes, places: Sequence[float], low: float, high: float) -> None:
    """Make the x axis logarithmic, with plain numbers at those places that are in sight."""
    axes.set_xscale("log")
    seen = [value for value in places if low <= value <= high] or [high]
    axes.set_xticks(seen, [f"{value:,g}" for value in seen])
    axes.minorticks_off()
    axes.set_xlim(low, high)


def _name_lines(figure: Figure, axes: Axes, lines: Sequence[Line], width: int, foot: float) -> None:
    """Write names at the ends of lines, moved apart where they would touch; on a narrow page, below the chart."""
    if width < 500:
        height = figure.get_figheight() * 72
        for index, line in enumerate(lines):
            y = (foot - 52 - 18 * index) / height
            style_of: Any = {"color": LINES[index % len(LINES)], "marker": MARKERS[index % len(MARKERS)]}
            axes.plot([14 / width, 42 / width], [y, y], transform=figure.transFigure, clip_on=False, **style_of)
            figure.text(52 / width, y, shorten(line.method, 36), va="center", fontsize=11)
        return
    low, high = axes.get_ylim()
    scale = (high - low) / (axes.get_position().height * figure.get_figheight() * 72)
    order = sorted(range(len(lines)), key=lambda i: lines[i].gain[-1])
    at = apart([100 * lines[i].gain[-1] for i in order], 15 * scale)
    for i, y in zip(order, at, strict=True):
        axes.annotate(
            shorten(lines[i].method, 24), (1, y), (10, 0), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", va="center", fontsize=11, color=LINES[i % len(LINES)], weight="bold",
            annotation_clip=False,
        )  # fmt: skip


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Move ascending places apart until each two are `gap` away, around where they were wanted."""
    blocks: list[tuple[float, int]] = []  # (centre, how many)
    for place in wanted:
        blocks.append((place, 1))
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [centre + gap * (i - (n - 1) / 2) for centre, n in blocks for i in range(n)]


def compute_chart(
    rows: Sequence[Mapping[str, Any]], roles: Mapping[str, Role], headline: str | None, words: str
) -> Draw:
    """Draw gain against processor seconds; named are the headline method and those that no cheaper one beats."""
    timed = [row for row in rows if row["gain"] and row["cpu_seconds"]]
    mine = sorted(timed, key=lambda row: (row["cpu_seconds"], -row["gain"]["value"]))
    named: list[int] = []
    best = -np.inf
    for index, row in enumerate(mine):
        if row["gain"]["value"] > best or row["method"] == headline:
            named.append(index)
        best = max(best, row["gain"]["value"])

    def draw(name: str, width: int) -> Drawing:
        height = 300 if width < 500 else 380
        figure, tips = blank(width, height), dict[str, str]()
        axes = figure.add_axes((52 / width, 48 / height, (width - 72) / width, (height - 66) / height))
        axes.grid(color=GRID, linewidth=0.8)
        axes.axhline(0, color=INK, linewidth=1.2)
        for index, row in enumerate(mine):
            gain, colour, gid = row["gain"], ROLE_COLOURS[roles[row["method"]]], f"{name}-dot{index}"
            if gain["low"] is not None and gain["high"] is not None:
                ends = [100 * gain["low"], 100 * gain["high"]]
                axes.plot([row["cpu_seconds"]] * 2, ends, color=colour, linewidth=1.2, alpha=0.45)
            marker = "D" if row["method"] == headline else "o"
            (dot,) = axes.plot([row["cpu_seconds"]], [100 * gain["value"]], marker, markersize=8, color=colour)
            dot.set_gid(gid)
            tips[gid] = f"{gain_words(row)}, {row['cpu_seconds']:.3g} processor seconds"
        least, most = mine[0]["cpu_seconds"], mine[-1]["cpu_seconds"]
        marks = (1, 3) if most > 4 * least else (1, 1.5, 2, 3, 5, 7)
        _log_axis(axes, [mark * 10.0**p for p in range(-3, 9) for mark in marks], least / 1.5, most * 1.5)
        _name_dots(axes, [mine[index] for index in named], width)
        axes.set_xlabel("processor seconds of training and evaluation (mean)")
        axes.set_ylabel("gain (points)")
        return Drawing(figure, f"Gain against compute, {words}. " + "; ".join(tips.values()), tips)

    return draw


def _name_dots(axes: Axes, rows: Sequence[Mapping[str, Any]], width: int) -> None:
    """Write names beside dots, on the side that has room; one that would touch an earlier one is left to hovering."""
    taken: list[tuple[float, float, float]] = []
    for row in rows:
        text = shorten(row["method"], 18 if width < 500 else 28)
        x, y = axes.transData.transform((row["cpu_seconds"], 100 * row["gain"]["value"]))
        left = x > 0.6 * width
        start = x - 8 - 6 * len(text) if left else x + 8
        if any(abs(y - other) < 14 and start < end and begin < start + 6 * len(text) for begin, end, other in taken):
            continue
        taken.append((start, start + 6 * len(text), y))
        axes.annotate(
            text, (row["cpu_seconds"], 100 * row["gain"]["value"]), (-8 if left else 8, 7), textcoords="offset points",
            ha="right" if left else "left", fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip


def class_chart(entry: Mapping[str, Any], most: int = 24) -> Draw:
    """Draw one experiment's gains by class, the largest on top; of many classes the two ends."""
    classes = sorted(entry["classes"], key=lambda c: -c["gain"])
    if len(classes) > most:
        classes = classes[: most // 2] + classes[-most // 2 :]

    def draw(name: str, width: int) -> Drawing:
        shown = [
            Mark(
                name=c["class"],
                below=f"{points(c['gain'])} · {c['items']} items",
                value=c["gain"],
                low=c["low"],
                high=c["high"],
                tip=f"{c['class']}: {points(c['gain'])} points, {interval(c['low'], c['high'])} over seeds",
            )
            for c in classes
        ]
        figure, tips = marks(shown, name, width=width, scale=100, share=True)
        figure.axes[0].set_xlabel("gain (points)")
        label = f"Gains by class, {entry['method']} minus {entry['against']}, {entry['experiment']}. "
        return Drawing(figure, label + "; ".join(tips.values()), tips)

    return draw
