"""The charts of a diagnosis: the forecast among its references, the ranking, a Venn diagram to scale, calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from scipy.optimize import brentq

from crossdistill.report.diagnosis_inputs import CalibrationLine, Number, Teacher
from crossdistill.report.diagnosis_words import ACCURACIES, VENN, VERDICTS, bounds, number, title_of
from crossdistill.report.figures import BAD, GOOD, ROLE_COLOURS, UNSURE, Mark, lay_rows, marks
from crossdistill.report.svg import GRID, INK, QUIET, blank, style, to_svg

VERDICT_COLOURS: Mapping[str, str] = {"help": GOOD, "no help": BAD, "undecided": UNSURE}
COLOURS: Mapping[str, str] = {
    "reference": ROLE_COLOURS["control"],
    "stand-in": ROLE_COLOURS["baseline"],
    "teacher": ROLE_COLOURS["ceiling"],
}
SOURCE, TARGET = ROLE_COLOURS["method"], ROLE_COLOURS["baseline"]


def forecast_chart(
    teacher: Teacher, numbers: Mapping[str, Number], chance: float | None, name: str, *, width: int
) -> str:
    """Draw the accuracy forecast for the student, which is its reference plus the gain, among what was measured.

    Args:
        teacher: With a gain and a reference.
        numbers: Its estimates, the accuracy of the reference among them.
        chance: Accuracy of guessing, a share; None where that is unknown.
        name: A word unique in the page.
        width: In CSS pixels; below 500 the narrow layout.

    Returns:
        The <svg> element.
    """
    assert teacher.gain is not None
    rows = _forecast_rows(teacher, teacher.gain, numbers)
    reference = numbers[f"acc_{teacher.reference}"].value
    with style():
        figure, axes, _ = lay_rows([row.name for row in rows], [row.below for row in rows], width)
        centre, tips = -0.22 if width < 500 else 0.0, dict[str, str]()
        ends = [100 * v for row in rows for v in (row.value, row.low, row.high) if v is not None]
        ends += [] if chance is None else [100 * chance]
        pad = 0.05 * (max(ends) - min(ends) or 1.0)
        axes.set_xlim(max(min(ends) - pad, -1.0), min(max(ends) + pad, 101.0))
        axes.axvline(100 * reference, color=INK, linewidth=1.2, zorder=1)
        if chance is not None:
            axes.axvline(100 * chance, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.axhspan(-0.5, 0.5, color=VERDICT_COLOURS[teacher.verdict], alpha=0.09, linewidth=0, zorder=0)
        for index, row in enumerate(rows):
            gid, main = f"{name}-row{index}", index == 0
            if row.low is not None and row.high is not None:
                ends = [100 * row.low, 100 * row.high]
                thick = 4.2 if main else 2.2
                axes.plot(ends, [centre - index] * 2, color=row.colour, linewidth=thick, solid_capstyle="round")
            (dot,) = axes.plot(
                [100 * row.value], [centre - index], "D" if main else "o", markersize=11 if main else 8,
                color=row.colour, markeredgecolor="white", markeredgewidth=1.2,
            )  # fmt: skip
            dot.set_gid(gid)
            tips[gid] = row.tip
        axes.set_xlabel("balanced accuracy (%)")
        label = f"Forecast among its references, teacher {teacher.name}. " + "; ".join(tips.values())
        return to_svg(figure, name, label + ("" if chance is None else f"; chance {number(chance, 'share')}"), tips)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A dot with its interval, shares."""

    name: str
    below: str
    value: float
    low: float | None
    high: float | None
    colour: str
    tip: str


def _forecast_rows(teacher: Teacher, gain: Number, numbers: Mapping[str, Number]) -> list[_Row]:
    base = numbers[f"acc_{teacher.reference}"].value
    forecast = gain.model_copy(
        update={
            "value": min(max(base + gain.value, 0.0), 1.0),
            "low": None if gain.low is None else min(max(base + gain.low, 0.0), 1.0),
            "high": None if gain.high is None else min(max(base + gain.high, 0.0), 1.0),
        }
    )
    rows = [_row("Student, forecast", forecast, VERDICT_COLOURS[teacher.verdict])]
    for what, (title, role) in ACCURACIES.items():
        if what in numbers:
            better = what == f"acc_{teacher.reference}"
            rows.append(_row(title, numbers[what], INK if better else COLOURS[role]))
    return rows


