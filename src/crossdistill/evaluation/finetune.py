"""Fine-tuning of an encoder and a head on the few labelled samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError, TrainingError
from crossdistill.networks.base import as_outputs


def fine_tune(
    encoder: nn.Module,
    head: nn.Module,
    x_train: Tensor,
    y: ArrayLike | Tensor,
    *,
    steps: int = 100,
    lr: float = 1e-4,
    head_lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    augment: Callable[[Tensor], Tensor] | None = None,
    frozen_norm: bool = True,
) -> tuple[nn.Module, nn.Module]:
    """Train copies of encoder and head with cross-entropy and Adam; what was given is not changed.

    Start the head from the linear probe's (`LinearProbe.head`): a random one spends the steps on itself.

    Args:
        encoder: From samples (b, ...) to features (b, d).
        head: From features to logits (b, c).
        x_train: Labelled samples (n, ...).
        y: Columns of the logits (n,), integers in 0 .. c - 1.
        steps: Optimiser steps; at most 100 in the CMCD reconstruction.
        lr: Learning rate of the encoder.
        head_lr: Learning rate of the head.
        batch_size: Samples of a step; all of them where there are fewer.
        seed: Decides batches, dropout and whatever `augment` draws from torch's generator.
        augment: Applied to every batch, on the encoder's device.
        frozen_norm: Keep the statistics of batch norms: those of a few labelled samples are worse.

    Returns:
        Copies of encoder and head, trained, in eval mode.

    Raises:
        DataError: If labels do not fit.
        ConfigError: If a parameter is out of range.
        TrainingError: If the loss is not finite.
    """
    if steps < 1 or batch_size < 1 or not (lr >= 0 and head_lr >= 0):
        raise ConfigError(
            "fine-tuning needs steps, batch_size >= 1 and learning rates >= 0; "
            f"received {steps}, {batch_size}, {lr}, {head_lr}"
        )
    label = torch.as_tensor(y).long()
    if label.shape != (len(x_train),) or len(label) == 0 or int(label.min()) < 0:
        raise DataError(f"y must be (n,) of columns >= 0 for {len(x_train)} samples; received {tuple(label.shape)}")
    encoder, head = copy.deepcopy(encoder), copy.deepcopy(head)
    first = next(encoder.parameters(), torch.empty(0))
    label, head = label.to(first.device), head.to(first.device)
    groups = [
        {"params": list(encoder.requires_grad_(True).parameters()), "lr": lr},
        {"params": list(head.requires_grad_(True).parameters()), "lr": head_lr},
    ]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]])
    _train_mode(encoder, frozen_norm)
    _train_mode(head, frozen_norm)
    with torch.random.fork_rng(devices=[first.device] if first.is_cuda else []), torch.enable_grad():
        torch.manual_seed(seed)
        for step, rows in enumerate(_rows(len(label), batch_size, steps, seed)):
            batch = x_train[rows.to(x_train.device)].to(first.device)
            batch = batch if augment is None else augment(batch)
            logits = head(as_outputs(encoder(batch)).features)
            if int(label.max()) >= logits.shape[1]:
                raise DataError(f"label {int(label.max())} has no column: the head gives {logits.shape[1]} logits")
            loss = F.cross_entropy(logits.float(), label[rows.to(label.device)])
            if not loss.isfinite():
                raise TrainingError(f"the loss of fine-tuning is {loss.item()} at step {step}; lower lr and head_lr")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return encoder.eval().requires_grad_(False), head.eval().requires_grad_(False)


def _rows(n: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Give the rows of each step: one permutation after the other, cut into full batches."""
    generator = torch.Generator().manual_seed(seed)
    size, waiting = min(size, n), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(n, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def _train_mode(module: nn.Module, frozen_norm: bool) -> None:
    module.train()
    if frozen_norm:
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage] - the only common base
                part.eval()
