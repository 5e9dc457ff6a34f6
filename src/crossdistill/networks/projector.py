"""The projection head between features and an objective; it is dropped after training."""

from __future__ import annotations

from torch import Tensor, nn

from crossdistill.networks._checks import at_least


class Projector(nn.Module):
    """Linear layers with ReLUs between them: SimCLR's head d -> d -> out for the defaults (Chen et al. 2020).

    Args:
        dim: Width of the features that come in.
        hidden: Width of the hidden layers; None takes `dim`.
        out: Width of the embeddings.
        layers: Linear layers; 1 makes it linear.
        norm: Batch norm before every ReLU; off, as small batches are common here.
        last_norm: Batch norm without scale and shift on the embeddings, which keeps all dimensions in use.

    Raises:
        ConfigError: If a parameter is not a whole number >= 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        out: int = 64,
        layers: int = 2,
        norm: bool = False,
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        width = dim if hidden is None else hidden
        at_least("projector", 1, dim=dim, hidden=width, out=out, layers=layers)
        parts: list[nn.Module] = []
        given = dim
        for _ in range(layers - 1):
            parts.append(nn.Linear(given, width, bias=not norm))
            parts += [nn.BatchNorm1d(width)] if norm else []
            parts.append(nn.ReLU(inplace=True))
            given = width
        parts.append(nn.Linear(given, out, bias=not last_norm))
        parts += [nn.BatchNorm1d(out, affine=False)] if last_norm else []
        self.layers = nn.Sequential(*parts)
        self.dim = out

    def forward(self, features: Tensor) -> Tensor:
        """Project features (b, dim) to embeddings (b, out)."""
        return self.layers(features)