def _row(title: str, found: Number, colour: str) -> _Row:
    text = number(found.value, "share")
    below = f"{text} ({bounds(found.low, found.high, 'share')})" if found.bounded else text
    tip = f"{title}: {text}"
    if found.bounded:
        tip += f", {100 * found.level:.0f} % interval {bounds(found.low, found.high, 'share')}"
    return _Row(name=title, below=below, value=found.value, low=found.low, high=found.high, colour=colour, tip=tip)


def ranking_chart(teachers: Sequence[Teacher], name: str, *, width: int) -> str:
    """Draw the forecast gain of each candidate that has one; filled and coloured where its verdict is not undecided."""
    rows = [_ranked(teacher, teacher.gain) for teacher in teachers if teacher.gain is not None]
    with style():
        figure, tips = marks(rows, name, width=width, scale=100, share=True)
        figure.axes[0].set_xlabel("forecast gain over the better reference (points)")
        return to_svg(figure, name, "Forecast gains, the best first. " + "; ".join(tips.values()), tips)


def _ranked(teacher: Teacher, gain: Number) -> Mark:
    value, between = number(gain.value, "points", bare=True), bounds(gain.low, gain.high, "points")
    words = VERDICTS[teacher.verdict][2].lower()
    return Mark(
        name=_short(teacher.name),
        below=f"{value} ({between})",
        value=gain.value,
        low=gain.low,
        high=gain.high,
        tip=f"{teacher.name}: {value} points, {100 * gain.level:.0f} % interval {between}, {words}",
        sure=teacher.verdict != "undecided",
    )


