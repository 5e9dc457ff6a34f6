"""A small residual network for pictures of 28 to 64 pixels a side, quick on a CPU."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

from torch import Tensor, nn

from crossdistill.errors import NetworkError
from crossdistill.networks._checks import at_least, check_batch, check_dropout, check_shape, one_of, widths
from crossdistill.networks.blocks import Residual, channels_last, output_norm, stem_step
from crossdistill.registry import Facts


class CNN(nn.Module):
    """A stem, stages of residual blocks that each halve the picture, a mean over space and a linear layer.

    Pictures of another size than `shape` work too: the mean is over whatever space is left.

    Args:
        shape: Shape of one prepared sample, (channels, height, width).
        width: Channels of the first stage; every further stage has twice as many.
        blocks: Residual blocks in each stage.
        stem_stride: Step of the first convolution; None takes 1 for up to 1600 pixels, 2 above.
        dim: Width of the features.
        pool: "mean" over space works for any size; "flatten" keeps where things are, for pictures of `shape` alone.
        norm: End with a batch norm without scale and shift; see `blocks.output_norm`.
        dropout: Share of channels silenced inside the blocks in training.

    Raises:
        NetworkError: If the shape is not that of a picture.
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="cnn",
        title="small residual network for pictures",
        paper="He et al. 2016 (ResNet), made small",
        modalities=("image",),
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 16,
        blocks: tuple[int, ...] = (1, 1, 1),
        stem_stride: int | None = None,
        dim: int = 128,
        pool: Literal["mean", "flatten"] = "mean",
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = check_shape("cnn", shape, ("channels", "height", "width"))
        at_least("cnn", 1, width=width, dim=dim)
        check_dropout("cnn", dropout)
        step = stem_step("cnn", stem_stride, self.shape[1] * self.shape[2])
        self.stem = nn.Sequential(
            nn.Conv2d(self.shape[0], width, 3, stride=step, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        stages: list[nn.Module] = []
        channels = width
        for index, depth in enumerate(widths("cnn", "blocks", blocks)):
            wide = width * 2**index
            first = Residual(channels, wide, stride=2, dropout=dropout)
            stages.append(nn.Sequential(first, *(Residual(wide, wide, dropout=dropout) for _ in range(depth - 1))))
            channels = wide
        self.stages = nn.Sequential(*stages)
        one_of("cnn", pool=(pool, ("mean", "flatten")))
        self.pool = pool
        size = [self.shape[axis] for axis in (1, 2)]
        for _ in range(len(stages) + {1: 0, 2: 1, 4: 2}[step]):
            size = [-(-side // 2) for side in size]
        self.head = nn.Linear(channels * (size[0] * size[1] if pool == "flatten" else 1), dim)
        self.norm = output_norm(dim, norm)
        self.dim, self.width = dim, width
        self._like = functools.partial(
            CNN, self.shape, blocks=blocks, stem_stride=stem_stride, pool=pool, norm=norm, dropout=dropout
        )
        channels_last(self)

    def widened(self, factor: int) -> CNN:
        """Make one of so many times the channels and features."""
        return self._like(width=factor * self.width, dim=factor * self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch (b, channels, h, w) to features (b, dim)."""
        check_batch("cnn", x, 4, self.shape[0])
        maps = self.stages(self.stem(x))
        if self.pool == "mean":
            return self.norm(self.head(maps.mean(dim=(2, 3))))
        if x.shape[2:] != self.shape[1:]:
            raise NetworkError(f"cnn with pool flatten reads {self.shape}; received {tuple(x.shape[1:])}")
        return self.norm(self.head(maps.flatten(1)))
