"""Loading weights from a file, with an error that shows in a few lines how file and network differ."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType] - half annotated
from torch import Tensor, nn

from crossdistill.errors import NetworkError
from crossdistill.networks.tapped import Tapped

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "encoder")
"""Keys below which training scripts put the weights."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.", "network.")
"""What data parallelism, compilation and wrapping classes put before every name."""

SHOWN = 5
"""Names shown of each kind of difference."""


@dataclass(frozen=True)
class WeightDifference:
    """How the weights of a file differ from those of a network.

    Attributes:
        missing: Names the network has and the file has not.
        unexpected: Names the file has and the network has not.
        wrong_shapes: Name to the shape in the file and the one of the network.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong_shapes)

    def __str__(self) -> str:
        shapes = [f"{name} {given} for {wanted}" for name, (given, wanted) in (self.wrong_shapes or {}).items()]
        rows = (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", shapes))
        return "; ".join(f"{title}: {_first(names)}" for title, names in rows if names)


def load_weights(module: nn.Module, path: str | Path, *, strict: bool = True) -> WeightDifference:
    """Load weights into a module, from safetensors or from what `torch.save` wrote of a state dict.

    A state dict below a common key ("state_dict", "model", ...) and names with a common prefix ("module.", ...) are
    understood, and below a prefix the rest is left out: an encoder loads from the weights of a network that holds it.
    For `Tapped` the names of the module inside are understood too. Nothing but tensors is unpickled, and the module is
    unchanged if an error is raised.

    Args:
        module: The network to fill, on any device.
        path: A file ending in .safetensors, or one of torch.
        strict: Refuse any difference; False loads what fits by name and shape and tells the rest.

    Returns:
        The differences, empty if strict.

    Raises:
        NetworkError: If the file cannot be read, or differs (strict), or has nothing in common with the network.
    """
    path = Path(path)
    given = _tensors(_read(path), path)
    target = module.net if isinstance(module, Tapped) else module
    wanted = target.state_dict()
    renamed = max(_namings(given), key=lambda names: sum(name in wanted for name in names))
    difference = compare_weights(renamed, wanted)
    fitting = {name: renamed[name] for name in wanted if name in renamed and _same_shape(renamed[name], wanted[name])}
    if not fitting:
        raise NetworkError(f"no weight in {path} fits {type(target).__name__}: {difference}")
    if difference and strict:
        raise NetworkError(
            f"the weights in {path} do not fit {type(target).__name__}: {difference}. "
            "Build the network with the parameters the weights were made with, or load with strict = false"
        )
    target.load_state_dict(fitting, strict=strict)
    return difference


def compare_weights(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> WeightDifference:
    """Tell how the state dict `given` differs from `wanted` in names and shapes."""
    return WeightDifference(
        missing=tuple(name for name in wanted if name not in given),
        unexpected=tuple(name for name in given if name not in wanted),
        wrong_shapes={
            name: (tuple(given[name].shape), tuple(value.shape))
            for name, value in wanted.items()
            if name in given and not _same_shape(given[name], value)
        },
    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise NetworkError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise NetworkError(
            f"{path} holds more than tensors, and nothing else is read from a file for safety; "
            "save it again as torch.save(model.state_dict(), path) or as safetensors"
        ) from None
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise NetworkError(f"cannot read the weights file {path}: {str(error).partition(chr(10))[0]}") from None


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file held."""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        entries = cast("Mapping[Any, Any]", content)
        tensors = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        content = next((entries[key] for key in WRAPPERS if key in entries), None)
    raise NetworkError(f"{path} holds no state dict, at the top or below {', '.join(WRAPPERS)}")


def _namings(given: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Give the weights under the names they may have been meant to have: with prefixes taken off, at most three."""
    waiting = [(given, 0)]
    while waiting:
        names, depth = waiting.pop(0)
        yield names
        for prefix in PREFIXES:
            inner = {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
            if inner and depth < 3:
                waiting.append((inner, depth + 1))


def _same_shape(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape


def _first(names: tuple[str, ...] | list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
