"""A suite's page: who leads, by how much, how sure that is, and everything that was run for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crossdistill.errors import DataError
from crossdistill.evaluation import Interval, sign_verdict
from crossdistill.experiments.arms import Role
from crossdistill.experiments.bench_file import BenchResults
from crossdistill.experiments.results import kind_of
from crossdistill.experiments.standings import write_standings
from crossdistill.experiments.standings_cells import labels_word
from crossdistill.files import write_text
from crossdistill.report.figures import ROLE_COLOURS
from crossdistill.report.league_figures import (
    PANELS,
    Draw,
    Line,
    class_chart,
    compute_chart,
    file_name,
    gains_chart,
    interval,
    line_chart,
    picture,
    points,
    rank_chart,
)
from crossdistill.report.page import circumstances, duration, fill
from crossdistill.report.words import pairing_words

DETAILS = 4000
"""Rows of single experiments in the page, beyond which only those of the headline view are written into it."""

DASH = "\N{EN DASH}"

COLOURED = 6
"""Lines that a person can tell apart in one chart."""

League = Mapping[str, Any]


def is_bench(folder: Path) -> bool:
    """Tell a suite's folder from a run's: by `kind` in results.json."""
    return kind_of(Path(folder)) == "bench"


def write_league(folder: Path) -> Path:
    """Write folder/standings.json, folder/pictures/ and folder/report.html, a page that opens offline.

    Args:
        folder: Of a suite, with results.json and predictions/. It may be unfinished: the page then says so.

    Returns:
        The path of the page, written whole or not at all.

    Raises:
        DataError: If results.json is missing or not what it should be.
    """
    folder = Path(folder)
    bench, found = write_standings(folder)
    path = folder / "report.html"
    write_text(path, _Page(bench, found, folder / "pictures").render())
    return path


def league_markdown(
    folder: Path, *, evaluation: str | None = None, labels_per_class: int | str | None = "first"
) -> str:
    """Write the league as a short Markdown table for a README, from folder/results.json and the predictions.

    Args:
        folder: Of a suite.
        evaluation: None for the first of which the suite has a league.
        labels_per_class: A number, None for all labels, "first" for the first of which it has one.

    Raises:
        DataError: If the suite has no league of that kind, as where every run of every method failed.
    """
    bench, found = write_standings(Path(folder))
    leagues: list[League] = found["leagues"]
    if not leagues:
        raise DataError(f"{folder} has no league, as no method has a result")
    kinds = dict.fromkeys((league["evaluation"], league["labels_per_class"]) for league in leagues)
    fit = [(way, k) for way, k in kinds if evaluation in (None, way) and labels_per_class in ("first", k)]
    if not fit:
        there = "; ".join(f"'{way}' with {labels_words(k)}" for way, k in kinds)
        raise DataError(f"{folder} has no league of that kind; there are: {there}")
    mine = [league for league in leagues if (league["evaluation"], league["labels_per_class"]) == fit[0]]
    return "\n\n".join(_markdown(bench, league, len(mine) > 1) for league in mine) + "\n"


def _markdown(bench: BenchResults, league: League, several: bool) -> str:
    head = f"mean accuracy, {league['evaluation'].replace('_', ' ')}, {labels_words(league['labels_per_class'])}"
    lines = [f"**{_plain(league['track'])}, {settings_words(league)}**\n"] if several else []
    lines += [
        f"| method | {head} | gain over the best control (95 % interval) | average rank | CPU s |",
        "|---|---|---|---|---|",
    ]
    for row in in_order(bench, league):
        gain, rank = row["gain"], row["average_rank"]
        role = bench.methods[row["method"]].role
        name = _plain(row["method"]) + (f" ({role})" if role in ("control", "ceiling") else "")
        bounds = "" if gain is None or gain["low"] is None else f" ({interval(gain['low'], gain['high'])})"
        lines.append(
            f"| {name} | {points(row['mean'], signed=False)} % | {points(gain['value'] if gain else None)}{bounds} "
            f"| {DASH if rank is None else f'{rank:.2f}'} | {seconds(row['cpu_seconds'])} |"
        )
    return "\n".join(lines)


_MARKS = re.compile(r"[\\`*\[\]<>|]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown may take for its own; an underscore within a word it does not."""


