"""Seeing every process's rows, with gradients, so that the number of processes does not change the mathematics.

    process 0: rows 0 1  ─┐                      ┌─ loss over rows 0 1 2 3, on every process alike
    process 1: rows 2 3  ─┴─ gather_rows ─ 0 1 2 3

Each process computes the whole loss. Backward adds what all processes want of a row, which is the world size times its
gradient; averaging parameter gradients over processes, as DistributedDataParallel does, makes it exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from crossdistill.errors import ObjectiveError

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Leave the other processes out: inside, `gather_rows` gives the rows it is given, which are all there are."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def is_alone() -> bool:
    """Say whether there are no other processes, or they are left out."""
    return _alone.get() or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        everyone = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, rows)
        ctx.local = len(rows)
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        # Autograd may hand the same tensor to other branches, and all_reduce writes into what it is given.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.local
        return gradient[start : start + ctx.local]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes in rank order, (b, ...) to (world * b, ...); one process: unchanged.

    Args:
        rows: This process's rows; all processes must hold equally many (drop the last partial batch).

    Returns:
        Everyone's rows; the gradient flows back to the process each row came from.

    Raises:
        ObjectiveError: If processes hold different numbers of rows.
    """
    if is_alone():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    if len(set(sizes)) > 1:
        raise ObjectiveError(f"processes hold {sizes} rows; contrastive objectives need equal batches: set drop_last")
    apply = cast("Callable[[Tensor], Tensor]", _GatherRows.apply)  # torch does not type it
    return apply(rows)
