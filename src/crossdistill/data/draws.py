"""Random numbers that are a function of what they are for, not of when they are asked: counter-based draws.

The hash is splitmix64's finaliser (Steele, Lea, Flood 2014), applied to a key of (seed, epoch, stream), the sample's
position and the number of the draw. A sample therefore gets the same augmentation in any batch, on any rank, in any
worker process and after any resumption, without a generator's state having to be kept.

    (seed, epoch, stream) ──► key ─┐
    position of the sample ────────┴─► row hash ─┐
    number of the draw ──────────────────────────┴─► 64 bits ─► two uniforms or four normals
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio: splitmix64's increment
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(word: int) -> int:
    """Read 64 bits as torch's int64 does."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _mix(x: Tensor) -> Tensor:
    """Finalise int64 words in place; shifts are logical (torch's are arithmetic, so the copied sign is masked off)."""
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        x ^= (x >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            x *= _signed(factor)
    return x


def _key(seed: int, epoch: int, stream: str | int) -> int:
    """Hash what a whole batch shares into one signed 64-bit word, the same on any machine."""
    text = f"{seed}|{epoch}|{type(stream).__name__}|{stream}"
    return _signed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def _words(seed: int, epoch: int, index: Tensor, stream: str | int, count: int) -> Tensor:
    """Give (b, count) int64 of independent random bits; column j does not depend on `count`."""
    rows = _mix(index.to(torch.int64) * _signed(_GOLDEN) + _key(seed, epoch, stream))
    steps = torch.arange(1, count + 1, device=index.device) * _signed(_GOLDEN)
    return _mix(rows[:, None] + steps)


def uniform(seed: int, epoch: int, index: Tensor, stream: str | int, count: int) -> Tensor:
    """Draw (b, count) float32 uniform on [0, 1), multiples of 2^-24.

    Args:
        seed: Any integer.
        epoch: Any integer.
        index: Positions of the samples (b,) int64.
        stream: What the draws are for; different streams are independent.
        count: Draws a sample.

    Returns:
        Uniform numbers; row i depends on `index[i]` alone, column j not on `count`.
    """
    words = _words(seed, epoch, index, stream, (count + 1) // 2)
    return (words.view(torch.int32)[:, :count] & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    """Give the normal distribution's 65,536 mid-quantiles (float32), scaled to a variance of exactly one."""
    middle = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    table = torch.erfinv(2 * middle - 1)
    return (table / table.square().mean().sqrt()).to(device, torch.float32)


def normal(seed: int, epoch: int, index: Tensor, stream: str | int, count: int) -> Tensor:
    """Draw (b, count) float32 standard normal, as one of 65,536 equally likely quantiles (at most 4.3 in size).

    A table look-up is exact: unlike a sine or a logarithm, whose last bit may depend on an element's place in a vector
    register, it cannot make a sample depend on the batch it is in. Arguments are those of `uniform`.
    """
    words = _words(seed, epoch, index, stream, (count + 3) // 4)
    places = words.view(torch.int16)[:, :count].to(torch.int64).bitwise_and_(0xFFFF)
    return torch.take(_quantiles(index.device), places)


def permutation(seed: int, epoch: int, size: int, stream: str | int = "order") -> np.ndarray:
    """Give a random order of 0..size-1, int64 (size,), as a function of the arguments alone."""
    words = _words(seed, epoch, torch.arange(size), stream, 1)[:, 0].numpy()
    return np.argsort(words, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Draws:
    """The random numbers one transform may use for one batch of one modality.

    Attributes:
        seed: The loader's seed.
        epoch: The epoch.
        index: Positions of the samples (b,) int64.
        modality: Name of the modality; empty where two modalities share their draws.
        view: Number of the augmented view, 0 for the first.
        place: Where in a chain of transforms these draws are used.
    """

    seed: int
    epoch: int
    index: Tensor
    modality: str = ""
    view: int = 0
    place: str = ""

    def at(self, place: str, *, shared: bool = False) -> Draws:
        """Give the draws for one link of a chain; `shared` ones forget the modality, so that two modalities agree."""
        return replace(self, place=f"{self.place}/{place}", modality="" if shared else self.modality)

    def uniform(self, name: str, count: int = 1) -> Tensor:
        """Draw (b, count) float32 uniform on [0, 1) for the quantity called `name`."""
        return uniform(self.seed, self.epoch, self.index, self._stream(name), count)

    def normal(self, name: str, count: int = 1) -> Tensor:
        """Draw (b, count) float32 standard normal for the quantity called `name`."""
        return normal(self.seed, self.epoch, self.index, self._stream(name), count)

    def _stream(self, name: str) -> str:
        return f"{self.modality}#{self.view}{self.place}:{name}"
