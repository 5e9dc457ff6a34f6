"""Teachers' outputs as rows of arrays and back: which arrays, in which numbers, the largest logits alone if wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from crossdistill.errors import ConfigError, TrainingError
from crossdistill.networks.base import Outputs
from crossdistill.rowfiles import Made, Rows

Dtype = Literal["float16", "bfloat16", "float32", "float64"]

MAP = "map@"
"""What the names of arrays of feature maps begin with; their dotted path follows."""

VALUES, CLASSES, REST = "logits.values", "logits.classes", "logits.rest"


@dataclass(frozen=True)
class Form:
    """How outputs are kept.

    Attributes:
        dtype: Of features, embeddings, maps and logits.
        top_k: How many of a row's logits are kept; None keeps all.
    """

    dtype: Dtype
    top_k: int | None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise ConfigError(f"dtype is one of {', '.join(get_args(Dtype))}; received {self.dtype!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is at least 1, or None for all logits; received {self.top_k}")

    @property
    def precision(self) -> torch.dtype:
        """The dtype in torch's words."""
        return getattr(torch, self.dtype)

    def split(self, outputs: Outputs, classes: Tensor | None = None) -> dict[str, Tensor]:
        """Take outputs apart into the tensors (b, ...) that are kept, exact yet.

        Of logits (b, c) the k largest stay, with their classes, and the log-sum-exp of all others.

        Args:
            outputs: Of a teacher.
            classes: Which logits (b, k) to take instead of the largest.
        """
        parts = {name: value for name in ("features", "embedding") if (value := getattr(outputs, name)) is not None}
        parts |= {f"{MAP}{path}": value for path, value in (outputs.maps or {}).items()}
        logits = outputs.logits
        if logits is None:
            return parts
        if self.top_k is None or self.top_k >= logits.shape[1]:
            return {**parts, "logits": logits}
        classes = logits.topk(self.top_k, dim=1).indices if classes is None else classes
        rest = logits.scatter(1, classes, -math.inf).logsumexp(1)
        return {**parts, VALUES: logits.gather(1, classes), CLASSES: classes, REST: rest}

    def made(self, outputs: Outputs, where: str) -> Made:
        """Give the arrays of a block, and of each the largest number and the largest error of rounding.

        Raises:
            TrainingError: If an output is NaN, or too large for the dtype.
        """
        arrays: dict[str, np.ndarray] = {}
        facts: dict[str, list[float]] = {}
        for name, value in self.split(outputs).items():
            if name == CLASSES:
                arrays[name], facts[name] = value.to(torch.int32).numpy(), [float(_logits(outputs).shape[1]), 0.0]
                continue
            exact = value if name == REST else value.to(torch.promote_types(value.dtype, self.precision))
            kept = exact.float() if name == REST else exact.to(self.precision)
            off = error(exact, kept)
            if math.isnan(off):
                raise TrainingError(f"{name} of {where} hold NaN: they cannot be stored, nor learnt from")
            if math.isinf(off):
                raise TrainingError(f"{name} of {where} are too large for {self.dtype}; store them as float32")
            facts[name] = [float(torch.where(exact.isinf(), 0, exact).abs().amax()) if exact.numel() else 0.0, off]
            arrays[name] = _numpy(kept)
        return arrays, facts


def error(exact: Tensor, kept: Tensor) -> float:
    """Give the largest |exact - kept|; equal infinities do not differ, NaN is NaN."""
    if exact.dtype == kept.dtype:  # nothing was rounded
        return math.nan if bool(exact.isnan().any()) else 0.0
    return float(distances(exact, kept).amax()) if exact.numel() else 0.0


def distances(exact: Tensor, kept: Tensor) -> Tensor:
    """Give |exact - kept| of two tensors, 0 where both are the same infinity."""
    return torch.where(exact == kept, 0, (exact.double() - kept.double()).abs())


class StoredOutputs:
    """A teacher's outputs for all n samples of a modality.

    Args:
        arrays: "features" (n, d) and, where the teacher gives them, "embedding" (n, e), "logits" (n, c) and feature
            maps "map@PATH" (n, channels, h, w), in the dtype of the store (bfloat16 as int16 of the same bits); of
            logits cut to the k largest "logits.values" (n, k), "logits.classes" (n, k) int32 and the log-sum-exp of
            the others, "logits.rest" (n,) float32. Read-only where they lie on the disk.
        form: How they are kept.
        facts: Of each array the largest number and the largest error of rounding; of the classes how many there are.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], form: Form, facts: Mapping[str, tuple[float, float]]) -> None:
        self.arrays, self.form, self.facts = arrays, form, facts
        self._rows = {name: Rows(array) for name, array in arrays.items()}

    def __len__(self) -> int:
        return len(self.arrays["features"])

    def parts(self, index: Tensor) -> dict[str, Tensor]:
        """Give what is kept of the samples at `index` (b,) int64, by array; 16-bit numbers as float32."""
        return {name: _tensor(rows.take(index.numpy()), name, self.form) for name, rows in self._rows.items()}

    def rows(self, index: Tensor) -> Outputs:
        """Give the outputs of the samples at `index` (b,) int64, on the CPU, float32 (or float64 if kept so).

        Of logits cut to the k largest the others share their mass evenly: at temperature 1 the probabilities of the k
        largest and the mass of the rest are the teacher's own.
        """
        parts = self.parts(index)
        logits = parts.get("logits")
        if VALUES in parts:
            count = int(self.facts[CLASSES][0])
            each = parts[REST] - math.log(count - parts[VALUES].shape[1])
            logits = each.to(parts[VALUES].dtype)[:, None].repeat(1, count).scatter(1, parts[CLASSES], parts[VALUES])
        maps = {name.removeprefix(MAP): value for name, value in parts.items() if name.startswith(MAP)}
        return Outputs(parts["features"], parts.get("embedding"), logits, maps or None)


def _logits(outputs: Outputs) -> Tensor:
    assert outputs.logits is not None
    return outputs.logits


def _numpy(value: Tensor) -> np.ndarray[Any, Any]:
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def _tensor(rows: np.ndarray[Any, Any], name: str, form: Form) -> Tensor:
    value = torch.from_numpy(rows)
    if name == CLASSES:
        return value.long()
    if name != REST and form.dtype == "bfloat16":
        value = value.view(torch.bfloat16)
    return value.float() if value.element_size() == 2 else value
