"""The residual block that the convolutional encoders share, in one and two dimensions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError

LARGE = 1600
"""Pictures and spectrograms of more points than this are halved by the stem, which makes them four times as quick."""


def stem_step(name: str, stride: int | None, points: int) -> int:
    """Give the stem's step: `stride` if it is said, else 1 for up to 40 x 40 points and 2 for more.

    Raises:
        ConfigError: If `stride` is not 1, 2 or 4.
    """
    step = (1 if points <= LARGE else 2) if stride is None else stride
    if step not in (1, 2, 4):
        raise ConfigError(f"{name}: stem_stride must be 1, 2, 4 or left out; received {stride!r}")
    return step


def output_norm(dim: int, wanted: bool) -> nn.Module:
    """Give what ends an encoder: a batch norm without scale and shift, or nothing.

    Contrast compares angles, and ReLU features before a linear layer share one large direction; taking the mean out of
    every feature took a linear probe with 3 labels a class on our pen and picture set from 27 to 43 %.
    """
    return nn.BatchNorm1d(dim, affine=False) if wanted else nn.Identity()


def channels_last(network: nn.Module) -> None:
    """Lay out the weights of two-dimensional convolutions with channels last, in place; what they give follows.

    A step of training is then 1.1 to 1.4 times as fast on a CPU (`python -m benchmarks.speed.networks`), and GPUs want
    it for half precision. Shapes and values stay the same; of maps with this layout torch refuses some `view`s, which
    is why only networks of ours have it by themselves.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch forgot this form


class Residual(nn.Module):
    """Two convolutions with batch norm and a way around them (He et al. 2016, the basic block).

    Args:
        channels: Channels that come in; (b, channels, t) or (b, channels, h, w).
        width: Channels that go out.
        stride: Step of the first convolution; t, h and w shrink by it, rounded up.
        kernel: Points that a convolution sees along each axis, odd.
        axes: 1 for sequences, 2 for pictures.
        dropout: Share of the channels silenced between the two convolutions.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        stride: int = 1,
        kernel: int = 3,
        axes: Literal[1, 2] = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        conv = nn.Conv1d if axes == 1 else nn.Conv2d
        norm = nn.BatchNorm1d if axes == 1 else nn.BatchNorm2d
        silence = nn.Dropout1d if axes == 1 else nn.Dropout2d
        self.body = nn.Sequential(
            conv(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            *([silence(dropout)] if dropout else []),
            conv(width, width, kernel, padding=kernel // 2, bias=False),
            norm(width),
        )
        straight = stride == 1 and channels == width
        # without a norm of its own: a probe on pen strokes was two points better
        self.skip = nn.Identity() if straight else conv(channels, width, 1, bias=False)
        # every stride-th point is taken before it: with channels last, oneDNN 3.12 writes beyond its memory in the
        # backward pass of a strided convolution of one point, unless channels come in eights
        self.every = (..., *[slice(None, None, stride)] * axes)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Give the block's output, the sum of both ways after ReLU."""
        return self.activation(self.body(x) + self.skip(x[self.every]))