def _short(name: str, length: int = 30) -> str:
    """Cut a name in its middle: those of one family of teachers differ at their ends."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


# Venn diagram ------------------------------------------------------------------------------------------------------


def circles(source: float, target: float, shared: float) -> tuple[float, float, float]:
    """Give two radii and the distance of the centres, so that areas are `source` and `target` and `shared` overlaps.

    Args:
        source: Area, >= 0.
        target: Area, >= 0.
        shared: Area of the overlap; taken as at most the smaller of the two.
    """
    a, b = math.sqrt(source / math.pi), math.sqrt(target / math.pi)
    shared = min(shared, source, target)
    if shared <= 0:
        return a, b, a + b
    # an overlap within rounding of the smaller circle's area is that circle: brentq needs a change of sign
    if shared >= min(source, target) * (1 - 1e-9):
        return a, b, abs(a - b)
    return a, b, float(brentq(lambda d: _lens(a, b, d) - shared, abs(a - b), a + b))


def _lens(a: float, b: float, d: float) -> float:
    """Give the area that two circles of radii a and b, d apart, have in common."""
    if d <= abs(a - b):
        return math.pi * min(a, b) ** 2
    if d >= a + b:
        return 0.0
    first, second = (d * d + a * a - b * b) / (2 * d), (d * d + b * b - a * a) / (2 * d)
    height = math.sqrt(max(a * a - first * first, 0.0))
    return a * a * math.atan2(height, first) + b * b * math.atan2(height, second) - d * height


def venn_chart(teacher: str, numbers: Mapping[str, Number], name: str, *, width: int) -> str:
    """Draw what teacher and target know of the label as two circles to scale, and the parts with their intervals.

    Areas are information; an estimate below zero is drawn as zero. Around each circle, the ring from the sum of its
    parts' lower bounds to that of their upper bounds.

    Args:
        teacher: Its name.
        numbers: "only_source", "shared", "only_target" and perhaps "synergy", in nats.
        name: A word unique in the page.
        width: In CSS pixels; below 500 the narrow layout.

    Returns:
        The <svg> element.
    """
    narrow = width < 500
    parts = [(what, numbers[what]) for what in VENN if what in numbers]
    side, row = (250, 46) if narrow else (280, 52)
    foot = 40
    height = side + row * len(parts) + foot + 10 if narrow else side + 20
    with style():
        figure, tips = blank(width, height), dict[str, str]()
        if narrow:
            places = (0.0, 1 - side / height, 1.0, side / height)
            beside = (16 / width, foot / height, (width - 32) / width, row * len(parts) / height)
        else:
            places = (0.0, 0.02, 0.52, 0.96)
            middle = (height - row * len(parts) + foot) / 2
            beside = (0.56, middle / height, 0.42, row * len(parts) / height)
        _circles(figure.add_axes(places), numbers, width * places[2], height * places[3])
        tips = _parts(figure.add_axes(beside), parts, name)
        label = f"Venn diagram of what is known of the label, teacher {teacher}. " + "; ".join(tips.values())
        return to_svg(figure, name, label, tips)


def _circles(axes: Axes, numbers: Mapping[str, Number], width: float, height: float) -> None:
    """Draw both circles around the middle of axes that are `width` by `height` pixels, with room for names on top."""
    value = {what: max(numbers[what].value, 0.0) for what in ("only_source", "shared", "only_target")}
    shared = value["shared"]
    a, b, d = circles(value["only_source"] + shared, value["only_target"] + shared, shared)
    outer = [_ring(numbers, what)[1] for what in ("only_source", "only_target")]
    # the picture reaches as far as the larger of circle and outer outline
    left, right = min(-max(a, outer[0]), d - max(b, outer[1])), max(a, outer[0], d + max(b, outer[1]))
    tall = max(a, b, *outer) or 1.0
    head = 34
    scale = min((width - 24) / (right - left or 1.0), (height - head - 12) / (2 * tall))
    axes.set_axis_off()
    middle = (left + right) / 2
    axes.set_xlim(middle - width / 2 / scale, middle + width / 2 / scale)
    axes.set_ylim(-tall - 12 / scale, tall + head / scale)
    for x, radius, what, colour in ((0.0, a, "only_source", SOURCE), (d, b, "only_target", TARGET)):
        low, high = _ring(numbers, what)
        axes.add_patch(Circle((x, 0), high, facecolor=colour, alpha=0.10, linewidth=0))
        axes.add_patch(Circle((x, 0), radius, facecolor=colour, alpha=0.22, linewidth=0))
        axes.add_patch(Circle((x, 0), radius, fill=False, edgecolor=colour, linewidth=2))
        for bound in (low, high):
            axes.add_patch(
                Circle((x, 0), bound, fill=False, edgecolor=colour, linewidth=1, linestyle=(0, (3, 3)), alpha=0.8)
            )
    regions = {"only_source": (-a, min(d - b, a)), "shared": (max(d - b, -a), min(a, d + b)),
               "only_target": (max(a, d - b), d + b)}  # fmt: skip
    for what, (start, end) in regions.items():
        if (end - start) * scale > 34 and value[what] > 0:  # narrower, the number would cover the lines
            axes.text(
                (start + end) / 2,
                0,
                number(value[what], "nats", bare=True),
                ha="center",
                va="center",
                fontsize=12,
                weight="bold",
            )
    between = min(max(d / 2, -a), a) if d else 0.0
    above: dict[str, Any] = {"va": "bottom", "fontsize": 12, "weight": "bold"}
    axes.text(between - 14 / scale, tall + 8 / scale, "Teacher", ha="right", color=SOURCE, **above)
    axes.text(between + 14 / scale, tall + 8 / scale, "Target", ha="left", color=TARGET, **above)


def _ring(numbers: Mapping[str, Number], what: str) -> tuple[float, float]:
    """Give the radii of a circle whose parts are at their lower, and at their upper bounds."""
    sums = [0.0, 0.0]
    for part in (numbers[what], numbers["shared"]):
        sums[0] += max(part.value if part.low is None else part.low, 0.0)
        sums[1] += max(part.value if part.high is None else part.high, 0.0)
    return math.sqrt(sums[0] / math.pi), math.sqrt(sums[1] / math.pi)


def _parts(axes: Axes, parts: Sequence[tuple[str, Number]], name: str) -> dict[str, str]:
    """Draw each part with its interval, its name above it; gives what hovering says."""
    tips: dict[str, str] = {}
    axes.set_ylim(-len(parts) + 0.5, 0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    ends = [v for _, part in parts for v in (part.value, part.low, part.high) if v is not None] + [0.0]
    pad = 0.06 * (max(ends) - min(ends) or 1.0)
    axes.set_xlim(min(ends) - pad, max(ends) + pad)
    axes.axvline(0, color=INK, linewidth=1.2)
    hues = {"only_source": SOURCE, "only_target": TARGET, "synergy": QUIET}
    for index, (what, part) in enumerate(parts):
        gid, colour, y = f"{name}-row{index}", hues.get(what, INK), -index - 0.22
        if part.low is not None and part.high is not None:
            axes.plot([part.low, part.high], [y, y], color=colour, linewidth=2.6, solid_capstyle="round")
        (dot,) = axes.plot([part.value], [y], "o", markersize=8, color=colour, markeredgecolor="white")
        dot.set_gid(gid)
        text = f"{number(part.value, 'nats', bare=True)} ({bounds(part.low, part.high, 'nats')})"
        tips[gid] = f"{VENN[what]}: {text} nats"
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        place["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.annotate(VENN[what], (0, -index), (0, 7), fontsize=11, **place)
        axes.annotate(text, (1, -index), (0, 7), fontsize=10, color=QUIET, ha="right", **place)
    axes.set_xlabel("information on the label (nats)")
    return tips


# Calibration -------------------------------------------------------------------------------------------------------


def calibration_chart(line: CalibrationLine, name: str) -> str:
    """Draw what an estimator says against the truth, with the diagonal, and the measured value as a band.

    Args:
        line: Points in any unit.
        name: A word unique in the page.

    Returns:
        The <svg> element, 300 by 250 units.
    """
    truth = [point[0] for point in line.points]
    said = [point[1] for point in line.points]
    reach = [v for t, s, spread in line.points for v in (t, s - spread, s + spread)]
    reach += [v for v in (line.value, line.low, line.high) if v is not None]
    with style():
        figure: Figure = blank(300, 250)
        axes = figure.add_axes((48 / 300, 44 / 250, 240 / 300, 194 / 250))
        axes.grid(color=GRID, linewidth=0.8)
        pad = 0.05 * (max(truth) - min(truth) or 1.0)
        axes.set_xlim(min(truth) - pad, max(truth) + pad)
        pad = 0.05 * (max(reach) - min(reach) or 1.0)
        axes.set_ylim(min(reach) - pad, max(reach) + pad)
        ends = [min(truth), max(truth)]
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        if line.value is not None:
            if line.low is not None and line.high is not None:
                axes.axhspan(line.low, line.high, color=ROLE_COLOURS["ceiling"], alpha=0.16, linewidth=0)
            axes.axhline(line.value, color=ROLE_COLOURS["ceiling"], linewidth=1.8)
        for t, s, spread in line.points:
            axes.plot([t, t], [s - spread, s + spread], color=SOURCE, linewidth=1.4)
        axes.plot(truth, said, "o-", color=SOURCE, linewidth=1.8, markersize=5)
        axes.locator_params(nbins=5)
        axes.set_xlabel("truth, on Gaussians of equal size")
        axes.set_ylabel("the estimator says")
        pairs = "; ".join(f"truth {t:.3g}, it says {s:.3g} ± {spread:.2g}" for t, s, spread in line.points)
        here = "" if line.value is None else f"; on these data it says {line.value:.3g}"
        return to_svg(figure, name, f"Calibration of {title_of(line.what)}. {pairs}{here}")
