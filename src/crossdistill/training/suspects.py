"""Naming the samples of a batch whose loss is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from crossdistill.data import PairedDataset
from crossdistill.methods.base import RESERVED, Batch, modality_of
from crossdistill.training.protocols import TrainingData

MOST = 16
"""Samples that an error lists."""


def suspects(batch: Batch, data: TrainingData) -> str:
    """Name the samples of a batch whose own values are not finite, by modality; where all are, the whole batch.

    Args:
        batch: Modality to (b, ...), with `index` (b,), or one by modality; without one, places in the batch are named.
        data: What the batch is of; rows of ours are those of the whole data set, else positions as `index` gives them.

    Returns:
        The end of a sentence, for example "'poor' is not finite in rows 3, 17".
    """
    index: Any = batch.get("index")
    found: Mapping[str, Any] = cast("Mapping[str, Any]", index) if isinstance(index, Mapping) else {"": index}
    rows = data.rows if isinstance(data, PairedDataset) else None
    broken: list[str] = []
    size = 0
    for name, x in batch.items():
        if name in RESERVED or not isinstance(x, Tensor) or not x.is_floating_point():
            continue
        size = max(size, len(x))
        wrong = (~torch.isfinite(x).reshape(len(x), -1).all(dim=1)).nonzero().flatten().cpu()
        if len(wrong):
            broken.append(
                f"'{name}' is not finite in {_listed(found.get(modality_of(name), found.get('')), wrong, rows)}"
            )
    if broken:
        return ", ".join(broken)
    return "the batch is " + ", ".join(
        f"{name}{' ' if name else ''}{_listed(one, torch.arange(len(one) if isinstance(one, Tensor) else size), rows)}"
        for name, one in found.items()
    )


def _listed(index: Any, places: Tensor, rows: np.ndarray | None) -> str:
    """Write the rows, or the positions, or the places of samples: "rows 3, 17 and 4 more"."""
    word, numbers = "places", places.numpy()
    if isinstance(index, Tensor):
        numbers = index.cpu()[places].numpy()
        word, numbers = ("samples", numbers) if rows is None else ("rows", rows[numbers])
    rest = f" and {len(numbers) - MOST} more" if len(numbers) > MOST else ""
    return f"{word} {', '.join(str(int(number)) for number in np.sort(numbers)[:MOST])}{rest}"
