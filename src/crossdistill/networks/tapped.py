"""Any module as an encoder: features and feature maps taken at submodules named by dotted path."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, NetworkError, suggest
from crossdistill.networks.base import Outputs

Pool = Literal["auto", "space", "tokens", "time", "first"]
POOLS = ("auto", "space", "tokens", "time", "first")


class Tapped(nn.Module):
    """Take features, and if wanted feature maps, inside a module that was not written for it.

    The whole module still runs; hooks live during one forward alone, so that copies, `state_dict` and gradients are
    those of the module, below the prefix "net.". A submodule that runs several times gives its last output; one that
    returns a tuple or a mapping gives its first tensor.

    Args:
        module: Any module that takes a batch (b, ...).
        example: One batch in the form the module reads, b >= 1; it is run once, in eval mode, to learn `dim`.
        tap: Dotted path of the submodule whose output becomes the features, for example "layer4"; None takes the
            module's own output.
        maps: Dotted paths whose outputs (b, channels, h, w) become `Outputs.maps`.
        pool: How outputs with more than two axes become features (b, dim). "auto" pools (b, dim, h, w) over space and
            refuses (b, ., .), where no shape tells width from time; "space" and "time" average over all axes after
            the second, "tokens" over all but the first and the last, "first" takes the first token of (b, n, dim).

    Attributes:
        dim: Width of the features.

    Raises:
        NetworkError: If a path names no submodule, or what is tapped cannot be pooled to (b, dim).
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
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ConfigError(f"pool must be one of {', '.join(POOLS)}; received '{pool}'")
        self.net = module
        self.tap, self.maps, self.pool = tap, tuple(maps), pool
        self._paths = tuple(dict.fromkeys([*(() if tap is None else (tap,)), *self.maps]))
        known = set(_submodules(module))
        for path in self._paths:
            if path not in known:
                raise NetworkError(f"{type(module).__name__} has no submodule '{path}'{_near(path, known)}")
        self._changed_later: frozenset[str] = frozenset()
        with _evaluated(module), torch.no_grad():
            result, tapped = self._run(example.to(_device(module)))
            # an in-place ReLU after the tap would change what was taken; such outputs are copied when they are taken
            self._changed_later = frozenset(path for path, (value, at) in tapped.items() if _version(value) != at)
            self.dim = self._outputs(result, tapped).features.shape[1]

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Encode a batch (b, ...) to features (b, dim), or to `Outputs` with them where maps were asked for.

        Raises:
            NetworkError: If a tapped submodule did not run, or gave no tensor.
        """
        outputs = self._outputs(*self._run(x))
        return outputs if self.maps else outputs.features

    def _run(self, x: Tensor) -> tuple[Any, dict[str, tuple[Tensor, int]]]:
        """Run the module; give its result and each tapped output with its version when it was taken."""
        tapped: dict[str, tuple[Tensor, int]] = {}

        def catch(path: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
                value = _tensor(result, path)
                value = value.clone() if path in self._changed_later else value
                tapped[path] = (value, _version(value))

            return hook

        handles = [self.net.get_submodule(path).register_forward_hook(catch(path)) for path in self._paths]
        try:
            result = self.net(x)
        finally:
            for handle in handles:
                handle.remove()
        if idle := [path for path in self._paths if path not in tapped]:
            raise NetworkError(
                f"{', '.join(idle)} did not run in the forward of {type(self.net).__name__}; tap another"
            )
        return result, tapped

    def _outputs(self, result: Any, tapped: Mapping[str, tuple[Tensor, int]]) -> Outputs:
        value = _tensor(result, type(self.net).__name__) if self.tap is None else tapped[self.tap][0]
        maps = {path: tapped[path][0] for path in self.maps}
        return Outputs(self._pooled(value), maps=maps or None)

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


def _tensor(result: Any, where: str) -> Tensor:
    """Find the tensor in what a submodule returned."""
    if isinstance(result, Tensor):
        return result
    if isinstance(result, Outputs):
        return result.features
    parts: Iterable[Any] = ()
    if isinstance(result, Mapping):
        parts = cast("Mapping[Any, Any]", result).values()
    elif isinstance(result, (tuple, list)):
        parts = cast("Sequence[Any]", result)
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise NetworkError(
        f"{where} gives {type(cast('object', result)).__name__} without a tensor; tap one of its submodules"
    )


def _version(value: Tensor) -> int:
    """Count the in-place changes of a tensor; those of inference mode keep no count."""
    return 0 if value.is_inference() else value._version


def _near(path: str, known: set[str]) -> str:
    """Name the tail of the error: the nearest paths, or those one level down from the longest part that is right."""
    parent = path
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    level = {name for name in known if name.startswith(f"{parent}." if parent else "")}
    shallow = {name for name in level if name.count(".") == (parent.count(".") + 1 if parent else 0)}
    return suggest(path, shallow or known)


def _submodules(module: nn.Module) -> list[str]:
    pairs = cast("Iterable[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=False))
    return [path for path, _ in pairs if path]


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextlib.contextmanager
def _evaluated(module: nn.Module) -> Generator[None]:
    """Put every submodule into eval mode and back into the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
