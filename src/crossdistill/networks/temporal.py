"""A one-dimensional residual network for sequences: sensors, pen strokes, skeletons, waveforms."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.networks._checks import at_least, check_batch, check_dropout, check_shape, one_of, widths
from crossdistill.networks.blocks import Residual, output_norm
from crossdistill.registry import Facts


class TemporalCNN(nn.Module):
    """Residual blocks that each halve the length, then the mean and the maximum over time, and a linear layer.

    Sequences of another length than `shape` work too, unless `pool` is "flatten".

    Args:
        shape: Shape of one prepared sample, (channels, steps).
        channels: Channels of each block, from first to last.
        kernel: Steps that a convolution sees, odd; 5 took a linear probe on pen strokes three points above 3.
        differences: Give the first block the differences between neighbouring steps too, four times as large, as they
            are small; speed and direction at once were worth three points on pen strokes.
        dim: Width of the features.
        pool: "mean_max" over time works for any length; "flatten" keeps when things happen, for `shape`'s length alone.
        norm: End with a batch norm without scale and shift; see `blocks.output_norm`.
        dropout: Share of channels silenced inside the blocks in training.

    Raises:
        NetworkError: If the shape is not that of a sequence.
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="temporal_cnn",
        title="residual network over time",
        paper="He et al. 2016 (ResNet), in one dimension and small",
        modalities=("sequence",),
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        kernel: int = 5,
        differences: bool = True,
        dim: int = 128,
        pool: Literal["mean_max", "flatten"] = "mean_max",
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = check_shape("temporal_cnn", shape, ("channels", "steps"))
        at_least("temporal_cnn", 1, kernel=kernel, dim=dim)
        if kernel % 2 == 0:
            raise ConfigError(f"temporal_cnn: kernel must be odd; received {kernel}")
        one_of("temporal_cnn", pool=(pool, ("mean_max", "flatten")))
        check_dropout("temporal_cnn", dropout)
        self.differences, self.pool, self.dim = differences, pool, dim
        self.channels = widths("temporal_cnn", "channels", channels)
        self._like = functools.partial(
            TemporalCNN, self.shape, kernel=kernel, differences=differences, pool=pool, norm=norm, dropout=dropout
        )
        wide, steps = self.shape[0] * (2 if differences else 1), self.shape[1]
        blocks: list[nn.Module] = []
        for width in self.channels:
            blocks.append(Residual(wide, width, stride=2, kernel=kernel, axes=1, dropout=dropout))
            wide, steps = width, -(-steps // 2)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(wide * (steps if pool == "flatten" else 2), dim)
        self.norm = output_norm(dim, norm)

    def widened(self, factor: int) -> TemporalCNN:
        """Make one of so many times the channels and features."""
        return self._like(channels=tuple(factor * width for width in self.channels), dim=factor * self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch (b, channels, t) to features (b, dim)."""
        check_batch("temporal_cnn", x, 3, self.shape[0])
        if self.pool == "flatten" and x.shape[2] != self.shape[1]:
            raise NetworkError(f"temporal_cnn with pool flatten reads {self.shape[1]} steps; received {x.shape[2]}")
        if self.differences:
            steps = x.diff(dim=2, prepend=x[:, :, :1])
            x = torch.cat([x, 4 * steps], dim=1)
        h = self.blocks(x)
        pooled = h.flatten(1) if self.pool == "flatten" else torch.cat([h.mean(dim=2), h.amax(dim=2)], dim=1)
        return self.norm(self.head(pooled))
