"""Looking at a stage from outside: its held-out scores, its progress, and what must not happen to its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor

from crossdistill.errors import TrainingError
from crossdistill.methods.base import Method
from crossdistill.training.checkpoint import Progress
from crossdistill.training.cut import size_of
from crossdistill.training.feed import Feed
from crossdistill.training.identity import tensors_of
from crossdistill.training.protocols import Listener, Loader
from crossdistill.training.shards import mine
from crossdistill.training.state import state_of, teacher_digests

_TELL_EVERY = 0.2  # seconds: as often as an eye follows, and too seldom to cost anything


class Teller:
    """Tells a listener how training goes, a few times a second.

    Args:
        listener: Who is told; None is nobody.
        progress: Where the stage is when telling begins.
    """

    def __init__(self, listener: Listener | None, progress: Progress) -> None:
        self._listener = listener
        self._then = (time.perf_counter(), progress.samples, progress.running, progress.waited)

    def due(self, now: float) -> bool:
        """Say whether it is time again."""
        return now - self._then[0] >= _TELL_EVERY

    def tell(self, now: float, loss: float, progress: Progress) -> None:
        """Tell what has happened since the last time."""
        _, samples, running, waited = self._then
        self._then = (now, progress.samples, progress.running, progress.waited)
        span = max(progress.running - running, 1e-9)
        rate, wait = (progress.samples - samples) / span, (progress.waited - waited) / span
        if self._listener is not None:
            self._listener.stepped(progress.step, loss, rate, wait)


def no_memory(error: Exception) -> bool:
    """Tell whether an error says that memory is full: Python's, an accelerator's, or torch's on the CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def held_out_means(
    method: Method, feed: Feed, loader: Loader, autocast: Callable[[], AbstractContextManager[Any]]
) -> dict[str, float]:
    """Give the means of the method's held-out scalars over all samples; the caller sees to mode and gradients.

    Raises:
        TrainingError: If the method changed a parameter or buffer of its state.
    """
    before = _versions(method)
    sums: dict[str, float] = {}
    weights: dict[str, int] = {}
    for batch in loader.epoch(0):
        size = size_of(batch)
        if size == 1 and sums:
            continue  # a rest of one sample has no partner to be compared with
        with autocast():
            scores = method.held_out_step(feed.ready(batch))
        for name, value in scores.items():
            sums[name] = sums.get(name, 0.0) + float(value) * size
            weights[name] = weights.get(name, 0) + size
    _check_untouched(method, before)
    return {name: total / weights[name] for name, total in sums.items()}


def _versions(method: Method) -> dict[str, tuple[Tensor, int]]:
    """Give what `state_dict` holds with torch's counts of changes in place; what it leaves out may be a cache."""
    saved = {id(value) for value in method.state_dict(keep_vars=True).values()}
    return {name: (tensor, tensor._version) for name, tensor in tensors_of(method) if id(tensor) in saved}


def _check_untouched(method: Method, before: Mapping[str, tuple[Tensor, int]]) -> None:
    now = _versions(method)
    for name in sorted({*before, *now}):
        was, then = before.get(name), now.get(name)
        if was is None or then is None or was[0] is not then[0] or was[1] != then[1]:
            raise TrainingError(
                f"held-out samples changed '{name}' of {type(method).__name__}: held_out_step, or the training_step it "
                "calls, must change it only `if self.training`"
            )


def keep_best(method: Method, progress: Progress, scores: Mapping[str, float]) -> None:
    """Copy the weights into the progress if no epoch had a lower held-out loss; one that is not finite is never best.

    Raises:
        TrainingError: If the method does not say its held-out loss.
    """
    if "loss" not in scores:
        raise TrainingError(f'keep is "best", but held_out_step of {type(method).__name__} gives no "loss"')
    lowest = math.inf if progress.best is None else progress.best["loss"]
    if scores["loss"] < lowest:
        progress.best = {"loss": scores["loss"], "epoch": progress.epoch, "state": state_of(method, copy=True)}


def check_weights(method: Method, place: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        TrainingError: Naming the first.
    """
    trained = {name: mine(p) for name, p in method.named_parameters() if p.requires_grad}
    if not trained:
        return
    # a device is asked once, not by each of them
    finite = cast("list[bool]", torch.stack([torch.isfinite(value).all() for value in trained.values()]).tolist())
    for name, whole in zip(trained, finite, strict=True):
        if not whole:
            raise TrainingError(
                f"{place}: the weights '{name}' are not finite since an earlier step, so its gradient was not; "
                "lower lr, or set clip (e.g. 1.0) or warmup"
            )


def check_unchanged(method: Method, before: Mapping[str, str]) -> None:
    """Refuse a method that changed a frozen teacher.

    Raises:
        TrainingError: Naming the teacher's modality.
    """
    now = teacher_digests(method)
    for modality, was in before.items():
        if now.get(modality) != was:
            raise TrainingError(f"training changed the frozen teacher of '{modality}'; the method must not touch it")
