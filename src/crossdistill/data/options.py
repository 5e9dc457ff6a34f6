"""How users say that files are to be read: the options, their types and ranges, and what each of them is for."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from crossdistill.data.modality import KINDS
from crossdistill.errors import ConfigError, suggest

T = TypeVar("T")


def number(value: Any, least: float = -math.inf, most: float = math.inf) -> float | None:
    """Give a finite number in least..most, or None; words like 1e-9, which YAML does not take for numbers, are some."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    found = float(value)
    return found if math.isfinite(found) and least <= found <= most else None


def whole(value: Any, least: float = -math.inf, most: float = math.inf) -> int | None:
    """Give a whole number in least..most, or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if least <= value <= most else None  # as it is: large ones are no floats
    found = number(value, least, most)
    return None if found is None or not found.is_integer() else int(found)


def _size(value: Any) -> tuple[int, int] | None:
    pair = cast("Sequence[Any]", value) if isinstance(value, (list, tuple)) else (value, value)
    sides = [whole(side, 1, 16384) for side in pair]
    return (sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else None


@dataclass(frozen=True)
class _Rule:
    """What an option must be, in words and as a function that gives None for anything else, and what it is for."""

    words: str
    check: Callable[[Any], Any]
    applies: str


_RULES = {
    "size": _Rule("a number of pixels in 1..16384 or (height, width)", _size, "picture files"),
    "channels": _Rule("1 (grey) or 3 (colour)", lambda v: {1: 1, 3: 3}.get(whole(v) or 0), "picture files"),
    "rate": _Rule("a whole number of Hz in 1000..384000", lambda v: whole(v, 1000, 384000), "sound files"),
    "seconds": _Rule("a number of seconds in 0.025..3600", lambda v: number(v, 0.025, 3600), "sound files"),
    "mels": _Rule("a whole number in 1..1024", lambda v: whole(v, 1, 1024), "sound files"),
    "length": _Rule("a whole number in 1..1000000", lambda v: whole(v, 1, 1000000), "sequences in NPY files"),
    "kinds": _Rule(f"one of {', '.join(KINDS)}", lambda v: v if v in KINDS else None, "arrays in NPY and NPZ files"),
}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files become samples. Every option is one value for all modalities, or a mapping from modality to value.

    Attributes:
        size: Height and width of pictures in pixels, or one number for both; default: the first file's, shrunk to a
            longer side of 64.
        channels: 1 (grey) or 3 (colour); default: 3 when any of the files looked at has colour.
        rate: Sampling rate of sounds in Hz; default: the lowest of the files looked at.
        seconds: Length of sounds in seconds, cut or padded with silence; default: the longest of the files looked
            at, at most 10.
        mels: Bands of the log-mel spectrogram; default 64, the usual choice for small networks.
        length: Steps of sequences, resampled linearly; default: the median of the files looked at.
        kinds: Kind of an array modality where its number of axes leaves a doubt.

    Raises:
        ConfigError: If a value is of another type or out of range.
    """

    size: Any = None
    channels: Any = None
    rate: Any = None
    seconds: Any = None
    mels: Any = None
    length: Any = None
    kinds: Any = None
    asked: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]], compare=False)
    """Which options were asked for, of which modalities: those that apply."""

    def __post_init__(self) -> None:
        for option, rule in _RULES.items():
            value = getattr(self, option)
            if isinstance(value, Mapping):
                given = cast("Mapping[Any, Any]", value)
                checked = {m: _checked(f"{option}.{m}", v, rule) for m, v in given.items() if v is not None}
            else:
                checked = None if value is None else _checked(option, value, rule)
            object.__setattr__(self, option, checked)

    def of(self, option: str, modality: str, default: T) -> T:
        """Give an option's value for one modality."""
        self.asked.add((option, modality))
        value = getattr(self, option)
        if isinstance(value, Mapping):
            value = cast("Mapping[str, Any]", value).get(modality)
        return default if value is None else value

    def check_names(self, modalities: Iterable[str]) -> None:
        """Refuse options of modalities that are not there.

        Raises:
            ConfigError: Naming the option and the nearest modality.
        """
        names = list(modalities)
        for option in _RULES:
            value = getattr(self, option)
            for name in cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else ():
                if name not in names:
                    raise ConfigError(f"{option}: no modality is called '{name}'{suggest(str(name), names)}")

    def check_used(self) -> None:
        """Refuse options that nobody asked for, once all modalities are known: they would change nothing.

        Raises:
            ConfigError: Naming the option, what it is for, and the options that apply.
        """
        apply = ", ".join(option for option in _RULES if any(option == asked for asked, _ in self.asked))
        for option, rule in _RULES.items():
            value = getattr(self, option)
            if isinstance(value, Mapping):
                idle = [m for m in cast("Mapping[str, Any]", value) if (option, m) not in self.asked]
                if idle:
                    raise ConfigError(f"{option}: '{idle[0]}' is not read from {rule.applies}; options here: {apply}")
            elif value is not None and not any(option == asked for asked, _ in self.asked):
                raise ConfigError(f"{option} is for {rule.applies}, and there are none; options here: {apply}")


def _checked(where: str, value: Any, rule: _Rule) -> Any:
    found = rule.check(value) if not isinstance(value, (dict, set)) else None
    if found is None:
        raise ConfigError(f"{where} is {rule.words}; received {value!r}")
    return found
