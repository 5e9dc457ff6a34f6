"""Loading weights from a file, with an error that shows in a few lines how file and network differ."""

from __future__ import annotations

import pickle
import warnings
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
        path: A file of safetensors or of torch, whatever its ending; "~" is the home folder.
        strict: Refuse any difference; False loads what fits by name and shape and tells the rest.

    Returns:
        The differences, empty if strict.

    Raises:
        NetworkError: If the file cannot be read, or differs (strict), or has nothing in common with the network.
    """
    path = weights_file(path)
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
            "Build the network with the parameters that the weights were made with; "
            "in Python, load_weights(..., strict=False) loads what fits"
        )
    if other := [name for name, value in fitting.items() if value.is_complex() and not wanted[name].is_complex()]:
        raise NetworkError(
            f"the weights in {path} are complex numbers, {type(target).__name__} has real ones: {_first(other)}"
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


def weights_file(path: str | Path) -> Path:
    """Give the path of a weights file as a user wrote it, "~" made their home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no user of that name
        return Path(path)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise NetworkError(f"there is no weights file {path}")
    try:
        if _is_safetensors(path):
            return load_file(path)
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # torch's doubts; ours are errors
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise NetworkError(f"cannot read the weights file {path}: {error.strerror or error}") from None
    except Exception as error:  # torch's unpickler runs into whatever the bytes happen to say
        if isinstance(error, pickle.UnpicklingError) and ("global" in str(error) or "class" in str(error)):
            raise NetworkError(
                f"{path} holds more than tensors, and nothing else is read from a file for safety; "
                "save it again as torch.save(model.state_dict(), path) or as safetensors"
            ) from None
        raise NetworkError(
            f"cannot read the weights file {path}: {_reason(path, error)}; "
            "weights are what torch.save(model.state_dict(), path) writes, or safetensors"
        ) from None


def _is_safetensors(path: Path) -> bool:
    """Tell by content, not by name: the length of a JSON object and its brace, where torch's files begin otherwise."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == b"PK\x03\x04":  # a zip archive, as torch writes them
        return False
    fits = len(head) == 9 and 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size
    return (fits and head[8:] == b"{") or path.suffix == ".safetensors"


def _reason(path: Path, error: Exception) -> str:
    if not path.stat().st_size:
        return "it is empty"
    if "TorchScript" in str(error):
        return "it is a TorchScript archive, which holds code"
    known = isinstance(error, safetensors.SafetensorError | RuntimeError | ValueError)
    says = str(error).partition("\n")[0].partition(". ")[0] if known else ""
    return says or "it is in no form that is known"


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file held."""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        entries = cast("Mapping[Any, Any]", content)
        tensors = {str(name): _dense(value) for name, value in entries.items() if isinstance(value, Tensor)}
        if empty := [name for name, value in tensors.items() if value.is_meta]:
            raise NetworkError(f"{path} was saved from torch's meta device and holds no numbers for {_first(empty)}")
        if tensors:
            return tensors
        content = next((entries[key] for key in WRAPPERS if key in entries), None)
    raise NetworkError(f"{path} holds no state dict, at the top or below {', '.join(WRAPPERS)}")


def _dense(value: Tensor) -> Tensor:
    """Give what a network can copy: sparse and quantised tensors written out."""
    value = value.dequantize() if value.is_quantized else value
    return value if value.layout is torch.strided else value.to_dense()


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
