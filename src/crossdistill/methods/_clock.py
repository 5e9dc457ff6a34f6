"""How far a stage is, for methods whose stage has phases: counted by the method itself, and kept with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from crossdistill.errors import ConfigError, suggest
from crossdistill.methods.base import StageData


class Clock(nn.Module):
    """Counts the batches that a method has learnt from; a stage that is resumed goes on in the phase it was in.

    Attributes:
        done: Batches so far.
        length: Batches of the stage; 0 before one has begun, when every phase has passed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done = self.length = 0

    def begin(self, data: StageData) -> None:
        """Learn how long the stage is, at its start; what a checkpoint knows of it comes after."""
        self.done = 0
        self.length = data.epochs * data.steps_per_epoch

    def tick(self) -> None:
        """Count one batch."""
        self.done += 1

    def end(self, share: float) -> int:
        """Give the step at which that share of the stage is over: at least one in it, and one after it; 0 for none."""
        return min(self.length - 1, max(1, round(share * self.length))) if share else 0

    def passed(self, share: float) -> bool:
        """Say whether that share of the stage is over; where no stage has begun all are."""
        return self.done >= self.end(share)

    def progress(self, share: float = 0.0) -> float:
        """Give how much of what comes after a share of the stage is done, in [0, 1]; 0 where no stage has begun."""
        if not self.length:
            return 0.0
        start = self.end(share)
        return min(1.0, max(0.0, (self.done - start) / max(1, self.length - start)))

    def get_extra_state(self) -> dict[str, int]:
        """Give the count; torch keeps it with the weights."""
        return {"done": self.done}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Take the count up."""
        self.done = state["done"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a word that is not among those of a Literal.

    Raises:
        ConfigError: Naming the nearest.
    """
    known = get_args(choices)
    if value not in known:
        raise ConfigError(f"{name} is '{value}'{suggest(str(value), known)}")


def check_shares(method: str, **shares: float) -> None:
    """Refuse shares of a stage that are not in [0, 1), or leave nothing to what comes after them.

    Raises:
        ConfigError: Naming them.
    """
    if any(not 0 <= share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        told = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ConfigError(
            f"{method} needs shares of the steps in [0, 1) that leave some to the student; received {told}"
        )
