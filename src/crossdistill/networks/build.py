"""An encoder from its name in an experiment file: one of ours, one of timm's, or one of the user's own."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from crossdistill.errors import ConfigError, CrossDistillError, NetworkError, suggest, told
from crossdistill.networks.tapped import Tapped
from crossdistill.registry import load_dotted, lookup, refuse_foreign

DEFAULTS: Mapping[str, str] = MappingProxyType(
    {"vector": "mlp", "image": "cnn", "sequence": "temporal_cnn", "audio": "spectrogram_cnn"}
)
"""Kind of a modality to the network that "auto" takes for it."""


def build_encoder(spec: str, shape: Sequence[int], kind: str, /, **parameters: Any) -> nn.Module:
    """Build an encoder with an attribute `dim`; whatever a network of the user's own raises becomes an error of ours.

    Args:
        spec: "auto" (by kind), a name of ours such as "cnn", "timm:NAME", or "package.module:factory", a function or
            class that returns a module; it is handed `shape` if it has a parameter of that name.
        shape: Shape of one prepared sample, without the batch axis.
        kind: Kind of the modality: vector, image, sequence or audio.
        parameters: Keyword arguments of the network. For timm's and the user's own also `tap`, `maps`, `pool` and
            `logits` of `Tapped`.

    Returns:
        The encoder, in training mode, on the CPU.

    Raises:
        ConfigError: If the name or a parameter is unknown.
        NetworkError: If the network cannot be built, read the shape or be tapped.
    """
    shape = tuple(shape)
    if spec == "auto":
        if kind not in DEFAULTS:
            raise ConfigError(f"no network is the default for the kind '{kind}'{suggest(kind, DEFAULTS)}")
        spec = DEFAULTS[kind]
    if ":" not in spec:
        cls = lookup("crossdistill.networks", spec)
        served = cast("tuple[str, ...]", cls.facts.modalities)
        if not {"any", kind} & set(served):
            raise ConfigError(f"network '{spec}' reads {', '.join(served)}, not {kind}; 'auto' picks one that fits")
        return _call(spec, cls, {"shape": shape, **parameters})
    refuse_foreign(spec)  # timm's too: its parameters name files and addresses
    tapping = _tapping(parameters)
    module = _timm(spec, shape, parameters) if spec.startswith("timm:") else _own(spec, shape, parameters)
    try:
        return Tapped(module, torch.zeros(1, *shape), **tapping)
    except CrossDistillError:
        raise
    except Exception as error:
        reason = told(error, type(module).forward)
        raise NetworkError(f"network '{spec}' cannot read samples of shape {shape}: {reason}") from error


def _tapping(parameters: dict[str, Any]) -> dict[str, Any]:
    """Take what `Tapped` is told out of a network's parameters."""
    given = {key: parameters.pop(key) for key in ("tap", "maps", "pool", "logits") if key in parameters}
    if type(given.get("tap")) is int:  # "4" of a Sequential needs no quotes in a file
        given["tap"] = str(given["tap"])
    if not isinstance(given.get("tap"), str | None):
        raise ConfigError(f"tap is the dotted path of a submodule, in quotes; received {given['tap']!r}")
    maps = given.get("maps", ())
    if not isinstance(maps, list | tuple) or not all(isinstance(path, str) for path in cast("list[Any]", maps)):
        raise ConfigError(f"maps is a list of dotted paths of submodules, in quotes; received {maps!r}")
    if not isinstance(given.get("logits", False), bool):
        raise ConfigError(f"logits is true or false; received {given['logits']!r}")
    return given


def _own(spec: str, shape: tuple[int, ...], parameters: dict[str, Any]) -> nn.Module:
    factory = load_dotted(spec)
    if isinstance(factory, nn.Module):
        raise ConfigError(f"'{spec}' is a network already; name the class, or a function that makes a new one")
    if not callable(factory):
        raise ConfigError(f"'{spec}' cannot be called; it must be a function or class that gives a torch module")
    if "shape" in _signature(spec, factory).parameters:
        parameters = {"shape": shape, **parameters}
    module = _call(spec, factory, parameters)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"'{spec}' gave a {type(module).__name__}; it must give a torch module")
    return module


def _call(spec: str, factory: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    """Call `factory`, naming the nearest right word for a parameter that it does not have."""
    signature = _signature(spec, factory)
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    known = [name for name, p in signature.parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name in parameters:
        if name not in known and not accepts_any:
            own = [word for word in known if word != "shape"]
            raise ConfigError(f"network '{spec}' has no parameter '{name}'{suggest(name, own)}")
    try:
        signature.bind(**parameters)
    except TypeError as error:
        raise ConfigError(f"network '{spec}': {error}") from None
    return _made(spec, factory, parameters)


def _signature(spec: str, factory: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(factory)
    except (TypeError, ValueError):  # some functions that are written in C
        raise ConfigError(f"'{spec}' does not say its parameters; write a function of your own around it") from None


def _made(spec: str, factory: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    try:
        return factory(**parameters)
    except CrossDistillError:
        raise
    except Exception as error:
        raise NetworkError(f"network '{spec}' cannot be built: {told(error, factory)}") from error


def _timm(spec: str, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> nn.Module:
    """Make a timm model without its classifier, reading as many channels as the samples have."""
    try:
        import timm  # pyright: ignore[reportMissingImports] - an optional package
    except (ImportError, RuntimeError, OSError) as error:
        raise NetworkError(
            f"'{spec}' needs timm, which does not load here ({error}); "
            "install it with: pip install 'crossdistill[vision]', torchvision in the build that fits your torch"
        ) from None
    library = cast("Any", timm)
    name = spec.removeprefix("timm:")
    if len(shape) != 3:
        raise NetworkError(f"'{spec}' reads pictures (channels, height, width); received samples {shape}")
    if name.partition(".")[0] not in library.list_models():
        raise ConfigError(f"timm has no model '{name}'{_few(name, library.list_models())}")
    given = {"num_classes": 0, "in_chans": shape[0], **parameters}
    return _made(spec, functools.partial(library.create_model, name), given)


def _few(name: str, known: Sequence[str]) -> str:
    """Suggest among thousands of names: the nearest alone."""
    return suggest(name, difflib.get_close_matches(name, known, n=5, cutoff=0.5))
