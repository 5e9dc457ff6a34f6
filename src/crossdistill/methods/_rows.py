"""Rows of a batch that have a modality or a label, and losses over those alone.

Shapes: b rows, c classes (or labels).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import DataError
from crossdistill.methods.base import Batch
from crossdistill.networks.base import Outputs, least_rows
from crossdistill.objectives.base import full_precision

Task = Literal["multiclass", "multilabel"]
"""Labels (b,) of one class a row, or (b, c) of 0 and 1 (c = 1: binary, (b,) will do); -1 is unknown in both."""


def present_rows(batch: Batch, modality: str) -> Tensor | None:
    """Say which rows have a modality, bool (b,); None stands for all, so that whole batches cost no look at a mask.

    Raises:
        DataError: If the batch has neither the modality nor anything to count its rows by.
    """
    if modality not in batch:
        some = next((value for value in batch.values() if isinstance(value, Tensor)), None)
        if some is None:
            raise DataError(f"the batch lacks the modality '{modality}'; it has: {', '.join(sorted(batch))}")
        return torch.zeros(len(some), dtype=torch.bool, device=some.device)
    return shared_rows(batch, modality)


def shared_rows(batch: Batch, *modalities: str) -> Tensor | None:
    """Say which rows lack none of some modalities, bool (b,), by what `present` says alone; None stands for all."""
    masks: Mapping[str, Tensor] = batch.get("present", {})
    found = [masks[modality] for modality in modalities if modality in masks]
    mask = torch.stack(found).all(dim=0) if found else None
    return None if mask is None or bool(mask.all()) else mask


def chosen(batch: Batch, mask: Tensor | None) -> Batch:
    """Give the rows of a mask (b,) of everything that a paired batch holds, stored outputs included."""
    return batch if mask is None else {name: _chosen(value, mask) for name, value in batch.items()}


def complete(batch: Batch, *modalities: str, least: int = 1) -> Batch | None:
    """Give the rows of a paired batch that lack none of some modalities; None where those left are below `least`.

    A batch of which no row is left out is given as it is, however small.
    """
    mask = shared_rows(batch, *modalities)
    return None if mask is not None and int(mask.sum()) < least else chosen(batch, mask)


def _chosen(value: Any, mask: Tensor) -> Any:
    if isinstance(value, Outputs):
        return value.each(lambda tensor: tensor[mask])
    if isinstance(value, Mapping):
        return chosen(cast("Batch", value), mask)
    return value[mask] if isinstance(value, Tensor) else value


def present_mask(batch: Batch, modality: str) -> Tensor:
    """Say which rows have a modality, bool (b,), for whole batches too."""
    mask = present_rows(batch, modality)
    if mask is not None:
        return mask
    x: Tensor = batch[modality]
    return torch.ones(len(x), dtype=torch.bool, device=x.device)


def enough(mask: Tensor | None, network: nn.Module) -> bool:
    """Say whether a mask of `present_rows` leaves the rows that a network needs; fewer count as absent."""
    return mask is None or int(mask.sum()) >= least_rows(network)


def take(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Give the rows (b, ...) of a mask of `present_rows`, (k, ...)."""
    return rows if mask is None else rows[mask]


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Give the rows that two masks share."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def within(mask: Tensor | None, taken: Tensor | None) -> Tensor | None:
    """See a mask from inside another one that contains it: which of the rows that `taken` took are the mask's."""
    return mask if mask is None or taken is None else mask[taken]


# Means over rows that count ------------------------------------------------------------------------------------------


def mean_over(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of values (b,) over the rows of a mask (b,); 0, with the graph kept, where there is none."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)


@full_precision
def label_rows(logits: Tensor, label: Tensor, task: Task = "multiclass") -> Tensor:
    """Give each row's cross-entropy (b,) of logits (b, c), the sum of the binary ones where labels are many, nats.

    What is unknown (-1) adds 0, with the graph kept.

    Raises:
        DataError: If labels do not fit the logits or, on the CPU where looking costs no wait, a class is out of range.
    """
    if task == "multiclass":
        if label.shape != logits.shape[:1] or label.is_floating_point():
            raise DataError(
                f"labels must be integers ({len(logits)},), one a row; received {tuple(label.shape)} {label.dtype}"
            )
        if label.device.type == "cpu" and bool(((label < -1) | (label >= logits.shape[1])).any()):
            raise DataError(
                f"labels must be classes 0 to {logits.shape[1] - 1}, or -1 where none is known; received "
                f"{int(label.min())} to {int(label.max())}"
            )
        return F.cross_entropy(logits, label.long(), ignore_index=-1, reduction="none")
    target = label.reshape(len(label), -1).to(logits.dtype)
    if target.shape != logits.shape:
        raise DataError(
            f"multilabel: labels must be {tuple(logits.shape)} as the logits; received {tuple(label.shape)}"
        )
    each = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none")
    return torch.where(target >= 0, each, 0.0).sum(dim=1)


def known_rows(label: Tensor) -> Tensor:
    """Say which rows have a label that is known, (b,) bool, of labels (b,) or (b, c)."""
    return label >= 0 if label.ndim == 1 else (label >= 0).any(dim=1)


def label_loss(logits: Tensor, label: Tensor, task: Task = "multiclass") -> Tensor:
    """Mean cross-entropy over all labels that are known; 0 with the graph kept where none is."""
    return label_rows(logits, label, task).sum() / (label >= 0).sum().clamp(min=1)


def label_hits(logits: Tensor, label: Tensor, task: Task = "multiclass") -> Tensor:
    """Share of the known labels that are right; 0 where none is known."""
    if task == "multiclass":
        right = logits.argmax(dim=1) == label
    else:
        right = (logits > 0) == (label.reshape(len(label), -1) > 0)
        label = label.reshape(len(label), -1)
    return (right & (label >= 0)).sum() / (label >= 0).sum().clamp(min=1)
