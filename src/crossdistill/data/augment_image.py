"""Augmentations of pictures (b, c, h, w), all after standardisation, which geometry does not mind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.data.augment_any import Distribution, span, spread, within
from crossdistill.data.draws import Draws


@dataclass(frozen=True, kw_only=True)
class ImageAffine:
    """Rotate, scale, shift and shear; outside the picture its border goes on.

    Attributes:
        rotation: Degrees.
        scale: Of the logarithm of the size: 0.1 is about 10 % larger or smaller.
        shift: Share of the picture's height and width.
        shear: Degrees.
        stretch: Of the logarithm of the ratio of width to height; the area stays.
        distribution: "uniform": the five are the largest; "normal": they are standard deviations.
    """

    name: ClassVar[str] = "affine"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 0.1
    shear: float = 0.0
    stretch: float = 0.0
    distribution: Distribution = "uniform"

    def __post_init__(self) -> None:
        within(self.name, 0, 180, rotation=self.rotation)
        within(self.name, 0, 2, scale=self.scale, stretch=self.stretch)
        within(self.name, 0, 1, shift=self.shift)
        within(self.name, 0, 60, shear=self.shear)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, h, w) moved."""
        return move_image(
            x,
            rotation=spread(draws, "rotation", self.rotation, self.distribution),
            size=torch.exp(spread(draws, "scale", self.scale, self.distribution)),
            right=spread(draws, "right", self.shift, self.distribution),
            down=spread(draws, "down", self.shift, self.distribution),
            shear=spread(draws, "shear", self.shear, self.distribution),
            ratio=torch.exp(spread(draws, "stretch", self.stretch, self.distribution)),
        )


def move_image(
    x: Tensor, *, rotation: Tensor, size: Tensor, right: Tensor, down: Tensor, shear: Tensor, ratio: Tensor
) -> Tensor:
    """Shear, stretch, scale, rotate about the centre, then shift, each picture by its own amount.

    Args:
        x: (b, c, h, w).
        rotation: Degrees (b,) float64, clockwise as seen (y runs downwards).
        size: Factor (b,).
        right: Shift as a share of the width (b,).
        down: Shift as a share of the height (b,).
        shear: Degrees (b,).
        ratio: Of width to height (b,).

    Returns:
        (b, c, h, w), bilinear; outside the picture its border goes on.
    """
    height, width = x.shape[-2:]
    angle, slope = torch.deg2rad(rotation), torch.tan(torch.deg2rad(shear))
    cos, sin, p = torch.cos(angle) / size, torch.sin(angle) / size, ratio.sqrt()
    # from the result back to where it comes from: the inverse of rotation @ size @ stretch @ shear, in pixels
    matrix = (cos / p + slope * p * sin, sin / p - slope * p * cos, -p * sin, p * cos)
    a, b, c, d = (entry.float()[:, None, None] for entry in matrix)
    grid_x, grid_y = _places(height, width, x.device)
    u = (grid_x - 2 * right.float()[:, None, None]) * (width / 2)
    v = (grid_y - 2 * down.float()[:, None, None]) * (height / 2)
    grid = torch.stack([(a * u + b * v) / (width / 2), (c * u + d * v) / (height / 2)], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _places(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give x (1, 1, w) and y (1, h, 1) of the pixels' centres in [-1, 1]."""
    x = (torch.arange(width, device=device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=device) * 2 + 1) / height - 1
    return x[None, None, :], y[None, :, None]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Cut out a random rectangle and stretch it to the whole picture.

    Attributes:
        share: Smallest share of the area that is kept; the largest is 1.
        ratio: Largest ratio of the rectangle's sides, relative to the picture's.
    """

    name: ClassVar[str] = "crop"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    share: float = 0.5
    ratio: float = 1.33

    def __post_init__(self) -> None:
        within(self.name, 0.01, 1, share=self.share)
        within(self.name, 1, 10, ratio=self.ratio)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, h, w) cropped and resized to (h, w)."""
        u = draws.uniform("crop", 3).double()
        area = self.share + (1 - self.share) * u[:, 0]
        stretch = torch.exp(spread(draws, "ratio", math.log(self.ratio), "uniform"))
        wide, high = (torch.sqrt(area * stretch).clamp(max=1), torch.sqrt(area / stretch).clamp(max=1))
        left, top = (1 - wide) * (2 * u[:, 1] - 1), (1 - high) * (2 * u[:, 2] - 1)
        grid_x, grid_y = _places(x.shape[-2], x.shape[-1], x.device)
        gx = grid_x * wide.float()[:, None, None] + left.float()[:, None, None]
        gy = grid_y * high.float()[:, None, None] + top.float()[:, None, None]
        shape = (len(x), *x.shape[-2:])
        grid = torch.stack([gx.expand(shape), gy.expand(shape)], dim=-1)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Mirror left and right.

    Attributes:
        probability: Of being mirrored.
        vertical: Whether up and down are mirrored instead.
    """

    name: ClassVar[str] = "flip"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    probability: float = 0.5
    vertical: bool = False

    def __post_init__(self) -> None:
        within(self.name, 0, 1, probability=self.probability)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, h, w), some mirrored."""
        turned = draws.uniform("flip")[:, :, None, None] < self.probability
        return torch.where(turned, x.flip(-2 if self.vertical else -1), x)


@dataclass(frozen=True, kw_only=True)
class Erase:
    """Set a random rectangle to the training mean (zero after standardisation).

    Attributes:
        probability: Of being erased at all.
        size: Largest share of the height and of the width; the smallest is 0.
    """

    name: ClassVar[str] = "erase"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    probability: float = 0.5
    size: float = 0.5

    def __post_init__(self) -> None:
        within(self.name, 0, 1, probability=self.probability, size=self.size)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, h, w) with rectangles of zeros."""
        height, width = x.shape[-2:]
        rows = span(draws, "rows", self.size, height, torch.arange(height, device=x.device))
        columns = span(draws, "columns", self.size, width, torch.arange(width, device=x.device))
        hit = draws.uniform("erase") < self.probability
        hole = (rows & hit)[:, :, None] & columns[:, None, :]
        return x.masked_fill(hole[:, None], 0.0)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Change brightness and contrast, after standardisation; contrast is about the training mean.

    Attributes:
        brightness: Largest change, in standard deviations of the data.
        contrast: Largest change of the factor.
    """

    name: ClassVar[str] = "jitter"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    brightness: float = 0.2
    contrast: float = 0.2

    def __post_init__(self) -> None:
        within(self.name, 0, math.inf, brightness=self.brightness)
        within(self.name, 0, 1, contrast=self.contrast)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, c, h, w) times a factor plus an offset, one of each a picture."""
        factor = 1 + spread(draws, "contrast", self.contrast, "uniform")
        offset = spread(draws, "brightness", self.brightness, "uniform")
        return x * factor.float()[:, None, None, None] + offset.float()[:, None, None, None]
