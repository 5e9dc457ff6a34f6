"""A multi-layer perceptron, for vectors and for anything small enough to be flattened."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from crossdistill.networks._checks import at_least, check_dropout, check_shape, widths
from crossdistill.registry import Facts


class MLP(nn.Module):
    """Linear, batch norm and ReLU for each hidden layer, then a linear layer to the features.

    `MLP((64,))` is the encoder of the synthetic experiment of the CMCD reconstruction, 64-128-128-64 with batch norm.

    Args:
        shape: Shape of one prepared sample, of any number of axes; it is flattened.
        hidden: Widths of the hidden layers; none makes it linear.
        dim: Width of the features.
        norm: Batch norm before every ReLU; a training batch then needs two samples or more.
        dropout: Share of each hidden layer's units silenced in training.

    Raises:
        NetworkError: If the shape is not one of a sample.
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="mlp", title="multi-layer perceptron on the flattened sample", paper="ours", modalities=("any",)
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        hidden: tuple[int, ...] = (128, 128),
        dim: int = 64,
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = check_shape("mlp", shape, ())
        at_least("mlp", 1, dim=dim)
        check_dropout("mlp", dropout)
        self.hidden = widths("mlp", "hidden", hidden, empty=True)
        sizes = [math.prod(self.shape), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for given, wanted in pairwise(sizes):
            layers.append(nn.Linear(given, wanted, bias=not norm))  # the norm's shift makes a bias idle
            layers += [nn.BatchNorm1d(wanted)] if norm else []
            layers.append(nn.ReLU(inplace=True))
            layers += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], dim))
        self.dim = dim
        self._like = functools.partial(MLP, self.shape, norm=norm, dropout=dropout)

    def widened(self, factor: int) -> MLP:
        """Make one whose layers are so many times as wide."""
        return self._like(hidden=tuple(factor * width for width in self.hidden), dim=factor * self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch (b, *shape) to features (b, dim)."""
        return self.layers(x)
