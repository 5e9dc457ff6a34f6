"""The residual block that the convolutional encoders share, in one and two dimensions."""

from __future__ import annotations

from typing import Literal

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


class Residual(nn.Module):
    """Two convolutions with batch norm and a way around them (He et al. 2016, the basic block).

    Args:
        channels: Channels that come in; (b, channels, t) or (b, channels, h, w).
        width: Channels that go out.
        stride: Step of the first convolution; t, h and w shrink by it, rounded up.
        dilation: Distance between a kernel's taps.
        axes: 1 for sequences, 2 for pictures.
        dropout: Share of the channels silenced between the two convolutions.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        axes: Literal[1, 2] = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        conv = nn.Conv1d if axes == 1 else nn.Conv2d
        norm = nn.BatchNorm1d if axes == 1 else nn.BatchNorm2d
        silence = nn.Dropout1d if axes == 1 else nn.Dropout2d
        self.body = nn.Sequential(
            conv(channels, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            *([silence(dropout)] if dropout else []),
            conv(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            norm(width),
        )
        straight = stride == 1 and channels == width
        self.skip = (
            nn.Identity()
            if straight
            else nn.Sequential(conv(channels, width, 1, stride=stride, bias=False), norm(width))
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Give the block's output, the sum of both ways after ReLU."""
        return self.activation(self.body(x) + self.skip(x))


def initialise(module: nn.Module) -> None:
    """Start convolutions and linear layers before ReLUs at the variance of He et al. 2015, and biases at zero."""
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="linear")
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
