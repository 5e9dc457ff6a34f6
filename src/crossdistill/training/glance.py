"""A glance at the first batch of a user's loader, which leaves everything as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from crossdistill.files import digest


def first_batch(loader: Iterable[Any], named: Callable[[Any], Mapping[str, Any]]) -> list[list[Any]]:
    """Describe the first batch of epoch 0.

    It is read twice, as only a batch that comes again says what the data are: a generator of the loader's own, or an
    order of its own counting, gives another one.

    Args:
        loader: Anything that can be iterated again and again.
        named: Gives a batch as a dict.

    Returns:
        Of each member name, type, shape and hash; empty where there is no batch, or not the same one twice.
    """
    with _generators_kept(loader):
        one, other = _describe(loader, named), _describe(loader, named)
    return one if one == other else []


def _describe(loader: Iterable[Any], named: Callable[[Any], Mapping[str, Any]]) -> list[list[Any]]:
    tell_epoch(loader, 0)
    with _seeded():
        batch = next(iter(loader), None)
    return [] if batch is None else [[name, *_content(value)] for name, value in _members(named(batch))]


def _members(batch: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Give everything in a batch with its name, what stands by modality in a dict as "name/modality"."""
    for name, value in sorted(batch.items()):
        if isinstance(value, Mapping):
            yield from _members(cast("Mapping[str, Any]", value), f"{within}{name}/")
        else:
            yield f"{within}{name}", value


def tell_epoch(loader: Iterable[Any], epoch: int) -> None:
    """Tell a loader's sampler the epoch, if it has one that wants to know."""
    sampler = getattr(loader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)  # pyright: ignore[reportOptionalMemberAccess] - it has it


@contextlib.contextmanager
def _seeded() -> Generator[None]:
    """Seed the generators that data sets draw from, and put them back."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - users' code draws there
    torch.set_rng_state(torch.Generator().manual_seed(0).get_state())  # manual_seed would seed the devices too
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


@contextlib.contextmanager
def _generators_kept(loader: Iterable[Any]) -> Generator[None]:
    """Leave the generators that a DataLoader and its sampler were given as they were."""
    owners = (loader, getattr(loader, "sampler", None))
    own = [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in own]
    try:
        yield
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


def _content(value: Any) -> tuple[str, list[int], str]:
    if not isinstance(value, Tensor):
        return type(value).__name__, [], ""  # of no use to a method; at the first step the user is told so
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(value.dtype), list(value.shape), digest(data)
