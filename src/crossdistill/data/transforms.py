"""Augmentation by name: what an experiment file writes, built for a modality, with draws that belong to the sample.

augment:
  image: [affine, {noise: {std: 0.1}}]
  depth: [{affine: {rotation: 5, shared: true}}]      # moves as any other modality's shared affine does
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, get_args

from torch import Tensor

from crossdistill.data import augment_any, augment_image, augment_time
from crossdistill.data.augment_any import Distribution
from crossdistill.data.draws import Draws
from crossdistill.data.modality import Modality
from crossdistill.errors import ConfigError, suggest
from crossdistill.files import digest


class Transform(Protocol):
    """A random change of a batch of one modality, after standardisation unless its documentation says otherwise."""

    def __call__(self, x: Tensor, draws: Draws, /) -> Tensor:
        """Give a changed copy of x (b, *shape) float32; what is random comes from `draws` alone, x stays as it is."""
        ...


_CLASSES: tuple[type[Any], ...] = (
    augment_any.Noise,
    augment_any.Dropout,
    augment_image.ImageAffine,
    augment_image.Crop,
    augment_image.Flip,
    augment_image.Erase,
    augment_image.Jitter,
    augment_time.PenAffine,
    augment_time.TimeWarp,
    augment_time.Wobble,
    augment_time.TimeMask,
    augment_time.Amplitude,
    augment_time.SpecMask,
    augment_time.TimeShift,
)


@dataclass(frozen=True)
class Link:
    """One transform in a chain.

    Attributes:
        transform: What is done.
        place: The name its draws go by.
        shared: Whether the draws forget the modality, so that two aligned modalities move alike.
    """

    transform: Transform
    place: str
    shared: bool = False


@dataclass(frozen=True)
class Chain:
    """Transforms one after the other; no links change nothing."""

    links: tuple[Link, ...] = ()

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Give x (b, *shape) after all links."""
        for link in self.links:
            x = link.transform(x, draws.at(link.place, shared=link.shared))
        return x


@dataclass(frozen=True)
class TransformFacts:
    """What a machine may know of a transform.

    Attributes:
        name: The word in an experiment file.
        kinds: Kinds of modality it serves.
        title: One line that says what it does.
        parameters: Names and defaults.
    """

    name: str
    kinds: tuple[str, ...]
    title: str
    parameters: Mapping[str, Any]


def available_transforms() -> tuple[TransformFacts, ...]:
    """Give every transform with the kinds it serves; one name may serve kinds in different ways."""
    return tuple(
        TransformFacts(
            name=cls.name,
            kinds=cls.kinds,
            title=(cls.__doc__ or "").partition("\n")[0],
            parameters={f.name: f.default for f in _parameters(cls).values()},
        )
        for cls in _CLASSES
    )


def build_transforms(spec: Sequence[str | Mapping[str, Any]], modality: Modality) -> Chain:
    """Build what an experiment file asks for.

    Args:
        spec: Names, or {name: {parameter: value}}, in the order in which they act. `shared: true` among the parameters
            gives two modalities the same draws.
        modality: What they act on.

    Returns:
        The transform, for `PairedDataset.augmented`.

    Raises:
        ConfigError: If a name, a parameter or a value is unknown or out of range; the message names the nearest.
    """
    links: list[Link] = []
    if isinstance(spec, str | Mapping):
        raise ConfigError(f"{modality.name}: transforms come as a list; received {spec!r}")
    for entry in spec:
        name, parameters = _entry(entry, modality.name)
        shared = parameters.pop("shared", False)
        if not isinstance(shared, bool):
            raise ConfigError(f"{modality.name}: {name}: shared is true or false; received {shared!r}")
        cls = _find(name, modality)
        # shared links go by their name and number among their like, whatever stands before them in each modality
        before = sum(link.shared and link.place.startswith(f"{name}/") for link in links)
        place = f"{name}/{before}" if shared else f"{len(links)}/{name}"
        links.append(Link(_build(cls, parameters, modality), place, shared))
    return Chain(tuple(links))


def anywhere(transform: Transform) -> bool:
    """Say whether a transform works on any device: those of this library do, and others may not."""
    if isinstance(transform, Chain):
        return all(anywhere(link.transform) for link in transform.links)
    return type(transform) in _CLASSES


def transform_identity(transform: Transform) -> str:
    """Hash all that a transform's result depends on, beside the samples and the draws.

    Returns:
        16 hexadecimal digits of its parameters, its class's name, and the source of it and of all that it inherits; the
        same for its parts. Empty where it is no dataclass, or one with a field that is neither plain nor such a
        dataclass: nobody knows its parameters.
    """
    try:
        return digest(_known(transform))
    except TypeError:
        return ""


def _known(value: Any) -> Any:
    """Turn plain values and dataclasses of such into JSON-like ones; others are a TypeError."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        source = [_source(cls) for cls in type(value).__mro__ if cls is not object]
        fields = {f.name: _known(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", "source": source, "fields": fields}
    if isinstance(value, list | tuple):
        return [_known(inner) for inner in cast("Sequence[Any]", value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError


def _source(cls: type[Any]) -> str:
    """Give a class's source; a class made in a notebook's cell has none."""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""


def _entry(entry: Any, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping):
        items: list[tuple[Any, Any]] = list(cast("Mapping[Any, Any]", entry).items())
        if len(items) == 1 and isinstance(items[0][0], str) and isinstance(items[0][1] or {}, Mapping):
            return items[0][0], dict(items[0][1] or {})
    raise ConfigError(f"{where}: a transform is a name or {{name: {{parameter: value}}}}; received {entry!r}")


def _find(name: str, modality: Modality) -> type[Any]:
    for cls in _CLASSES:
        if cls.name == name and modality.kind in cls.kinds:
            return cls
    kinds = sorted({kind for cls in _CLASSES if cls.name == name for kind in cls.kinds})
    known = {cls.name for cls in _CLASSES if modality.kind in cls.kinds}
    if kinds:
        raise ConfigError(
            f"{modality.name}: '{name}' serves {', '.join(kinds)}, and this is {modality.kind}{suggest(name, known)}"
        )
    raise ConfigError(f"{modality.name}: no transform is called '{name}'{suggest(name, known)}")


def _parameters(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Give the fields that an experiment file may set."""
    return {f.name: f for f in dataclasses.fields(cls) if "of" not in f.metadata}


def _build(cls: type[Any], parameters: Mapping[str, Any], modality: Modality) -> Transform:
    known = _parameters(cls)
    for key, value in parameters.items():
        where = f"{modality.name}: {cls.name}"
        if key not in known:
            raise ConfigError(f"{where} has no '{key}'{suggest(key, [*known, 'shared'])}")
        _check(where, key, value, str(known[key].type))
    of = {f.name: f.metadata["of"](modality) for f in dataclasses.fields(cls) if "of" in f.metadata}
    try:
        return cls(**parameters, **of)
    except ConfigError as error:
        raise ConfigError(f"{modality.name}: {error}") from None


def _check(where: str, key: str, value: Any, kind: str) -> None:
    """Refuse a value of another type; true and false are no numbers."""
    if kind == "Distribution":
        if value not in get_args(Distribution):
            raise ConfigError(f"{where}: {key} is one of {', '.join(get_args(Distribution))}; received {value!r}")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "float": number and math.isfinite(value),
        "int": number and isinstance(value, int),
        "bool": isinstance(value, bool),
    }[kind]
    if not fits:
        words = {"float": "a finite number", "int": "a whole number", "bool": "true or false"}[kind]
        raise ConfigError(f"{where}: {key} is {words}; received {value!r}")
