"""What networks give, and how an encoder, a projector and a head become one network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from crossdistill.errors import DataError, NetworkError


@dataclass(frozen=True)
class Outputs:
    """What was asked of a network, for a batch of b samples.

    Attributes:
        features: (b, d), the encoder's output; what is evaluated and deployed.
        embedding: (b, e), after the projector; objectives scale it to unit norm themselves.
        logits: (b, c), after the head.
        maps: (b, channels, h, w) feature maps by the dotted path of the submodule that gave them.
    """

    features: Tensor
    embedding: Tensor | None = None
    logits: Tensor | None = None
    maps: Mapping[str, Tensor] | None = None

    def read(self, name: str) -> Tensor:
        """Give the output called `name`.

        Raises:
            NetworkError: If the network did not give it.
        """
        value = getattr(self, name, None)
        if not isinstance(value, Tensor):
            given = [key for key, content in vars(self).items() if content is not None]
            raise NetworkError(f"the network gives no {name}, only {', '.join(given)}")
        return value

    def each(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Give the same outputs, every tensor of them changed."""

        def changed(value: Tensor | None) -> Tensor | None:
            return None if value is None else change(value)

        maps = None if self.maps is None else {path: change(value) for path, value in self.maps.items()}
        return Outputs(change(self.features), changed(self.embedding), changed(self.logits), maps)

    def to(self, device: torch.device) -> Outputs:
        """Give the same outputs on `device`."""
        return self.each(lambda value: value.to(device))


@runtime_checkable
class Encoder(Protocol):
    """A module from one modality's tensor (b, ...) to features (b, dim)."""

    dim: int

    def __call__(self, x: Tensor) -> Tensor:
        """Encode a batch."""
        ...


@runtime_checkable
class Widens(Protocol):
    """An encoder that knows how to be made wider."""

    def widened(self, factor: int) -> nn.Module:
        """Make one that is so many times as wide, features included, and else the same, from a start of its own."""
        ...


class Network(nn.Module):
    """An encoder with, if wanted, a projector and a head on its features.

    Args:
        encoder: Module with an attribute `dim`, from the modality's tensor to features (b, dim).
        projector: Module from (b, dim) to embeddings (b, e); None gives no embedding.
        head: Module from (b, dim) to logits (b, c); None gives no logits.

    Raises:
        NetworkError: If the encoder does not say its `dim`.
    """

    def __init__(
        self, encoder: nn.Module, *, projector: nn.Module | None = None, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not isinstance(getattr(encoder, "dim", None), int):
            raise NetworkError(
                f"the encoder {type(encoder).__name__} has no integer attribute `dim` (its feature width); "
                "wrap a module of your own with networks.Tapped(module, example)"
            )
        self.encoder = encoder
        self.projector = projector
        self.head = head

    @property
    def dim(self) -> int:
        """Width of the features."""
        return int(self.encoder.dim)  # pyright: ignore[reportArgumentType] - checked in the constructor

    def forward(self, x: Tensor) -> Outputs:
        """Encode a batch (b, ...), apply projector and head where there are any, else hand on the encoder's own."""
        given = encoded(self.encoder, x)
        embedding = given.embedding if self.projector is None else self.projector(given.features)
        logits = given.logits if self.head is None else self.head(given.features)
        return Outputs(given.features, embedding, logits, given.maps)


def redrawn(network: nn.Module) -> nn.Module:
    """Copy a network and start the copy anew: every part that can be reset is, from torch's generator."""
    twin = copy.deepcopy(network)
    for part in twin.modules():
        reset: Any = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
    return twin


def least_rows(network: nn.Module) -> int:
    """Say how many rows a network needs: two where a batch norm learns, one else; fewer count as absent."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return 2 if any(isinstance(part, norms) and part.training for part in network.modules()) else 1


def run(network: nn.Module, x: Tensor) -> Any:
    """Run a network on a batch (b, ...), and give what it gives.

    Raises:
        DataError: If a single row is too few for one of its batch norms in training; of maps it may be enough.
    """
    try:
        return network(x)
    except ValueError as error:
        if len(x) != 1 or least_rows(network) == 1:
            raise
        raise DataError(
            "a batch of one row is too little for a batch norm to learn from: leave out the last, incomplete batch "
            "(drop_last), or take networks without batch norm"
        ) from error


def encoded(encoder: nn.Module, x: Tensor) -> Outputs:
    """Run an encoder on a batch (b, ...) and understand what it gives; raises what `run` and `as_outputs` do."""
    return as_outputs(run(encoder, x))


def as_outputs(value: Any) -> Outputs:
    """Understand what a user's own network returned: `Outputs`, features (b, d), or maps (b, d, h, w) to be pooled.

    Raises:
        NetworkError: If it is something else.
    """
    if isinstance(value, Outputs):
        return value
    if isinstance(value, Tensor) and value.ndim >= 2:
        return Outputs(value if value.ndim == 2 else value.flatten(2).mean(dim=2))
    kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise NetworkError(f"a network must give features (b, d) or Outputs; it gave {kind}. Tap one of its submodules")
