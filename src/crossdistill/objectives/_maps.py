"""What the losses between feature maps share: checks, pooling to equal places, scales that do not overflow.

Shapes: b pairs, c channels, places h x w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError

Layers = tuple[tuple[str, str], ...]


def check_layers(name: str, layers: Sequence[Sequence[str]]) -> Layers:
    """Give the pairs of dotted paths as tuples.

    Raises:
        ConfigError: If they are no pairs.
    """
    for pair in layers:
        if isinstance(pair, str) or len(pair) != 2:
            raise ConfigError(
                f"{name}: layers are pairs of dotted paths, [student's, teacher's]; received {pair!r}. "
                "Leave layers out for the deepest maps of both"
            )
    return tuple((str(mine), str(theirs)) for mine, theirs in layers)


def check_layer_weights(name: str, weights: Sequence[float], losses: int | None) -> tuple[float, ...]:
    """Give the weights of the layers as a tuple; none of them means that nothing was said.

    Args:
        name: The objective's name, for the message.
        weights: One for each of its losses, or none.
        losses: How many those will be, if that is known yet.

    Raises:
        ConfigError: If they are no weights, or too few or too many.
    """
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ConfigError(f"{name}: layer_weights must be finite and at least 0; received {list(weights)}")
    if weights and losses is not None and len(weights) != losses:
        raise ConfigError(f"{name}: {losses} losses between layers need as many layer_weights; received {len(weights)}")
    return tuple(map(float, weights))


def check_maps(student: Tensor, teacher: Tensor, *, name: str, sides: tuple[str, str] = ("student", "teacher")) -> None:
    """Refuse tensors that are no feature maps of the same pairs; `sides` are their names for the message.

    Raises:
        ObjectiveError: With the rule and what was received.
    """
    for side, tensor in zip(sides, (student, teacher), strict=True):
        if tensor.ndim != 4 or not tensor.is_floating_point() or not tensor.numel():
            raise ObjectiveError(
                f"{name}: the {side}'s maps must be (b, channels, h, w) floating point, none of them 0; received "
                f"{tuple(tensor.shape)} {tensor.dtype}. Tap a submodule that gives maps"
            )
    if len(student) != len(teacher):
        raise ObjectiveError(
            f"{name}: rows must be pairs; received {len(student)} {sides[0]}, {len(teacher)} {sides[1]} rows"
        )


def check_lists(student: Sequence[Tensor], teacher: Sequence[Tensor], *, name: str) -> list[tuple[Tensor, Tensor]]:
    """Give the pairs of maps, one for each pair of layers.

    Raises:
        ObjectiveError: If there is none, or the numbers differ.
    """
    if isinstance(student, Tensor) or isinstance(teacher, Tensor) or not 0 < len(student) == len(teacher):
        sizes = [f"{tuple(x.shape)}" if isinstance(x, Tensor) else f"{len(x)} maps" for x in (student, teacher)]
        raise ObjectiveError(
            f"{name}: student and teacher must each be a list with one (b, channels, h, w) tensor a layer, equally "
            f"many; received {sizes[0]} and {sizes[1]}"
        )
    return list(zip(student, teacher, strict=True))


def match_places(student: Tensor, teacher: Tensor, *, name: str, least: int = 1) -> tuple[Tensor, Tensor]:
    """Pool maps adaptively, along each axis the larger to the smaller, so that both are (b, c, h, w) of equal h and w.

    Args:
        student: (b, c_s, h_s, w_s).
        teacher: (b, c_t, h_t, w_t).
        name: The objective's name, for the message.
        least: Places that must be left.

    Raises:
        ObjectiveError: If fewer are.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    if size[0] * size[1] < least:
        raise ObjectiveError(
            f"{name} compares places, and only {size[0]} x {size[1]} are left of {tuple(student.shape[2:])} in the "
            f"student and {tuple(teacher.shape[2:])} in the teacher. Name earlier layers"
        )
    return pooled(student, size), pooled(teacher, size)


def pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average maps (b, c, h, w) to `size`; maps of that size are left alone."""
    return maps if tuple(maps.shape[2:]) == size else F.adaptive_avg_pool2d(maps, size)


def level(maps: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divide by the largest entry along `dims`, so that squares neither overflow nor vanish; zeros stay zero.

    For what does not depend on that scale alone: as in `unit` the divisor carries no gradient.
    """
    largest = maps.detach().abs().amax(dim=dims, keepdim=True)
    zero = largest < torch.finfo(maps.dtype).tiny ** 0.5  # below this the true gradient would overflow
    return torch.where(zero, 0.0, maps / torch.where(zero, 1.0, largest))


def safe_norm(x: Tensor) -> Tensor:
    """Give the length of all of x, a scalar; a zero x gives 0 and gets no gradient, large ones do not overflow."""
    largest = x.detach().abs().amax()
    zero = largest < torch.finfo(x.dtype).tiny
    scale = torch.where(zero, 1.0, largest)
    square = (x / scale).square().sum()
    return scale * torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def name_parts(name: str, losses: Sequence[Tensor], weights: Sequence[float] = ()) -> dict[str, Tensor]:
    """Name the losses of all pairs of layers: by the objective alone where there is one, else numbered from 0.

    Args:
        name: The objective's name.
        losses: One for each pair of layers.
        weights: What each is multiplied by; none leaves them as they are.

    Raises:
        ObjectiveError: If there are weights, and not as many as losses.
    """
    if weights and len(weights) != len(losses):
        raise ObjectiveError(f"{name}: {len(losses)} losses between layers, but {len(weights)} layer_weights")
    weighted = [w * loss for w, loss in zip(weights, losses, strict=True)] if weights else losses
    return {name: weighted[0]} if len(weighted) == 1 else {f"{name}{k}": loss for k, loss in enumerate(weighted)}


def check_finite(
    loss: Tensor, student: Sequence[Tensor], teacher: Sequence[Tensor], *, name: str, advice: str
) -> Tensor:
    """Give the loss, unless it is not finite though all that it was computed from is.

    On a CPU alone: elsewhere looking costs a wait, and the loop looks anyway.

    Raises:
        ObjectiveError: With the largest entries and the advice.
    """
    if loss.device.type == "cpu" and not bool(loss.isfinite()):
        largest = [max(float(x.detach().abs().max()) for x in side) for side in (student, teacher)]
        if all(map(math.isfinite, largest)):
            raise ObjectiveError(
                f"{name} overflows {loss.dtype}; the largest entries are {largest[0]:.3g} of the student and "
                f"{largest[1]:.3g} of the teacher. {advice}"
            )
    return loss
