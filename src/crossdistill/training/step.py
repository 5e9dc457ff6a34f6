"""One step: losses, gradients, optimiser and the method's hooks, in the order the contract promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from crossdistill.errors import TrainingError
from crossdistill.methods.base import Batch, Losses, Method, Separable
from crossdistill.training.cached import cached_step
from crossdistill.training.meter import Meter
from crossdistill.training.optimiser import align_gradients, learning_rate
from crossdistill.training.processes import Processes
from crossdistill.training.settings import Settings
from crossdistill.training.shards import Shards

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Stepper:
    """Takes the steps of a stage.

        losses ─► finite? ─► backward ─► after_backward ─► clip ─► optimiser ─► gradients off ─► after_step
          ▲          └──── once a batch ────┘ └──────────────── once a step ───────────────────────┘ │
          └────────────────────── once more for each further Losses of training_steps ───────────────┘

    Args:
        fabric: Holds device and precision.
        method: On the device.
        optimizer: Of the method's parameters.
        settings: Of the stage.
        total: Steps of the stage, for the schedule.
        meter: Takes the losses.
        processes: Who else takes these steps.
        shards: What of the method is sharded; None for nothing.

    Raises:
        TrainingError: If gradients are to be accumulated over batches for a method of several steps a batch, or a batch
            is to be cut into micro-batches for a method that is not `Separable`.
    """

    def __init__(
        self,
        fabric: Fabric,
        method: Method,
        optimizer: torch.optim.Optimizer,
        *,
        settings: Settings,
        total: int,
        meter: Meter,
        processes: Processes,
        shards: Shards | None = None,
    ) -> None:
        self._several = type(method).training_steps is not Method.training_steps
        if self._several and settings.accumulate > 1:
            raise TrainingError(
                f"{type(method).__name__} takes several optimiser steps on one batch, which cannot be accumulated over "
                "batches; set accumulate to 1, and batch_size to what fits"
            )
        if settings.micro_batch is not None and not isinstance(method, Separable):
            raise TrainingError(
                f"the step of {type(method).__name__} cannot be cut into micro-batches, as it does not say which of it "
                "is encoding (methods.Separable); leave micro_batch out, and set batch_size to what fits"
            )
        self._fabric, self._method, self._settings, self._total, self._meter = fabric, method, settings, total, meter
        self._optimizer, self._processes, self._shards = optimizer, processes, shards
        self._parameters = [*method.parameters(), *([] if shards is None else shards.parts)]
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.autocast = cast("Callable[[], AbstractContextManager[None]]", fabric.autocast)
        self._mixed = settings.precision != "32-true"
        wrapped: Any = fabric.setup_optimizers(optimizer)
        # in full precision on one device Fabric's wrappers do nothing, at some microseconds a step
        self._step: Callable[[], Any] = wrapped.step if self._mixed else optimizer.step

    def begin(self, step: int) -> None:
        """Set the learning rate of a step, from 0."""
        lr = learning_rate(step, self._total, self._settings)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._place = [step, 0]

    def take(self, batch: Batch, *, share: int, last: bool) -> None:
        """Learn from one batch.

        Args:
            batch: On the device.
            share: Over how many batches this step averages its gradient.
            last: Whether this batch is the last of them.

        Raises:
            NotFinite: If a term is not finite.
            TrainingError: If no term depends on a parameter.
        """
        with self._processes.own_random(*self._place):
            self._learn(batch, share)
        self._place[1] += 1
        if last and not self._several:
            self._update()

    def _learn(self, batch: Batch, share: int) -> None:
        """Add up a batch's gradient; a method of several steps takes them all."""
        if self._several:
            for losses in self._steps(batch):
                self._backward(losses, 1)
                self._update()
            return
        micro = self._settings.micro_batch
        if micro is not None:
            assert isinstance(self._method, Separable)
            cached_step(
                self._method,
                batch,
                micro_batch=micro,
                device=self._fabric.device,
                autocast=self.autocast,
                backward=lambda losses: self._backward(losses, share),
            )
        elif self._mixed:
            with self.autocast():
                losses = self._method.training_step(batch)
            self._backward(losses, share)
        else:
            self._backward(self._method.training_step(batch), share)

    def _steps(self, batch: Batch) -> Iterator[Losses]:
        """Run the method's generator with autocast on within it, and off in between, where the optimiser works."""
        steps = self._method.training_steps(batch)
        while True:
            with self.autocast():
                losses = next(steps, None)
            if losses is None:
                return
            yield losses

    def _backward(self, losses: Losses, share: int) -> None:
        if not losses.terms:  # every term of this batch is masked
            return
        total: Tensor = losses.total
        self._meter.add(losses, total)
        if not total.requires_grad:
            raise TrainingError(f"no loss term depends on a parameter; the terms are {', '.join(losses.terms)}")
        if share > 1:
            total = total / share
        if self._mixed:
            self._fabric.backward(total)
        else:
            total.backward()  # pyright: ignore[reportUnknownMemberType]

    def _update(self) -> None:
        self._processes.average(self._parameters)
        if self._mixed:
            self._fabric.strategy.precision.unscale_gradients(self._optimizer)  # before anyone looks at them
        self._method.after_backward()
        if self._shards is not None:
            self._shards.take_gradients()
        align_gradients(self._trained)
        if self._settings.clip is not None:
            clip = torch.nn.utils.clip_grad_norm_ if self._shards is None else self._shards.clip
            clip(self._trained, self._settings.clip)
        self._step()
        for parameter in self._parameters:  # of all: those the optimiser does not have would sum up for ever
            parameter.grad = None
        self._method.after_step()
