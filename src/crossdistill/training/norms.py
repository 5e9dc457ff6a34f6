"""Batch norms whose statistics are those of the rows of all processes, on any device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - what all of them inherit from

from crossdistill.methods.base import Method
from crossdistill.objectives.base import no_autocast
from crossdistill.objectives.gather import gather_rows, is_alone


@contextlib.contextmanager
def shared_norms(method: Method) -> Generator[None]:
    """Let the batch norms of what learns take their statistics from the rows of all processes, where there are several.

    Torch's SyncBatchNorm does so on some accelerators alone, and is a module of another type; here the modules stay
    what they are, and go back to their own ways at the end.
    """
    frozen = {id(part) for teacher in method.teachers().values() for part in teacher.modules()}
    norms = [
        part
        for part in method.modules()
        if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm) and id(part) not in frozen
    ]
    for norm in [] if is_alone() else norms:
        norm.forward = functools.partial(_normalise, norm)
    try:
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _normalise(norm: _BatchNorm, input: Tensor) -> Tensor:
    """Do what a batch norm does, its statistics taken from the rows of all processes, which have equally many."""
    if not norm.training or is_alone():
        return type(norm).forward(norm, input)
    norm._check_input_dim(input)  # pyright: ignore[reportPrivateUsage] - as its own forward does
    axes = [axis for axis in range(input.ndim) if axis != 1]
    with no_autocast(input):
        full = input.float() if input.itemsize < 4 else input
        local = torch.stack([full.mean(axes), full.var(axes, unbiased=False)])
        everyone = gather_rows(local[None])
        mean = everyone[:, 0].mean(dim=0)
        variance = everyone[:, 1].mean(dim=0) + everyone[:, 0].var(dim=0, unbiased=False)
        if norm.track_running_stats and norm.running_mean is not None:
            _follow(norm, mean.detach(), variance.detach(), rows=len(everyone) * input.numel() // input.shape[1])
        scale = (variance + norm.eps).rsqrt()
        shape = [1, -1] + [1] * (input.ndim - 2)
        if norm.affine:
            scale = scale * norm.weight
        found = (full - mean.view(shape)) * scale.view(shape)
        if norm.affine:
            found = found + norm.bias.view(shape)
        return found.to(input.dtype)


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor, *, rows: int) -> None:
    """Move a batch norm's running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    norm.running_var.lerp_((variance * (rows / max(1, rows - 1))).to(norm.running_var), share)
