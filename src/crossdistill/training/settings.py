"""How long, how fast and in which steps a stage trains: one frozen object, checked when it is made."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from crossdistill.errors import ConfigError, suggest
from crossdistill.training.compiled import check_backend

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "constant", "steps"]
Keep = Literal["last", "best"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of a training stage.

    A *step* is one batch, or `accumulate` batches: it is the unit of the schedule, of `checkpoint_every` and of the
    logs. A method that takes several optimiser steps on one batch takes them all within one step.

    Attributes:
        epochs: Passes over the data; 30 brings small students on a few thousand pairs to their plateau.
        steps: In place of `epochs`: as many whole epochs as make up so many steps. None, as epochs are what papers say;
            steps keep a budget equal where stages have different numbers of samples.
        batch_size: Samples a batch; 256, as contrastive objectives take their negatives from the batch. Where several
            processes share a stage it is that of all together, and a multiple of their number.
        optimizer: "adamw" (decoupled decay; needs the least tuning), "adam" or "sgd".
        lr: Largest learning rate, reached after the warm-up; 1e-3 is AdamW's usual one, SGD wants about 0.1.
        weight_decay: Per step and unit of learning rate; of matrices and kernels only, never of biases, norms or
            other parameters of fewer than two axes. 1e-4 hardly regularises and keeps scale-free weights from growing.
        momentum: Of "sgd" alone; 0.9 is what the papers use.
        schedule: "cosine" goes from `lr` to 0 over the stage, "constant" stays, "steps" multiplies by `gamma` at
            each of the `milestones`.
        milestones: Of "steps" alone, and there at least one: shares of all steps, above 0 and below 1, rising.
        gamma: Of "steps" alone, above 0 and below 1; 0.1 is what the papers use.
        warmup: Share of all steps, 0 to below 1, over which the rate climbs linearly; 0, as small students need none.
        precision: "32-true"; "bf16-mixed" or "16-mixed" (autocast) are faster on GPUs that have them. Stored
            outputs of teachers are those of full precision in any case.
        clip: Largest global norm of the gradient, above 0; None does not clip.
        accumulate: Batches whose gradients are averaged into one step; 1.
        micro_batch: Rows of a batch that the networks hold at once; None holds all. Less takes less memory and gives
            the same gradient for a second forward pass of what learns (gradient caching), the losses still seeing all
            rows. Dropout is then drawn, and a batch norm's statistics are taken, micro-batch by micro-batch.
        compile: What torch.compile hands the networks to: "inductor" is its own choice, and needs a C++ compiler; None
            leaves them as they are. It pays where the seconds saved over all steps are more than those of compiling,
            which were 72 to 306 a network on two busy cores; small networks on a CPU gain nothing.
        shard: Whether each of several processes holds only its part of a student's weights, gradients and moments, and
            makes a block whole as it is run; False, as a student that fits a device need not pay for sending weights.
            The result is the same.
        distinct_groups: Whether a training batch holds at most one sample of a group, where two of a group are no
            negatives of each other (two sketches of one photo); False. The data must have groups.
        workers: Processes that prepare batches; 0 prepares them in this one, best for small arrays. None is needed, and
            none is started, where a GPU holds the samples.
        checkpoint_every: Steps between checkpoints; None writes one at each epoch's end. One is always written on stop.
        keep: "last" weights, or the "best": of the epoch with the lowest held-out loss.

    Raises:
        ConfigError: If a value is outside its range; the message names the field and the range.
    """

    epochs: int = 30
    steps: int | None = None
    batch_size: int = 256
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    precision: str = "32-true"
    clip: float | None = None
    accumulate: int = 1
    micro_batch: int | None = None
    compile: str | None = None
    shard: bool = False
    distinct_groups: bool = False
    workers: int = 0
    checkpoint_every: int | None = None
    keep: Keep = "last"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("workers", 0)):
            _whole(name, getattr(self, name), least)
        for name in ("steps", "checkpoint_every", "micro_batch"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _inside("lr", self.lr, self.lr > 0, "a number above 0")
        _inside("weight_decay", self.weight_decay, self.weight_decay >= 0, "a number of at least 0")
        _inside("momentum", self.momentum, 0 <= self.momentum < 1, "a number from 0 to below 1")
        _inside("warmup", self.warmup, 0 <= self.warmup < 1, "a share of the steps, from 0 to below 1")
        _inside("gamma", self.gamma, 0 < self.gamma < 1, "a number above 0 and below 1")
        for name in ("distinct_groups", "shard"):
            _is_bool(name, getattr(self, name))
        if self.shard and (self.micro_batch is not None or self.precision == "16-mixed"):
            other = "micro_batch" if self.micro_batch is not None else "precision 16-mixed"
            raise ConfigError(f"shard cannot be combined with {other}; leave one of them out")
        if self.clip is not None:
            _inside("clip", self.clip, self.clip > 0, "a number above 0, or none")
        choices = (("optimizer", Optimizer), ("schedule", Schedule), ("keep", Keep), ("precision", Precision))
        for name, allowed in choices:
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(
                    f"{name} is '{getattr(self, name)}'{suggest(str(getattr(self, name)), get_args(allowed))}"
                )

        if self.compile is not None:
            check_backend(self.compile)
            if self.shard:
                raise ConfigError("compile and shard were not brought together; leave one of them out")
        object.__setattr__(self, "milestones", _milestones(self.milestones, self.schedule))

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Make settings of fields that a user named; the constructor's TypeError is for programmers.

        Raises:
            ConfigError: If there is no such field, naming the nearest, or a value is outside its range.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(f"there is no setting '{name}'{suggest(name, known)}")
        return cls(**given)

    def passes(self, steps_per_epoch: int) -> int:
        """Give the number of epochs: as said, or as many as make up `steps`."""
        return self.epochs if self.steps is None else -(-self.steps // steps_per_epoch)

    def to_json(self) -> dict[str, Any]:
        """Give all fields by name, as JSON holds them."""
        return {**asdict(self), "milestones": list(self.milestones)}


def _milestones(value: Any, schedule: str) -> tuple[float, ...]:
    """Check milestones, which files give as a list."""
    told = "milestones must be shares of the steps, each above 0, below 1 and above the one before"
    try:
        shares = tuple(float(share) for share in value)
    except (TypeError, ValueError):
        raise ConfigError(f"{told}, e.g. [0.6, 0.8]; received {value!r}") from None
    if not all(0 < share < 1 for share in shares) or any(a >= b for a, b in itertools.pairwise(shares)):
        raise ConfigError(f"{told}; received {list(shares)}")
    if bool(shares) != (schedule == "steps"):
        raise ConfigError(
            f"milestones belong to the schedule steps, and the schedule is '{schedule}'"
            if shares
            else "milestones are missing: the schedule steps needs at least one, e.g. [0.6, 0.8]"
        )
    return shares


def _is_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false; received {value!r}")


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}; received {value!r}")


def _inside(name: str, value: float, inside: bool, allowed: str) -> None:
    if not (inside and math.isfinite(value)):
        raise ConfigError(f"{name} must be {allowed}; received {value!r}")
