"""A two-dimensional network for spectrograms that keeps frequency apart from time."""

from __future__ import annotations

import functools
from typing import ClassVar

from torch import Tensor, nn

from crossdistill.errors import NetworkError
from crossdistill.networks._checks import at_least, check_batch, check_dropout, check_shape
from crossdistill.networks.blocks import Residual, channels_last, stem_step
from crossdistill.registry import Facts


class SpectrogramCNN(nn.Module):
    """Residual blocks that each halve both axes, a layer over all frequencies of a frame, then mean plus maximum.

    A picture may be moved up and down, a sound may not: frequencies are therefore not averaged but read by a linear
    layer, frame by frame, and only time is pooled, as in BYOL-A (Niizumi et al. 2021). Any number of frames works.

    Args:
        shape: Shape of one prepared sample, (channels, mels, frames), usually one channel of log-mel energies.
        width: Channels of the first block; every further one has twice as many.
        depth: Residual blocks; each halves frequency and time.
        stem_stride: Step of the first convolution; None takes 1 for up to 1600 points, 2 above.
        dim: Width of the features.
        dropout: Share of channels silenced inside the blocks in training.

    Raises:
        NetworkError: If the shape is not that of a spectrogram.
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="spectrogram_cnn",
        title="residual network for log-mel spectrograms, pooled over time alone",
        paper="Niizumi et al. 2021 (BYOL-A), the encoder's idea",
        modalities=("audio",),
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 16,
        depth: int = 3,
        stem_stride: int | None = None,
        dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = check_shape("spectrogram_cnn", shape, ("channels", "mels", "frames"))
        at_least("spectrogram_cnn", 1, width=width, depth=depth, dim=dim)
        check_dropout("spectrogram_cnn", dropout)
        channels, mels, _ = self.shape
        step = stem_step("spectrogram_cnn", stem_stride, mels * self.shape[2])
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=step, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        blocks: list[nn.Module] = []
        channels, mels = width, -(-mels // step)
        for k in range(depth):
            blocks.append(Residual(channels, width * 2**k, stride=2, dropout=dropout))
            channels, mels = width * 2**k, -(-mels // 2)
        self.blocks = nn.Sequential(*blocks)
        self.frames = nn.Sequential(nn.Linear(channels * mels, dim), nn.ReLU(inplace=True))
        self.head = nn.Linear(dim, dim)
        self.dim, self.width = dim, width
        self._like = functools.partial(
            SpectrogramCNN, self.shape, depth=depth, stem_stride=stem_stride, dropout=dropout
        )
        channels_last(self)

    def widened(self, factor: int) -> SpectrogramCNN:
        """Make one of so many times the channels and features."""
        return self._like(width=factor * self.width, dim=factor * self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch (b, channels, mels, frames) to features (b, dim).

        Raises:
            NetworkError: If channels or mels are not those the network was built for.
        """
        check_batch("spectrogram_cnn", x, 4, self.shape[0])
        if x.shape[2] != self.shape[1]:
            raise NetworkError(f"spectrogram_cnn was built for {self.shape[1]} mels; received {tuple(x.shape)}")
        h = self.frames(self.blocks(self.stem(x)).flatten(1, 2).transpose(1, 2))  # (b, frames / 2^depth, dim)
        return self.head(h.mean(dim=1) + h.amax(dim=1))
