"""A small vision transformer."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.networks._checks import at_least, check_dropout, check_shape
from crossdistill.registry import Facts


class Block(nn.Module):
    """One transformer layer with the norm before attention and before the two linear layers.

    Args:
        width: Width of a token.
        heads: Attention heads; they share the width.
        dropout: Share of both ways' outputs silenced in training.
    """

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.silence = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (b, n, width)."""
        b, n, width = x.shape
        qkv = self.queries_keys_values(self.norm_attention(x)).view(b, n, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(b, n, width)
        x = x + self.silence(self.out(mixed))
        return x + self.silence(self.feed(x))


class ViT(nn.Module):
    """Patches as tokens, learned positions, transformer layers, the mean over tokens and a linear layer.

    The mean takes the place of a class token, which small data does not train (Beyer et al. 2022).

    Args:
        shape: Shape of one prepared sample, (channels, height, width); batches must have that size.
        patch: Side of a square patch in pixels; height and width must be multiples of it.
        width: Width of a token.
        depth: Transformer layers.
        heads: Attention heads; the width must be a multiple of them.
        dim: Width of the features.
        dropout: Share of activations silenced in training.

    Raises:
        NetworkError: If the shape is not that of a picture, or patches do not tile it.
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="vit",
        title="small vision transformer",
        paper="Dosovitskiy et al. 2021 (ViT); Beyer et al. 2022 (pooling)",
        modalities=("image",),
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        patch: int = 4,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = check_shape("vit", shape, ("channels", "height", "width"))
        at_least("vit", 1, patch=patch, width=width, depth=depth, heads=heads, dim=dim)
        check_dropout("vit", dropout)
        channels, high, wide = self.shape
        if high % patch or wide % patch:
            fitting = [p for p in range(2, min(high, wide) + 1) if not high % p and not wide % p]
            raise NetworkError(
                f"vit: {high} x {wide} pixels must be a multiple of patch; received patch = {patch}. "
                + (f"These fit: {', '.join(map(str, fitting))}" if fitting else "Resize the pictures")
            )
        if width % heads:
            raise ConfigError(f"vit: width must be a multiple of heads; received width {width} and {heads} heads")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, (high // patch) * (wide // patch), width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads=heads, dropout=dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, dim)
        self.dim, self.width = dim, width
        self._like = functools.partial(ViT, self.shape, patch=patch, depth=depth, heads=heads, dropout=dropout)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    def widened(self, factor: int) -> ViT:
        """Make one whose tokens and features are so many times as wide."""
        return self._like(width=factor * self.width, dim=factor * self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch (b, channels, height, width) to features (b, dim).

        Raises:
            NetworkError: If the pictures have another size than the network was built for.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise NetworkError(f"vit was built for pictures {self.shape}; received a batch {tuple(x.shape)}")
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))