def _plain(text: str) -> str:
    """Keep a name from being taken for Markdown or HTML."""
    return " ".join(_MARKS.sub(r"\\\g<0>", text).split())


def labels_words(k: int | str | None) -> str:
    """Say a number of labels."""
    return "all labels" if k is None else f"{k} label{'s' if k != 1 else ''} per class"


def settings_words(league: League) -> str:
    """Say whether a league is of tuned methods."""
    return "tuned settings" if league["tuned"] else "default settings"


def seconds(value: float | None) -> str:
    """Write seconds with three digits; None as a dash."""
    return DASH if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def in_order(bench: BenchResults, league: League) -> list[Mapping[str, Any]]:
    """Sort a league's rows: by rank, then those without one by mean, the ceiling last."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        rank, mean = row["average_rank"], row["mean"]
        ceiling = bench.methods[row["method"]].role == "ceiling"
        return ceiling, rank is None, rank if rank is not None else 0.0, -(mean if mean is not None else -1.0)

    return sorted(league["rows"], key=key)


class _Page:
    """Everything that the template asks for."""

    def __init__(self, bench: BenchResults, found: Mapping[str, Any], pictures: Path) -> None:
        self.bench, self.found, self.pictures = bench, found, pictures
        self.roles: dict[str, Role] = {name: method.role for name, method in bench.methods.items()}
        self.headline: str | None = found["headline"]["method"]
        self.drawn: Counter[str] = Counter()
        rows = sum(len(cell["rows"]) for cell in found["cells"])
        self.all_details = rows <= DETAILS

    def render(self) -> str:
        bench, found = self.bench, self.found
        views = [self._view(league) for league in found["leagues"]]
        used = {row["evaluation"] for row in found["leagues"]}
        return fill(
            "league.html.j2",
            bench=bench,
            found=found,
            views=views,
            choices=self._choices(),
            verdict=self._verdict(views),
            label_views=self._label_views(),
            pair_views=self._pair_views(),
            class_views=self._class_views(),
            roles=ROLE_COLOURS,
            role=self.roles,
            points=points,
            interval=interval,
            seconds=seconds,
            labels_words=labels_words,
            evaluations=[way for way in bench.evaluations if way in used],
            seeds=sorted({run.seed for run in bench.runs} | {row.seed for row in bench.rows}),
            facts=circumstances(bench.environment),
            spent=self._spent(),
            pairings=[(p, pairing_words(p)) for p in dict.fromkeys(e.pairing for e in bench.experiments.values())],
            all_details=self.all_details,
        )

    def _key(self, track: str | None = None, tuned: bool | None = None, way: str | None = None, k: Any = "*") -> str:
        """Name a choice, "0 1 2 0" by position; a star is for what does not matter."""
        bench = self.bench
        parts = (
            "*" if track is None else bench.tracks.index(track),
            "*" if tuned is None else int(tuned),
            "*" if way is None else bench.evaluations.index(way),
            "*" if k == "*" else bench.labels_per_class.index(k),
        )
        return " ".join(str(part) for part in parts)

    def _choices(self) -> list[dict[str, Any]]:
        """Give the groups of radio buttons; those with one choice stay out of sight."""
        bench = self.bench
        groups: list[tuple[str, str, Mapping[Any, str]]] = [
            ("Track", "track", {track: track for track in bench.tracks}),
            ("Settings", "tuned", {False: "default", True: "tuned"}),
            ("Evaluation", "evaluation", {way: way.replace("_", " ") for way in bench.evaluations}),
            ("Labels per class", "labels_per_class", {k: labels_word(k) for k in bench.labels_per_class}),
        ]
        choices: list[dict[str, Any]] = []
        for name, key, words in groups:
            there = {league[key] for league in self.found["leagues"]}
            options = [(place, word) for place, (value, word) in enumerate(words.items()) if value in there]
            choices.append({"name": name, "options": options})
        return choices

    def _name(self, kind: str, league: Mapping[str, Any], *more: str) -> str:
        """Name a picture's file by what it shows, without what every picture of the suite shares."""
        k = league.get("labels_per_class", "*")
        parts = [kind, *more]
        parts += [league["track"]] if len(self.bench.tracks) > 1 else []
        parts += [league["evaluation"]] if "evaluation" in league else []
        parts += [] if k == "*" else [labels_word(k)]
        return file_name(*parts, *(["tuned"] if league.get("tuned") else []))

    def _words(self, league: Mapping[str, Any]) -> str:
        parts = [league["track"]] if len(self.bench.tracks) > 1 else []
        parts += [f"{league['evaluation'].replace('_', ' ')} accuracy"]
        parts += [labels_words(league["labels_per_class"])] if "labels_per_class" in league else []
        return ", ".join([*parts, *(["tuned settings"] if league.get("tuned") else [])])

    def _picture(self, kind: str, league: Mapping[str, Any], draw: Draw, *more: str, narrow: bool = False) -> Markup:
        name = self._name(kind, league, *more)
        self.drawn[name] += 1  # names may differ in signs alone, which no file's keeps
        name = name if self.drawn[name] == 1 else f"{name}-{self.drawn[name]}"
        return picture(self.pictures, name, draw, narrow=narrow)

    def _view(self, league: League) -> dict[str, Any]:
        words, rows = self._words(league), in_order(self.bench, league)
        gains = [row for row in rows if row["gain"] is not None]
        timed = any(row["cpu_seconds"] for row in gains)
        ranked = any(row["average_rank"] is not None for row in rows) and len(league["experiments"]) > 1
        first = league is self.found["leagues"][0]
        mine = self._cells(league)
        return {
            "key": self._key(league["track"], league["tuned"], league["evaluation"], league["labels_per_class"]),
            "words": words,
            "league": league,
            "rows": rows,
            "gains": self._picture("gains", league, gains_chart(rows, words)) if gains else None,
            "ranks": self._picture("ranks", league, rank_chart(league, self.roles, words)) if ranked else None,
            "compute": self._picture("compute", league, self._compute(rows, words)) if timed else None,
            "matrix": self._matrix(mine, gains),
            "cells": mine if self.all_details or first else [],
            "against": "tuned" if league["tuned"] else "default",
        }

    def _compute(self, rows: Sequence[Mapping[str, Any]], words: str) -> Draw:
        return compute_chart(rows, self.roles, self.headline, words)

    def _cells(self, league: League) -> list[dict[str, Any]]:
        wanted = (league["track"], league["evaluation"], league["labels_per_class"])
        names = ("track", "evaluation", "labels_per_class")
        return [
            {**cell, "rows": [row for row in cell["rows"] if self._belongs(row, league)]}
            for cell in self.found["cells"]
            if tuple(cell[name] for name in names) == wanted
            and self.bench.experiments[cell["experiment"]].limit is None
        ]

    def _belongs(self, row: Mapping[str, Any], league: League) -> bool:
        return self.bench.methods[row["method"]].tuned == league["tuned"] or self.roles[row["method"]] == "ceiling"

    def _matrix(self, cells: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Lay gains out as methods x experiments, with how strongly each is coloured."""
        at = {(cell["experiment"], row["method"]): row["against_control"] for cell in cells for row in cell["rows"]}
        most = max((abs(c["difference"]) for c in at.values() if c), default=0.0) or 1.0
        if len(cells) < 2:
            return None
        names = [cell["experiment"] for cell in cells]
        table = [
            {"method": row["method"], "cells": [self._tinted(at.get((name, row["method"])), most) for name in names]}
            for row in rows
        ]
        return {"experiments": names, "rows": table}

    def _tinted(self, comparison: Mapping[str, Any] | None, most: float) -> dict[str, Any] | None:
        if comparison is None:
            return None
        verdict = sign_verdict(Interval(comparison["difference"], comparison["low"], comparison["high"], 1))
        colour = "0,114,178" if comparison["difference"] > 0 else "213,94,0"
        return {
            "text": points(comparison["difference"]),
            "sign": {"helped": "▲", "hurt": "▼", "undecided": ""}[verdict],
            "tint": f"rgba({colour},{0.5 * abs(comparison['difference']) / most:.2f})",
            "against": comparison["against"],
            "bounds": interval(comparison["low"], comparison["high"]),
        }

    def _verdict(self, views: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Judge the headline method in the headline view by its mean gain."""
        if not views:
            return None
        view = views[0]
        row = next((row for row in view["rows"] if row["method"] == self.headline and row["gain"]), None)
        if row is None:
            return None
        gain = row["gain"]
        word = sign_verdict(Interval(gain["value"], gain["low"], gain["high"], 1))
        ranked = [row for row in view["rows"] if row["average_rank"] is not None]
        return {
            "word": word,
            "sign": {"helped": "▲", "hurt": "▼", "undecided": "●"}[word],
            "row": row,
            "words": view["words"],
            "leader": ranked[0] if ranked else None,
            "ranked": len(ranked),
            "league": view["league"],
        }

    def _shown(self, lines: Sequence[Mapping[str, Any]]) -> list[str]:
        """Choose the methods that get a colour: the headline, then those with the largest gain at the last point."""
        by_gain = sorted(lines, key=lambda line: -line["points"][-1]["gain"])
        first = [line["method"] for line in lines if line["method"] == self.headline]
        return list(dict.fromkeys([*first, *(line["method"] for line in by_gain)]))[:COLOURED]

    def _label_views(self) -> list[dict[str, Any]]:
        groups = _grouped(self.found["label_curves"], ("track", "tuned", "evaluation"))
        known = sorted(self.bench.labels_per_class, key=lambda k: float("inf") if k is None else k)
        places = {k: place for place, k in enumerate(known)}
        ticks = ["all" if k is None else str(k) for k in known]
        views: list[dict[str, Any]] = []
        for curves in groups:
            head = curves[0]
            lines = [_line(curve, [places[p["labels_per_class"]] for p in curve["points"]]) for curve in curves]
            words = f"Gain against labels, {self._words(head)}"
            draw = line_chart(lines, self._shown(curves), "labels per class", words, ticks)
            views.append(
                {
                    "key": self._key(head["track"], head["tuned"], head["evaluation"]),
                    "words": self._words(head),
                    "chart": self._picture("labels", head, draw),
                    "others": len(lines) - COLOURED,
                    "experiments": sorted({curve["experiments"] for curve in curves}),
                }
            )
        return views

    def _pair_views(self) -> list[dict[str, Any]]:
        views: list[dict[str, Any]] = []
        for curves in _grouped(
            self.found["pair_curves"], ("track", "tuned", "evaluation", "labels_per_class", "family")
        ):
            head = curves[0]
            lines = [_line(curve, [p["pairs"] for p in curve["points"]]) for curve in curves]
            words = f"Gain against pairs, {head['family']}, {self._words(head)}"
            draw = line_chart(lines, self._shown(curves), "training pairs", words)
            views.append(
                {
                    "key": self._key(head["track"], head["tuned"], head["evaluation"], head["labels_per_class"]),
                    "words": f"{head['family']}: {self._words(head)}",
                    "chart": self._picture("pairs", head, draw, head["family"]),
                    "others": len(lines) - COLOURED,
                }
            )
        return views

    def _class_views(self) -> list[dict[str, Any]]:
        views: list[dict[str, Any]] = []
        limited = {name for name, facts in self.bench.experiments.items() if facts.limit is not None}
        mine = [entry for entry in self.found["class_gains"] if entry["experiment"] not in limited]
        for entries in _grouped(mine, ("track", "labels_per_class")):
            head = entries[0]
            views.append(
                {
                    "key": self._key(head["track"], None, None, head["labels_per_class"]),
                    "words": self._words(head),
                    "panels": [
                        (entry, self._picture("classes", entry, class_chart(entry), entry["experiment"], narrow=True))
                        for entry in entries[:PANELS]
                    ],
                    "left_out": len(entries) - PANELS,
                }
            )
        return views

    def _spent(self) -> str:
        walls = [run.seconds for run in self.bench.runs if run.seconds is not None]
        cpus = [run.cpu_seconds for run in self.bench.runs if run.cpu_seconds is not None]
        return f"{duration(sum(walls))} of runs, {duration(sum(cpus))} of processors" if walls else ""


def _line(curve: Mapping[str, Any], x: Sequence[float]) -> Line:
    parts = {key: [point[key] for point in curve["points"]] for key in ("gain", "low", "high")}
    return Line(method=curve["method"], x=x, **parts)


def _grouped(items: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for item in items:
        groups.setdefault(tuple(item[name] for name in names), []).append(item)
    return list(groups.values())
