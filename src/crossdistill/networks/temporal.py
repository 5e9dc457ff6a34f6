"""A one-dimensional residual network for sequences: sensors, pen strokes, skeletons, waveforms."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from crossdistill.networks._checks import at_least, check_batch, check_dropout, check_shape
from crossdistill.networks.blocks import Residual, initialise
from crossdistill.registry import Facts


class TemporalCNN(nn.Module):
    """A stem, residual blocks whose dilation doubles, the mean and the maximum over time, and a linear layer.

    Block k has dilation 2^k, so that `depth` blocks see some 4 * 2^depth steps (Bai et al. 2018, without causality).
    Sequences of another length than `shape` work too.

    Args:
        shape: Shape of one prepared sample, (channels, steps).
        width: Channels inside.
        depth: Residual blocks.
        stride: Step of the stem in time; 2 halves the cost.
        dim: Width of the features.
        dropout: Share of channels silenced inside the blocks in training.

    Raises:
        NetworkError: If the shape is not that of a sequence.
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="temporal_cnn",
        title="dilated residual network over time",
        paper="Bai et al. 2018 (TCN), without causality",
        modalities=("sequence",),
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        depth: int = 3,
        stride: int = 2,
        dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = check_shape("temporal_cnn", shape, ("channels", "steps"))
        at_least("temporal_cnn", 1, width=width, depth=depth, stride=stride, dim=dim)
        check_dropout("temporal_cnn", dropout)
        self.stem = nn.Sequential(
            nn.Conv1d(self.shape[0], width, 5, stride=stride, padding=2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(
            *(Residual(width, width, dilation=2**k, axes=1, dropout=dropout) for k in range(depth))
        )
        self.head = nn.Linear(2 * width, dim)
        self.dim = dim
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch (b, channels, t) to features (b, dim)."""
        check_batch("temporal_cnn", x, 3, self.shape[0])
        h = self.blocks(self.stem(x))
        return self.head(torch.cat([h.mean(dim=2), h.amax(dim=2)], dim=1))
