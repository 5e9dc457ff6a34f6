"""What a measurement is: its kind and shape, how it is stored, standardised, and read from a new file."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from crossdistill.data.decode import decode_file
from crossdistill.errors import DataError, shown, steers, suggest
from crossdistill.files import digest

Kind = Literal["vector", "sequence", "image", "audio"]
Stored = Literal["uint8", "int16", "float16", "float32"]

KINDS: tuple[str, ...] = get_args(Kind)
STORED: tuple[str, ...] = get_args(Stored)
TAKEN = frozenset({"index", "label", "group", "present", "stored"})
"""What batches hold beside modalities under these names, so that no modality can be called so."""

_DIMENSIONS = {"vector": 1, "sequence": 2, "image": 3, "audio": 3}
_SHAPES = {"vector": "(d,)", "sequence": "(c, t)", "image": "(c, h, w)", "audio": "(1, mels, frames)"}


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality of a data set: enough to prepare stored samples and to read new files for a deployed student.

    Attributes:
        name: The word for it in experiment files and batches.
        kind: "vector", "sequence", "image" or "audio".
        shape: Of one sample: (d,), (c, t), (c, h, w), or (1, mels, frames) of a log-mel spectrogram.
        mean: Subtracted after scaling: one number a feature (vectors) or channel (others), or one for all.
        std: Divided by, likewise; all positive.
        scale: Stored numbers times this are the measured ones, for example 1/255 for uint8 pictures.
        dtype: How samples are stored: "uint8", "int16", "float16" or "float32".
        decode: How a file becomes a sample: {"rate": 16000, "seconds": 1.0, "mels": 64} for audio, empty for others.
        channels: Names of the channels where they have some, for example ("x", "y", "pen").

    Raises:
        DataError: If the values do not fit each other.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    dtype: Stored = "float32"
    decode: Mapping[str, Any] = field(default_factory=dict[str, Any])
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"modality '{self.name}'"
        check_name(self.name)
        if self.kind not in KINDS:
            raise DataError(f"{where}: no kind is called '{self.kind}'{suggest(self.kind, KINDS)}")
        if self.dtype not in STORED:
            raise DataError(f"{where}: samples cannot be stored as {self.dtype}{suggest(self.dtype, STORED)}")
        if len(self.shape) != _DIMENSIONS[self.kind] or min(self.shape) < 1:
            raise DataError(f"{where}: a sample of kind {self.kind} is {_SHAPES[self.kind]}; received {self.shape}")
        for word, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.shape[0]) or not all(map(math.isfinite, values)):
                raise DataError(f"{where}: {word} needs 1 or {self.shape[0]} finite numbers; received {values}")
        if min(self.std) <= 0:
            raise DataError(f"{where}: std must be positive; received {min(self.std)}. Constant channels have std 1")
        if self.channels and len(self.channels) != self.shape[0]:
            raise DataError(f"{where}: {len(self.channels)} names for {self.shape[0]} channels")

    @property
    def background(self) -> Tensor:
        """What the stored value zero becomes, by channel: (c,) or (1,) float32."""
        return -torch.tensor(self.mean) / torch.tensor(self.std)

    def prepare(self, raw: Tensor) -> Tensor:
        """Scale and standardise stored samples.

        Args:
            raw: (b, *shape), of the stored dtype or another; it is not changed.

        Returns:
            (b, *shape) float32: (raw * scale - mean) / std.

        Raises:
            DataError: If the shape is another.
        """
        if tuple(raw.shape[1:]) != self.shape:
            raise DataError(
                f"modality '{self.name}' has samples of shape {self.shape}; received {tuple(raw.shape[1:])}"
            )
        factor, offset = _standard(self.scale, tuple(self.mean), tuple(self.std), len(self.shape), raw.device)
        return raw.to(torch.float32, copy=True).mul_(factor).sub_(offset)

    def read(self, path: str | Path) -> np.ndarray:
        """Decode one new file exactly as the data set's files were.

        Args:
            path: PNG, JPEG or another picture that Pillow reads; WAV, FLAC or another sound that soundfile reads; NPY.

        Returns:
            One sample of the stored dtype and shape, ready for `prepare` as `torch.from_numpy(sample)[None]`.

        Raises:
            DataError: If the file is missing, unreadable or does not fit; the message names it.
        """
        return decode_file(Path(path), kind=self.kind, shape=self.shape, dtype=self.dtype, options=self.decode)

    def fitted(self, array: np.ndarray, rows: np.ndarray | None = None) -> Modality:
        """Give this modality with mean and std measured on samples, which must be of the training split alone.

        Args:
            array: Stored samples (n, *shape).
            rows: Which of them to use, int64 (m,); all when None.

        Returns:
            A copy with mean and std by feature (vectors) or channel (others); a constant one has std 1.

        Raises:
            DataError: If the numbers differ by less than 32 bits can tell.
        """
        rows = np.arange(len(array)) if rows is None else rows
        axes = (0, *range(2, array.ndim))
        count, total, square = 0, np.zeros(self.shape[0]), np.zeros(self.shape[0])
        pivot = array[rows[:1]].astype(np.float64).mean(axis=axes) * self.scale  # keeps the squares small
        for start in range(0, len(rows), 1024):
            part = array[rows[start : start + 1024]].astype(np.float64) * self.scale
            part -= pivot.reshape(-1, *(1,) * (array.ndim - 2))
            count += part.size // self.shape[0]
            total += part.sum(axis=axes)
            square += np.square(part).sum(axis=axes)
        mean = total / count
        std = np.sqrt(np.maximum(square / count - mean**2, 0))
        std[std <= 1e-6 * np.maximum(np.abs(mean + pivot), np.finfo(np.float32).tiny)] = 1.0  # rounding of a constant
        lost = std < np.finfo(np.float32).tiny
        if lost.any() and (lost | (std == 1.0)).all():
            raise DataError(
                f"modality '{self.name}': numbers that differ by {std.min():.1e} are lost in 32 bits; scale them up"
            )
        std[lost] = 1.0  # beside others that vary they are constant
        return replace(self, mean=tuple((mean + pivot).tolist()), std=tuple(std.tolist()))

    @functools.cached_property
    def identity(self) -> str:
        """The hash of all that `to_json` says."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Give a plain dictionary that `from_json` reads back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {name: list(values[name]) for name in ("shape", "mean", "std", "channels")}
        return {**values, **lists, "decode": dict(self.decode)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Modality:
        """Build a modality from what `to_json` gave.

        Raises:
            DataError: If a key is unknown or missing.
        """
        known = {f.name for f in fields(cls)}
        for key in value:
            if key not in known:
                raise DataError(f"a modality has no '{key}'{suggest(key, known)}")
        for key in ("name", "kind", "shape"):
            if key not in value:
                raise DataError(f"a modality needs '{key}'; it has {', '.join(value)}")
        values: dict[str, Any] = dict(value)
        for key in ("shape", "mean", "std", "channels"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)


@functools.lru_cache(maxsize=64)
def _standard(
    scale: float, mean: tuple[float, ...], std: tuple[float, ...], dims: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Give scale / std and mean / std, (features or channels, 1, ...) float32, kept for the next batch."""
    shape = (-1, *(1,) * (dims - 1))
    spread = torch.tensor(std, dtype=torch.float64)
    factor, offset = scale / spread, torch.tensor(mean, dtype=torch.float64) / spread
    return factor.float().reshape(shape).to(device), offset.float().reshape(shape).to(device)


def blanked(x: Tensor, here: Tensor | None) -> Tensor:
    """Give samples (b, ...) with zeros for those that are absent, where `here` (b,) bool is False; None leaves all."""
    return x if here is None else x.masked_fill(~here.view(-1, *(1,) * (x.ndim - 1)), 0)


def check_name(name: str) -> None:
    """Refuse names of modalities that mean something else in batches.

    Raises:
        DataError: Naming those that are taken.
    """
    if name in TAKEN or "#" in name:
        raise DataError(
            f"no modality can be called '{name}': batches use {', '.join(sorted(TAKEN))}, and # for further views; "
            "rename it"
        )
    if steers(name):
        raise DataError(f"a modality is called {shown(name)}, which holds control characters; rename it")
