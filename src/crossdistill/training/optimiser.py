"""The optimiser's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.errors import TrainingError
from crossdistill.methods.base import Method
from crossdistill.training.settings import Settings
from crossdistill.training.shards import Shards


def learning_rate(step: int, total: int, settings: Settings) -> float:
    """Give the learning rate of a step, as a function of nothing else.

    With w = round(warmup * total) steps of warm-up the rate is lr * (step + 1) / w before step w; from there on it is
    lr, or with the cosine lr * (1 + cos(pi * (step - w) / (total - w))) / 2 (Loshchilov and Hutter 2017, equation 5),
    which is lr at step w and would be 0 at step `total`. With "steps" lr is, in the warm-up too, multiplied by
    gamma for each milestone m that has come, at step round(m * total).

    Args:
        step: Steps done before this one, 0..total-1.
        total: Steps of the stage.
        settings: For lr, schedule, milestones, gamma and warmup.
    """
    warm = round(settings.warmup * total)
    passed = sum(step >= round(share * total) for share in settings.milestones)
    lr = settings.lr * settings.gamma**passed
    if step < warm:
        return lr * (step + 1) / warm
    if settings.schedule != "cosine":
        return lr
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / (total - warm)))


def parameter_groups(method: Method, settings: Settings) -> list[dict[str, Any]]:
    """Split the method's parameter groups into those with and without weight decay.

    Biases, norms' scales, temperatures and whatever else has fewer than two axes is not decayed: decay would pull a
    scale to zero without regularising anything. A group that sets its own "weight_decay" keeps it for all it holds.

    Returns:
        Groups for a torch optimiser; "lr_scale" stays in them, the loop multiplies by it.

    Raises:
        TrainingError: If there is nothing to train, or a frozen teacher's parameter is among it.
    """
    frozen = {id(p): name for name, teacher in method.teachers().items() for p in teacher.parameters()}
    groups: list[dict[str, Any]] = []
    for given in method.parameter_groups():
        parameters: list[nn.Parameter] = [p for p in given["params"] if p.requires_grad]
        if taught := {frozen[id(p)] for p in parameters if id(p) in frozen}:
            raise TrainingError(
                f"parameter_groups of {type(method).__name__} hold the frozen teacher of {', '.join(sorted(taught))}; "
                "leave it out, or drop it from teachers()"
            )
        rest = {key: value for key, value in given.items() if key != "params"}
        rest.setdefault("lr_scale", 1.0)
        if "weight_decay" in rest:
            parts = [(parameters, rest["weight_decay"])]
        else:
            parts = [
                ([p for p in parameters if p.ndim >= 2], settings.weight_decay),
                ([p for p in parameters if p.ndim < 2], 0.0),
            ]
        groups += [{**rest, "params": some, "weight_decay": decay} for some, decay in parts if some]
    if not groups:
        raise TrainingError(
            f"{type(method).__name__} has no parameter that asks for a gradient; there is nothing to train"
        )
    return groups


def build(method: Method, settings: Settings, shards: Shards | None = None) -> torch.optim.Optimizer:
    """Make the optimiser of a method that is on its device already, over this process's parts where it is sharded.

    The fused kernels are three to five times as fast as the plain ones on CPUs and at least as fast on GPUs; with
    "16-mixed" they would have to unscale the gradients themselves, too late for clipping and gradient surgery.
    """
    groups = parameter_groups(method, settings)
    if shards is not None:
        groups = shards.replaced(groups)
    fused = settings.precision != "16-mixed" and _may_fuse(p for group in groups for p in group["params"])
    if settings.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)
        if settings.momentum:
            _start_momentum(sgd)
        return sgd
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, fused=fused)


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay out in memory what an optimiser was given of each weight as the weight is.

    Fused kernels go through both in the order of their bytes, and on CPUs without a look at the strides. What was saved
    has others where weights were sharded, or their channels not yet last.
    """
    for parameter, entry in optimizer.state.items():
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entry[name] = _aligned(value, parameter)


def align_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Do the same for gradients: autograd's own have their weights' layout, what a method puts there may not."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = _aligned(parameter.grad, parameter)


def _aligned(value: Tensor, like: Tensor) -> Tensor:
    return value if value.stride() == like.stride() else torch.empty_like(like, dtype=value.dtype).copy_(value)


def _start_momentum(sgd: torch.optim.SGD) -> None:
    """Give every parameter its momentum, zero, which makes the first step what it is without: 0 * momentum + gradient.

    The fused kernel takes parameters with and without momentum for a bug, and a method that alternates has both: its
    parameters get their first gradients in different steps.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _may_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
