"""Augmentations of sequences (b, c, t) and of log-mel spectrograms (b, 1, mels, frames)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from crossdistill.data.augment_any import Distribution, span, spread, within
from crossdistill.data.draws import Draws
from crossdistill.data.modality import Modality


def _axes(modality: Modality) -> tuple[int, int]:
    """Give the places of the channels called x and y: the first two when nothing is called so."""
    names = modality.channels
    return (names.index("x"), names.index("y")) if {"x", "y"} <= set(names) else (0, 1)


def _bending(modality: Modality) -> tuple[int, ...]:
    """Give the places of the channels that are not on and off, as a pen is."""
    names = modality.channels or ("",) * modality.shape[0]
    return tuple(place for place, name in enumerate(names) if name != "pen")


def _units(modality: Modality) -> tuple[float, float]:
    """Give the standard deviations by which x and y were divided."""
    std = modality.std if len(modality.std) > 1 else modality.std * modality.shape[0]
    x, y = _axes(modality)
    return std[x], std[y]


@dataclass(frozen=True, kw_only=True)
class PenAffine:
    """Rotate, scale, shift and shear the path of a pen in the plane of its channels x and y.

    Geometry needs x and y in one unit, so their standardisation is undone for the movement and done again after it; the
    centre is the training mean.

    Attributes:
        rotation: Degrees.
        scale: Of the logarithm of the size: 0.1 is about 10 % larger or smaller.
        shift: Share of the usual extent, which is taken as four standard deviations of the path.
        shear: Degrees.
        stretch: Of the logarithm of the ratio of width to height; the area stays.
        distribution: "uniform": the five are the largest; "normal": they are standard deviations.
        axes: Places of x and y among the channels; taken from the modality.
        units: Standard deviations of x and y before standardisation; taken from the modality.
    """

    name: ClassVar[str] = "affine"
    kinds: ClassVar[tuple[str, ...]] = ("sequence",)
    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.1
    shear: float = 0.0
    stretch: float = 0.0
    distribution: Distribution = "uniform"
    axes: tuple[int, int] = field(default=(0, 1), metadata={"of": _axes})
    units: tuple[float, float] = field(default=(1.0, 1.0), metadata={"of": _units})

    def __post_init__(self) -> None:
        within(self.name, 0, 180, rotation=self.rotation)
        within(self.name, 0, 2, scale=self.scale, stretch=self.stretch)
        within(self.name, 0, 1, shift=self.shift)
        within(self.name, 0, 60, shear=self.shear)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, t) with its path moved."""
        return move_path(
            x,
            rotation=spread(draws, "rotation", self.rotation, self.distribution),
            size=torch.exp(spread(draws, "scale", self.scale, self.distribution)),
            right=spread(draws, "right", self.shift, self.distribution),
            down=spread(draws, "down", self.shift, self.distribution),
            shear=spread(draws, "shear", self.shear, self.distribution),
            ratio=torch.exp(spread(draws, "stretch", self.stretch, self.distribution)),
            axes=self.axes,
            units=self.units,
        )


def move_path(
    x: Tensor,
    *,
    rotation: Tensor,
    size: Tensor,
    right: Tensor,
    down: Tensor,
    shear: Tensor,
    ratio: Tensor,
    axes: tuple[int, int],
    units: tuple[float, float],
) -> Tensor:
    """Shear, stretch, scale, rotate and shift paths (b, c, t); arguments as in `move_image`, (b,) float64 each."""
    angle, slope = torch.deg2rad(rotation), torch.tan(torch.deg2rad(shear))
    cos, sin = torch.cos(angle) * size, torch.sin(angle) * size
    unit = units[1] / units[0]  # of the standardised y and x
    p = ratio.sqrt()
    extent = 4 * math.sqrt((units[0] ** 2 + units[1] ** 2) / 2)
    # rotation @ size @ stretch @ shear in common units, written for standardised coordinates
    matrix = (p * cos, (p * slope * cos - sin / p) * unit, p * sin / unit, p * slope * sin + cos / p)
    a, b, c, d = (entry.float()[:, None] for entry in matrix)
    old_x, old_y = x[:, axes[0]], x[:, axes[1]]
    moved = x.clone()
    moved[:, axes[0]] = a * old_x + b * old_y + (right * (extent / units[0])).float()[:, None]
    moved[:, axes[1]] = c * old_x + d * old_y + (down * (extent / units[1])).float()[:, None]
    return moved


