"""The checks that all encoders make of their shape, their parameters and their batches, with one wording."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from crossdistill.errors import ConfigError, NetworkError


def check_shape(name: str, shape: Sequence[int], axes: Sequence[str]) -> tuple[int, ...]:
    """Give `shape` as a tuple if it has one positive integer for each of `axes`.

    Args:
        name: The network's name, for the message.
        shape: Shape of one prepared sample, without the batch axis.
        axes: Names of the axes the network needs; empty for any number of them.

    Raises:
        NetworkError: With the rule and what was received.
    """
    given = tuple(shape)
    rule = f"({', '.join(axes)})" if axes else "of one axis or more"
    fits = len(given) == len(axes) if axes else len(given) > 0
    if not fits or not all(_whole(size) and size >= 1 for size in given):
        raise NetworkError(
            f"{name} reads samples {rule}, without the batch axis, every size >= 1; received {given}. "
            "Prepare the modality in that shape, or choose another network"
        )
    return given


def at_least(name: str, least: int, **values: int) -> None:
    """Refuse parameters that are not whole numbers of `least` or more.

    Raises:
        ConfigError: With the parameter's name and what was received.
    """
    for key, value in values.items():
        if not _whole(value) or value < least:
            raise ConfigError(f"{name}: {key} must be a whole number >= {least}; received {value!r}")


def widths(name: str, key: str, values: Sequence[int], *, empty: bool = False) -> tuple[int, ...]:
    """Give `values` as a tuple if they are whole numbers >= 1, and at least one unless `empty` is allowed.

    Raises:
        ConfigError: With the parameter's name and what was received.
    """
    given = tuple(values)
    if not (given or empty) or not all(_whole(value) and value >= 1 for value in given):
        raise ConfigError(f"{name}: {key} must be a list of whole numbers >= 1; received {list(given)}")
    return given


def one_of(name: str, **choices: tuple[str, Sequence[str]]) -> None:
    """Refuse words that are not among those allowed: `pool=(given, ("mean", "flatten"))`.

    Raises:
        ConfigError: With the parameter's name, what was received and what is allowed.
    """
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{name}: {key} must be one of {', '.join(allowed)}; received {value!r}")


def check_dropout(name: str, dropout: float) -> float:
    """Give `dropout` if it is a share in [0, 1).

    Raises:
        ConfigError: With what was received.
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"{name}: dropout must be in [0, 1); received {dropout}")
    return float(dropout)


def check_batch(name: str, x: Tensor, axes: int, size: int | None) -> None:
    """Refuse a batch that has not `axes` axes or, where `size` is given, not that size on axis 1.

    Raises:
        NetworkError: With the rule and what was received.
    """
    if x.ndim != axes or (size is not None and x.shape[1] != size):
        rule = f"{axes} axes" + ("" if size is None else f", {size} on the second")
        raise NetworkError(f"{name} was built for batches with {rule}; received {tuple(x.shape)}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
