"""Showing how a run goes: bars where someone watches, a line a finished row where nobody does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

MOST_ODD = 10
"""Lines on odd data that are shown."""

COLOURS = {"helped": "green", "hurt": "red", "undecided": "yellow"}


class Progress:
    """Listens to a run; use it as a context."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.whole: TaskID | None = None
        self.stages: dict[tuple[str, int], TaskID] = {}
        self.done: dict[tuple[str, int], int] = {}

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def listen(self, word: str, facts: Mapping[str, Any]) -> None:
        """Hear one piece of news of the run."""
        handler = getattr(self, f"_{word}", None)
        if handler is not None:
            handler(facts)

    def _planned(self, facts: Mapping[str, Any]) -> None:
        self.whole = self.bars.add_task("all steps", total=facts["steps"], note="")
        self._say(f"{facts['data']}: {facts['tasks']} tasks, {facts['steps']} optimiser steps")
        for line in odd(facts.get("warnings", ())):
            self._say(line)

    def _started(self, facts: Mapping[str, Any]) -> None:
        key = (facts["row"], facts["seed"])
        self.done[key] = 0
        name = f"{facts['row']}, seed {facts['seed']}"
        self.stages[key] = self.bars.add_task(name, total=facts["total"], completed=facts["step"], note="")
        self._reach(key, facts["step"])

    def _stepped(self, facts: Mapping[str, Any]) -> None:
        key = (facts["row"], facts["seed"])
        note = f"{facts['rate']:,.0f} samples/s, loss {facts['loss']:.3f}, waits for data {facts['data_wait']:.0%}"
        self.bars.update(self.stages[key], completed=facts["step"], note=note)
        self._reach(key, facts["step"])

    def _finished(self, facts: Mapping[str, Any]) -> None:
        key = (facts["row"], facts["seed"])
        if key in self.stages:
            task = self.stages.pop(key)
            total = next((t.total for t in self.bars.tasks if t.id == task), None)
            self._reach(key, int(total or self.done[key]))
            self.bars.remove_task(task)

    def _judged(self, facts: Mapping[str, Any]) -> None:
        scores = [f"{r['evaluation']} {100 * r['value']:.1f}" for r in facts["rows"] if r["metric"] == "accuracy"]
        if scores:
            self._say(f"  seed {facts['seed']}  {facts['row']:<22} {', '.join(scores)}")

    def _closing(self, _: Mapping[str, Any]) -> None:
        self._say("writing the page")

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _reach(self, key: tuple[str, int], step: int) -> None:
        if self.whole is not None:
            self.bars.advance(self.whole, step - self.done[key])
        self.done[key] = step


def odd(warnings: Sequence[str]) -> list[str]:
    """Give a line for each of the first things that the checks of the data found odd, and one that counts the rest."""
    lines = [f"odd: {text}" for text in warnings[:MOST_ODD]]
    rest = len(warnings) - MOST_ODD
    return [*lines, f"odd: and {rest} more such findings"] if rest > 0 else lines


def show_results(results: Mapping[str, Any], page: Path) -> None:
    """Print the verdict, the league table of the headline evaluation, and where the page is."""
    console = Console()
    head = results["headline"]
    table = Table(box=None, pad_edge=False)
    for column in ("method", "role", f"{head['evaluation']} accuracy, %", "method minus it, points"):
        table.add_column(column, justify="left" if column in ("method", "role") else "right")
    for name, facts in results["methods"].items():
        values = [
            100 * row["value"]
            for row in results["rows"]
            if (row["method"], row["evaluation"], row["metric"]) == (name, head["evaluation"], head["metric"])
        ]
        if values:
            table.add_row(
                escape(name), facts["role"], f"{sum(values) / len(values):.1f}", escape(_difference(results, name))
            )
    console.print(table)
    console.print()
    console.print(results["sentence"], style=COLOURS[results["verdict"]], markup=False, highlight=False, soft_wrap=True)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)


def _difference(results: Mapping[str, Any], against: str) -> str:
    head = results["headline"]
    for row in results["comparisons"]:
        if (row["method"], row["against"], row["evaluation"]) == (head["method"], against, head["evaluation"]):
            value, low, high = (None if row[k] is None else 100 * row[k] for k in ("difference", "low", "high"))
            interval = "" if low is None or high is None else f"  [{low:+.1f}, {high:+.1f}]"
            return f"{value:+.1f}{interval}"
    return ""
