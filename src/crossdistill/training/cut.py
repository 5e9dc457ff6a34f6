"""Runs of rows, and the part of a batch that one is: for micro-batches, and for the shares of several processes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from crossdistill.errors import DataError
from crossdistill.methods.base import Batch
from crossdistill.networks.base import Outputs


def size_of(batch: Batch) -> int:
    """Give the number of samples of a batch; of the longest modality where streams are unpaired."""
    index: Any = batch.get("index")
    if isinstance(index, Tensor):
        return index.shape[0]
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    return max(value.shape[0] for value in tensors)


def spans(rows: int, most: int) -> list[slice]:
    """Cut 0..rows-1 into the fewest runs of at most `most`, their lengths one apart at most."""
    count = max(1, math.ceil(rows / most))
    ends = [rows * k // count for k in range(count + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def cut(batch: Batch, span: slice) -> Batch:
    """Give some rows of everything that a batch of pairs holds.

    Raises:
        DataError: If its streams are of different lengths.
    """
    length = size_of(batch)

    def some(value: Any) -> Any:
        if isinstance(value, Outputs):
            return value.each(some)
        if isinstance(value, Mapping):
            return {name: some(one) for name, one in cast("Mapping[str, Any]", value).items()}
        if isinstance(value, Tensor):
            if len(value) != length:
                raise DataError(
                    f"a batch whose streams have {length} and {len(value)} rows cannot be cut into parts that belong "
                    "together; leave micro_batch out, and train in one process"
                )
            return value[span]
        return value

    return some(batch)
