"""Augmentations of any kind of modality, and the checks that all augmentations share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from crossdistill.data.draws import Draws
from crossdistill.errors import ConfigError

Distribution = Literal["uniform", "normal"]


def within(name: str, low: float, high: float, **values: float) -> None:
    """Refuse parameters outside a closed range.

    Raises:
        ConfigError: With the transform's name, the parameter, the range and what was received.
    """
    for word, value in values.items():
        if not low <= value <= high:
            rule = f"at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
            raise ConfigError(f"{name}: {word} must be {rule}; received {value:g}")


def spread(draws: Draws, name: str, size: float, distribution: Distribution) -> Tensor:
    """Draw (b,) float64 around zero: uniform in [-size, size], or normal with standard deviation `size`.

    Float64, so that what sines and exponentials of it round to in float32 is the same in every batch.
    """
    if distribution == "normal":
        return draws.normal(name)[:, 0].double() * size
    return (draws.uniform(name)[:, 0].double() * 2 - 1) * size


def span(draws: Draws, name: str, share: float, length: int, places: Tensor) -> Tensor:
    """Draw a random stretch of 0..length-1 a sample: up to `share` of it, anywhere.

    Returns:
        (b, length) bool, true within the stretch.
    """
    u = draws.uniform(name, 2)
    size = torch.floor(u[:, :1] * (share * length + 1)).clamp(max=math.floor(share * length))
    start = torch.floor(u[:, 1:] * (length - size + 1)).clamp(max=length)
    return (places >= start) & (places < start + size)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Add Gaussian noise, after standardisation: std 1 is as strong as the data themselves.

    Attributes:
        std: Standard deviation, in units of the standardised data.
    """

    name: ClassVar[str] = "noise"
    kinds: ClassVar[tuple[str, ...]] = ("vector", "sequence", "image", "audio")
    std: float = 0.1

    def __post_init__(self) -> None:
        within(self.name, 0, math.inf, std=self.std)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, ...) plus noise."""
        return x + draws.normal("noise", x[0].numel()).view(x.shape).mul_(self.std)


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Set single features to the training mean (zero after standardisation), without rescaling the others.

    Attributes:
        share: Probability that a feature is dropped.
    """

    name: ClassVar[str] = "dropout"
    kinds: ClassVar[tuple[str, ...]] = ("vector", "sequence", "image", "audio")
    share: float = 0.2

    def __post_init__(self) -> None:
        within(self.name, 0, 1, share=self.share)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, ...) with some features zero."""
        return x.masked_fill(draws.uniform("dropout", x[0].numel()).view(x.shape) < self.share, 0.0)
