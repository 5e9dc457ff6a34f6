"""What several objectives do with numbers: bring features to a common size, make layers, say why a loss overflows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from crossdistill.errors import ObjectiveError

M = TypeVar("M", bound=nn.Module)


def scaled(features: Tensor) -> Tensor:
    """Divide a whole array by its largest entry, for losses that do not depend on a common factor.

    Products and squares of what comes out neither overflow nor vanish; the divisor carries no gradient, for the loss
    does not depend on it. An array of zeros stays zeros and gets no gradient.
    """
    largest = features.detach().abs().amax() if features.numel() else features.new_zeros(())
    zero = largest < torch.finfo(features.dtype).tiny ** 0.5  # below this the true gradient would overflow
    return torch.where(zero, 0.0, features / torch.where(zero, 1.0, largest))


def positions(index: Tensor | None, rows: int, known: int, *, name: str, otherwise: str = "") -> Tensor:
    """Give the positions (b,) of a batch's pairs among those that an objective was prepared for.

    Args:
        index: What the batch says (b,) int64.
        rows: b.
        known: Pairs that the objective was prepared for.
        name: The objective's, for the message.
        otherwise: What one can do where there are no positions, for the message.

    Raises:
        ObjectiveError: If there are none, not one for each row, or some are not among the `known` ones.
    """
    if index is None:
        hint = f"; {otherwise}" if otherwise else ""
        raise ObjectiveError(f"{name} needs the positions of the samples (index), and the batch has none{hint}")
    if len(index) != rows:
        raise ObjectiveError(f"{name}: {rows} pairs need as many positions (index); received {len(index)}")
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= known:
        raise ObjectiveError(
            f"{name}: positions (index) must be those of the {known} pairs that it was prepared for; "
            f"received {low} to {high}"
        )
    return index


def placed(module: M, example: Tensor) -> M:
    """Bring what was made in `prepare` to an example's device, and to double precision where that is double."""
    return module.to(device=example.device, dtype=torch.float64 if example.dtype == torch.float64 else torch.float32)


def finite(loss: Tensor, name: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Give the loss back; if it is not finite although everything that went in is, say so.

    Looked at on the CPU alone: elsewhere looking costs a wait, and the loop looks anyway.

    Raises:
        ObjectiveError: If features are finite and the loss is not.
    """
    if loss.device.type != "cpu" or loss.isfinite():
        return loss
    largest = [max(float(one.detach().abs().max()) for one in side) for side in (student, teacher)]
    if all(size < float("inf") for size in largest):
        raise ObjectiveError(
            f"{name}: the loss overflows {loss.dtype}, or its own weights have run away; the largest entries are "
            f"{largest[0]:.3g} of the student and {largest[1]:.3g} of the teacher. Scale the features"
        )
    return loss
