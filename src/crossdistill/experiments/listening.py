"""How a run tells whoever wants to know what happens in it; nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LISTEN = Callable[[str, Mapping[str, Any]], None]
"""Told what happens: a word and its facts."""


class StageListener:
    """Passes the loop's news on with the name of the row and the stage."""

    def __init__(self, listen: LISTEN, row: str, stage: str, seed: int) -> None:
        self.listen, self.facts = listen, {"row": row, "stage": stage, "seed": seed}

    def started(self, total_steps: int, first_step: int) -> None:
        """Pass on that a stage starts."""
        self.listen("started", {**self.facts, "total": total_steps, "step": first_step})

    def stepped(self, step: int, loss: float, rate: float, data_wait: float) -> None:
        """Pass on a step."""
        self.listen("stepped", {**self.facts, "step": step, "loss": loss, "rate": rate, "data_wait": data_wait})

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Pass on an epoch's record."""
        self.listen("epoch", {**self.facts, "record": dict(record)})

    def finished(self) -> None:
        """Pass on that the stage is done."""
        self.listen("finished", dict(self.facts))
