"""Whether two networks, or two stages, are the same; and whether a frozen teacher is frozen."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.errors import TrainingError
from crossdistill.files import digest
from crossdistill.networks.tapped import Tapped
from crossdistill.networks.taps import Mapped


def tensors_of(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Give every parameter and buffer by name, those that `state_dict` leaves out too."""
    yield from network.named_parameters()
    yield from network.named_buffers()


def weights_digest(network: nn.Module) -> str:
    """Hash a network's weights.

    Args:
        network: On any device.

    Returns:
        16 hexadecimal digits of the names, types, shapes and bits of all parameters and buffers, those that
        `state_dict` leaves out too.
    """
    state = hashlib.sha256()
    for name, tensor in tensors_of(network):
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]


def code_of(network: nn.Module) -> str:
    """Hash what a network does with its weights, as far as can be known.

    Functions that a class calls and plain attributes which `repr` does not show are not seen.

    Args:
        network: Any module.

    Returns:
        16 hexadecimal digits of its structure (`repr`) and of the names and sources of the classes of all its modules
        and of what they inherit from, torch's and Python's own sources left out. A class without a source, made at run
        time or in a notebook's cell, counts by its name.
    """
    return digest(_structure(network), *_sources(network))


def parts_of(network: nn.Module) -> dict[str, Any]:
    """Give what decides a network's outputs, part by part, so that what differs can be named.

    Returns:
        Hashes of the "weights", the "structure" (`repr`) and the "code" of its classes, and its "taps" in words.
    """
    modules: list[tuple[str, nn.Module]] = list(network.named_modules())  # pyright: ignore[reportUnknownArgumentType]
    return {
        "weights": weights_digest(network),
        "structure": digest(_structure(network)),
        "code": digest(*_sources(network)),
        "taps": {name or "all": part.places for name, part in modules if isinstance(part, Tapped | Mapped)},
    }


def _structure(network: nn.Module) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(network))


def _sources(network: nn.Module) -> tuple[dict[str, str], list[str]]:
    """Give the sources of a network's classes by name, and all names."""
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    classes = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}
    given = ("torch.", "builtins.", "abc.", "typing.")
    return {name: _source(kind) for name, kind in classes.items() if not name.startswith(given)}, sorted(classes)


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # made at run time, or in a notebook's cell
        return ""


def check_frozen(teacher: nn.Module, modality: str) -> None:
    """Refuse a teacher that would learn.

    Raises:
        TrainingError: If one of its modules is in training mode or one of its parameters asks for a gradient.
    """
    if any(module.training for module in teacher.modules()):
        raise TrainingError(f"the teacher of '{modality}' is in training mode; freeze(teacher) first")
    learning = [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    if learning:
        raise TrainingError(
            f"the teacher of '{modality}' learns: {learning[0]} asks for a gradient; freeze(teacher) first"
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say what differs between two nested dicts of plain values: "settings.lr was 0.01, is 0.1"."""
    found: list[str] = []
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        elif before != after:
            found.append(f"{prefix}{name} was {before!r}, is {after!r}")
    return found
