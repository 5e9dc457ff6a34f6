"""Any module as an encoder: features, logits and feature maps taken at submodules named by dotted path."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.networks.base import Outputs
from crossdistill.networks.taps import Taps, evaluated, first_tensor

Pool = Literal["auto", "space", "tokens", "time", "first"]
POOLS = ("auto", "space", "tokens", "time", "first")


class Tapped(nn.Module):
    """Take features, and if wanted logits and feature maps, inside a module that was not written for it.

    The whole module still runs; hooks live during one forward alone, so that copies, `state_dict` and gradients are
    those of the module, below the prefix "net.". A submodule that runs several times gives its last output; one that
    returns a tuple or a mapping gives its first tensor.

    Args:
        module: Any module that takes a batch (b, ...). One that gives `Outputs` keeps all of them.
        example: One batch in the form the module reads, b >= 1; it is run once, in eval mode, to learn `dim`.
        tap: Dotted path of the submodule whose output becomes the features, for example "layer4"; None takes the
            module's own output.
        maps: Dotted paths whose outputs (b, channels, h, w) become `Outputs.maps`.
        pool: How outputs with more than two axes become features (b, dim). "auto" pools (b, dim, h, w) over space and
            refuses (b, ., .), where no shape tells width from time; "space" and "time" average over all axes after
            the second, "tokens" over all but the first and the last, "first" takes the first token of (b, n, dim).
        logits: Whether the module's own output (b, c) is a classifier's: it becomes `Outputs.logits`.

    Attributes:
        dim: Width of the features.

    Raises:
        NetworkError: If a path names no submodule, what is tapped cannot be pooled to (b, dim), or logits are none.
        ConfigError: If `pool` is unknown.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        tap: str | None = None,
        maps: Sequence[str] = (),
        *,
        pool: Pool = "auto",
        logits: bool = False,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ConfigError(f"pool must be one of {', '.join(POOLS)}; received '{pool}'")
        self.net = module
        self.tap, self.maps, self.pool, self.logits = tap, tuple(maps), pool, logits
        self._taps = Taps(module, (*(() if tap is None else (tap,)), *self.maps))
        with evaluated(module), torch.no_grad():
            self.dim = self._outputs(*self._taps.run(example.to(_device(module)))).features.shape[1]

    @property
    def places(self) -> str:
        """What is taken where, in words."""
        return f"tap={self.tap} maps={list(self.maps)} pool={self.pool} logits={self.logits}"

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Encode a batch (b, ...) to features (b, dim), or to `Outputs` with them where there is more.

        Raises:
            NetworkError: If a tapped submodule did not run, or gave no tensor.
        """
        outputs = self._outputs(*self._taps.run(x))
        more = (outputs.embedding, outputs.logits, outputs.maps)
        return outputs.features if all(value is None for value in more) else outputs

    def _outputs(self, result: Any, tapped: Mapping[str, Tensor]) -> Outputs:
        maps = {path: tapped[path] for path in self.maps} or None
        if isinstance(result, Outputs):
            taken = result.features if self.tap is None else self._pooled(tapped[self.tap])
            return dataclasses.replace(result, features=taken, maps={**(result.maps or {}), **(maps or {})} or None)
        value = first_tensor(result, type(self.net).__name__) if self.tap is None else tapped[self.tap]
        logits: Tensor | None = None
        if self.logits:
            logits = first_tensor(result, type(self.net).__name__)
            if logits.ndim != 2:
                raise NetworkError(
                    f"{type(self.net).__name__} gives {tuple(logits.shape)}, no logits (b, classes); say logits: false"
                )
        return Outputs(self._pooled(value), logits=logits, maps=maps)

    def _pooled(self, value: Tensor) -> Tensor:
        shape = tuple(value.shape)
        where = f"'{self.tap}'" if self.tap else f"{type(self.net).__name__}"
        if value.ndim == 2:
            return value
        if value.ndim < 2 or (value.ndim == 3 and self.pool == "auto") or (value.ndim > 3 and self.pool == "first"):
            cure = (
                "say pool = tokens or first for (b, tokens, width), pool = time for (b, width, time)"
                if value.ndim == 3
                else "tap a submodule that gives (b, width, ...)"
            )
            raise NetworkError(f"{where} gives {shape}, which does not say where the width is; {cure}")
        if self.pool == "first":
            return value[:, 0]
        if self.pool == "tokens":
            return value.flatten(1, -2).mean(dim=1)
        return value.flatten(2).mean(dim=2)


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device
