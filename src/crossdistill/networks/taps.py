"""Taking what flows at submodules named by dotted path, during one forward, of a module that knows nothing of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import NetworkError, suggest
from crossdistill.networks.base import Network, Outputs, as_outputs


class Taps:
    """The outputs of some submodules, each time their module is run.

    Hooks live during one forward alone, so that copies, `state_dict` and gradients are those of the module. A submodule
    that runs several times gives its last output; one that returns a tuple or a mapping gives its first tensor.

    An in-place ReLU after a tap would change what was taken. Run the module once in eval mode first: what is seen to
    change then is copied when it is taken from then on.

    Args:
        module: Any module.
        paths: Dotted paths of its submodules.

    Raises:
        NetworkError: If a path names no submodule; the message names the nearest.
    """

    def __init__(self, module: nn.Module, paths: Iterable[str]) -> None:
        self.module, self.paths = module, tuple(dict.fromkeys(paths))
        known = set(submodules(module))
        for path in self.paths:
            if path not in known:
                raise NetworkError(f"{type(module).__name__} has no submodule '{path}'{_near(path, known)}")
        self._changed_later: set[str] = set()

    def run(self, x: Any) -> tuple[Any, dict[str, Tensor]]:
        """Run the module on a batch; give its result, and what was taken by path.

        Raises:
            NetworkError: If a tapped submodule did not run, or gave no tensor.
        """
        result, taken = self._run(x)
        changed = {path for path, (value, at) in taken.items() if _version(value) != at}
        if changed:
            self._changed_later |= changed
            result, taken = self._run(x)
        return result, {path: value for path, (value, _) in taken.items()}

    def _run(self, x: Any) -> tuple[Any, dict[str, tuple[Tensor, int]]]:
        """Give the result and each output with its version when it was taken."""
        taken: dict[str, tuple[Tensor, int]] = {}

        def catch(path: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
                value = first_tensor(result, path)
                value = value.clone() if path in self._changed_later else value
                taken[path] = (value, _version(value))

            return hook

        handles = [self.module.get_submodule(path).register_forward_hook(catch(path)) for path in self.paths]
        try:
            result = self.module(x)
        finally:
            for handle in handles:
                handle.remove()
        if idle := [path for path in self.paths if path not in taken]:
            raise NetworkError(
                f"{', '.join(idle)} did not run in the forward of {type(self.module).__name__}; tap another"
            )
        return result, taken


class Maps:
    """A network's `Outputs` with feature maps added, by the words that a user has for their places.

    Args:
        network: Any network; it is not changed, nor owned.
        words: Dotted paths, see `resolve`; "" stands for the deepest maps, which are looked for when it first runs.
    """

    def __init__(self, network: nn.Module, words: Iterable[str]) -> None:
        self.network, self.words = network, tuple(dict.fromkeys(words))
        self._places = {word: resolve(network, word) for word in self.words if word}
        self._taps: Taps | None = None

    def __call__(self, x: Tensor) -> Outputs:
        """Run the network on a batch (b, ...).

        Raises:
            NetworkError: If what was taken is no feature map.
        """
        if self._taps is None:
            if "" in self.words:
                self._places[""] = deepest_maps(self.network, x)
            self._taps = Taps(self.network, self._places.values())
            with evaluated(self.network), torch.no_grad():
                self._taps.run(x)  # to see what is changed in place, before a step counts
        result, taken = self._taps.run(x)
        outputs, maps = as_outputs(result), {word: taken[path] for word, path in self._places.items()}
        for word, value in maps.items():
            if value.ndim != 4:
                raise NetworkError(
                    f"'{word}' of {_owner(self.network)} gives {tuple(value.shape)}, no maps (b, channels, h, w)"
                )
        return dataclasses.replace(outputs, maps={**(outputs.maps or {}), **maps})


class Mapped(nn.Module):
    """`Maps` as a network of its own, for where one is asked for: a frozen teacher that gives maps too."""

    def __init__(self, network: nn.Module, words: Iterable[str]) -> None:
        super().__init__()
        self.net = network
        self._maps = Maps(network, words)
        dim: object = getattr(network, "dim", None)
        if isinstance(dim, int):
            self.dim = dim

    @property
    def places(self) -> str:
        """What is taken where, in words."""
        return f"maps={list(self._maps.words)}"

    def forward(self, x: Tensor) -> Outputs:
        """Give the network's outputs with maps, (b, ...)."""
        return self._maps(x)


def resolve(module: nn.Module, path: str) -> str:
    """Find a submodule where a user would look for it: in the module, or in what wraps the user's own.

    Args:
        module: Any module; of a `Network` the encoder's submodules may be named as if they were its own.
        path: Dotted path, "stages.1" for "encoder.stages.1".

    Raises:
        NetworkError: If there is none; the message names the nearest.
    """
    known = set(submodules(module))
    for prefix in ("", "encoder.", "net.", "encoder.net."):
        if prefix + path in known:
            return prefix + path
    inner = {name.removeprefix("encoder.").removeprefix("net.") for name in known}
    raise NetworkError(f"{_owner(module)} has no submodule '{path}'{_near(path, inner)}")


def deepest_maps(module: nn.Module, x: Tensor) -> str:
    """Name the last submodule that gives feature maps (b, channels, h, w) of more than one place.

    Args:
        module: Any module; it is run once in eval mode, without gradient.
        x: A batch of one sample or more.

    Raises:
        NetworkError: If there is none, as in networks for sequences and vectors.
    """
    found: list[str] = []
    handles = [
        module.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, result, path=path: found.append(path) if _is_map(result) else None
        )
        for path in submodules(module)
    ]
    try:
        with evaluated(module), torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise NetworkError(f"{_owner(module)} gives no feature maps (b, channels, h, w) for {tuple(x.shape)}")
    return found[-1]


def first_tensor(result: Any, where: str) -> Tensor:
    """Find the tensor in what a submodule returned.

    Raises:
        NetworkError: If there is none.
    """
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


def submodules(module: nn.Module) -> list[str]:
    """List the dotted paths of all submodules, those that stand in two places under both names."""
    pairs = cast("Iterable[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=False))
    return [path for path, _ in pairs if path]


@contextlib.contextmanager
def evaluated(module: nn.Module) -> Generator[None]:
    """Put every submodule into eval mode and back into the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _is_map(result: Any) -> bool:
    return isinstance(result, Tensor) and result.ndim == 4 and result.shape[2] * result.shape[3] > 1


def _owner(module: nn.Module) -> str:
    return type(module.encoder if isinstance(module, Network) else module).__name__


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
