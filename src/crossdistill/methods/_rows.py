"""Rows of a batch that have a modality or a label, and copies of networks that start anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import DataError
from crossdistill.methods.base import Batch
from crossdistill.networks.base import Outputs


def present_rows(batch: Batch, modality: str) -> Tensor | None:
    """Say which rows have a modality, bool (b,); None stands for all, so that whole batches cost no look at a mask.

    Raises:
        DataError: If the batch has neither the modality nor labels to count its rows by.
    """
    if modality not in batch:
        label: object = batch.get("label")
        if not isinstance(label, Tensor):
            raise DataError(f"the batch lacks the modality '{modality}'; it has: {', '.join(sorted(batch))}")
        return torch.zeros(len(label), dtype=torch.bool, device=label.device)
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


def _chosen(value: Any, mask: Tensor) -> Any:
    if isinstance(value, Outputs):
        return value.each(lambda tensor: tensor[mask])
    if isinstance(value, Mapping):
        return chosen(cast("Batch", value), mask)
    return value[mask] if isinstance(value, Tensor) else value


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


def known_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy over the rows (b, c) whose class is known (>= 0); 0 with the graph kept where none is."""
    total = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
    return total / (label >= 0).sum().clamp(min=1)


def known_accuracy(logits: Tensor, label: Tensor) -> Tensor:
    """Share of the rows of known class that are right; 0 where none is known."""
    return (logits.argmax(dim=1) == label).sum() / (label >= 0).sum().clamp(min=1)
