"""Means of the terms over an epoch, and the watch for the first that is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from crossdistill.errors import TrainingError
from crossdistill.methods.base import Losses


class NotFinite(TrainingError):
    """A loss term is NaN or infinite; the stage adds where and what to try."""


class Meter:
    """Sums up what a stage logs.

    On the CPU every loss is looked at before it is differentiated. On an accelerator looking would wait for the device
    at every step, so sums stay there until `flush`, where a term that was not finite still shows in its sum.

    Args:
        waits: Whether reading a number has to wait for a device.
    """

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self.latest = math.nan
        self._sums: dict[str, list[float]] = {}  # name to [sum, count]
        self._pending: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        self._last: Tensor | None = None

    def add(self, losses: Losses, total: Tensor) -> None:
        """Take the terms of one loss, whose sum is `total`.

        Raises:
            NotFinite: If one is not finite.
        """
        if self.waits:
            self._defer(losses, total)
            return
        value = total.item()
        if not math.isfinite(value):
            _refuse({name: term.item() for name, term in losses.terms.items()})
        self.latest = value
        sums, terms = self._sums, losses.terms
        for name, term in terms.items():
            entry = sums.get(name)
            if entry is None:
                entry = sums[name] = [0.0, 0]
            entry[0] += value if len(terms) == 1 else term.item()
            entry[1] += 1
        if losses.logged:
            for name, scalar in losses.logged.items():
                self._count(name, scalar.item(), 1)
        if "loss" not in terms:
            self._count("loss", value, 1)

    def flush(self) -> None:
        """Fetch what waits on the device.

        Raises:
            NotFinite: If a term was not finite since the last time.
        """
        pending, self._pending = self._pending, {}
        for names, (total, count) in pending.items():
            numbers = [float(number) for number in total.cpu()]
            values = dict(zip(names, numbers, strict=True))
            watched = {name: value for name, value in values.items() if not name.startswith("\0")}
            if not all(math.isfinite(value) for value in watched.values()):
                _refuse({name: value for name, value in watched.items() if name != "loss"} or watched)
            for name, value in values.items():
                self._count(name.removeprefix("\0"), value, count)
        if self._last is not None:
            self.latest, self._last = self._last.item(), None

    def means(self) -> dict[str, float]:
        """Give the mean of everything since the last `clear`, "loss" first."""
        names = sorted(self._sums, key=lambda name: name != "loss")
        return {name: self._sums[name][0] / self._sums[name][1] for name in names}

    def clear(self) -> None:
        """Start anew."""
        self._sums = {}

    def average(self, means: Callable[[Mapping[str, float]], dict[str, float]]) -> None:
        """Replace the sums by what several processes agree on, after a `flush`."""
        sums = means({name: entry[0] for name, entry in self._sums.items()})
        for name, entry in self._sums.items():
            entry[0] = sums[name]

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint must hold, after a `flush`."""
        return {name: list(entry) for name, entry in self._sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._sums = {name: list(entry) for name, entry in state.items()}

    def _count(self, name: str, value: float, times: int) -> None:
        entry = self._sums.setdefault(name, [0.0, 0])
        entry[0] += value
        entry[1] += times

    def _defer(self, losses: Losses, total: Tensor) -> None:
        named = dict(losses.terms)
        named.setdefault("loss", total)
        named |= {
            f"\0{name}": scalar for name, scalar in (losses.logged or {}).items()
        }  # may be infinite, is only logged
        values = torch.stack([value.detach().float() for value in named.values()])
        key = tuple(named)
        before = self._pending.get(key)
        self._pending[key] = (values, 1) if before is None else (before[0] + values, before[1] + 1)
        self._last = total.detach()


def _refuse(terms: dict[str, float]) -> None:
    broken = [f"'{name}' is {value}" for name, value in terms.items() if not math.isfinite(value)]
    raise NotFinite(f"the loss term {', '.join(broken)}" if broken else "the sum of the loss terms overflows")