@dataclass(frozen=True, kw_only=True)
class Wobble:
    """Bend a path smoothly: Gaussian noise at a few knots, linear between them, in every channel but the pen's.

    Attributes:
        std: Standard deviation at a knot, in units of the standardised data.
        knots: How many, from one end to the other.
        channels: Places of the channels that bend; taken from the modality.
    """

    name: ClassVar[str] = "wobble"
    kinds: ClassVar[tuple[str, ...]] = ("sequence",)
    std: float = 0.1
    knots: int = 8
    channels: tuple[int, ...] = field(default=(0,), metadata={"of": _bending})

    def __post_init__(self) -> None:
        within(self.name, 0, math.inf, std=self.std)
        within(self.name, 2, 64, knots=self.knots)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, t) bent."""
        knots = draws.normal("wobble", len(self.channels) * self.knots).view(len(x), len(self.channels), self.knots)
        at = torch.linspace(0, self.knots - 1, x.shape[2], device=x.device).expand(len(x), -1)
        bent = x.clone()
        for k, wave in zip(self.channels, (at_times(knots.to(x.dtype), at) * self.std).unbind(1), strict=True):
            bent[:, k] += wave  # one at a time: a list of places would be sent to the device, which waits for it
        return bent


@dataclass(frozen=True, kw_only=True)
class TimeWarp:
    """Run faster in some parts and slower in others, ends kept; by linear interpolation.

    Attributes:
        strength: Standard deviation of the logarithm of the local speed.
        knots: How many independent speeds there are along the sequence.
    """

    name: ClassVar[str] = "time_warp"
    kinds: ClassVar[tuple[str, ...]] = ("sequence",)
    strength: float = 0.2
    knots: int = 4

    def __post_init__(self) -> None:
        within(self.name, 0, 2, strength=self.strength)
        within(self.name, 2, 64, knots=self.knots)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, t) warped in time."""
        length = x.shape[2]
        if length < 2:
            return x
        speed = torch.exp(draws.normal("speed", self.knots).double() * self.strength)
        at = torch.linspace(0, self.knots - 1, length - 1, dtype=torch.float64, device=x.device)
        low = at.floor().long().clamp(max=self.knots - 2)
        steps = torch.lerp(speed[:, low], speed[:, low + 1], at - low)
        passed = torch.cat([steps.new_zeros(len(x), 1), steps.cumsum(dim=1)], dim=1)
        return at_times(x, passed * ((length - 1) / passed[:, -1:]))


def at_times(x: Tensor, times: Tensor) -> Tensor:
    """Give x (b, c, t) at fractional places `times` (b, t') in 0..t-1, by linear interpolation: (b, c, t')."""
    last = x.shape[2] - 1
    low = times.floor().long().clamp(0, last)
    weight = (times - low).to(x.dtype)[:, None]
    before = x.gather(2, low[:, None].expand(-1, x.shape[1], -1))
    after = x.gather(2, (low + 1).clamp(max=last)[:, None].expand(-1, x.shape[1], -1))
    return before + (after - before) * weight


@dataclass(frozen=True, kw_only=True)
class TimeMask:
    """Set a random stretch of time to the training mean (zero after standardisation).

    Attributes:
        share: Largest share of the length that is masked; the smallest is 0.
    """

    name: ClassVar[str] = "time_mask"
    kinds: ClassVar[tuple[str, ...]] = ("sequence",)
    share: float = 0.2

    def __post_init__(self) -> None:
        within(self.name, 0, 1, share=self.share)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, t) with a stretch of zeros."""
        length = x.shape[2]
        return x.masked_fill(
            span(draws, "time", self.share, length, torch.arange(length, device=x.device))[:, None], 0.0
        )


@dataclass(frozen=True, kw_only=True)
class Amplitude:
    """Scale a whole sequence, after standardisation.

    Attributes:
        std: Standard deviation of the logarithm of the factor: 0.1 is about 10 %.
    """

    name: ClassVar[str] = "scale"
    kinds: ClassVar[tuple[str, ...]] = ("sequence", "vector")
    std: float = 0.1

    def __post_init__(self) -> None:
        within(self.name, 0, 2, std=self.std)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, ...) times one factor a sample."""
        factor = torch.exp(spread(draws, "scale", self.std, "normal")).float()
        return x * factor.reshape(-1, *(1,) * (x.ndim - 1))


@dataclass(frozen=True, kw_only=True)
class SpecMask:
    """Set random bands and stretches of a spectrogram to the training mean (Park et al. 2019, SpecAugment).

    Attributes:
        bands: Largest share of the mel bands in one mask.
        frames: Largest share of the frames in one mask.
        count: How many masks of each.
    """

    name: ClassVar[str] = "spec_mask"
    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    bands: float = 0.2
    frames: float = 0.2
    count: int = 1

    def __post_init__(self) -> None:
        within(self.name, 0, 1, bands=self.bands, frames=self.frames)
        within(self.name, 1, 16, count=self.count)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, 1, mels, frames) with masked bands and frames."""
        mels, frames = x.shape[-2:]
        for k in range(self.count):
            hidden = span(draws, f"bands {k}", self.bands, mels, torch.arange(mels, device=x.device))[:, :, None]
            hidden = (
                hidden | span(draws, f"frames {k}", self.frames, frames, torch.arange(frames, device=x.device))[:, None]
            )
            x = x.masked_fill(hidden[:, None], 0.0)
        return x


@dataclass(frozen=True, kw_only=True)
class TimeShift:
    """Start earlier or later by whole steps; the edge goes on.

    Attributes:
        share: Largest shift as a share of the length.
    """

    name: ClassVar[str] = "time_shift"
    kinds: ClassVar[tuple[str, ...]] = ("audio", "sequence")
    share: float = 0.1

    def __post_init__(self) -> None:
        within(self.name, 0, 1, share=self.share)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, ..., t) shifted along its last axis."""
        length = x.shape[-1]
        steps = torch.round(spread(draws, "shift", self.share * length, "uniform")).long()
        places = (torch.arange(length, device=x.device) - steps[:, None]).clamp(0, length - 1)
        return x.gather(-1, places.reshape(len(x), *(1,) * (x.ndim - 2), length).expand(x.shape))
