"""What a user's files are: the modality that a column of paths or an array holds, with the user's options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.data.decode import (
    ARRAYS,
    HERTZ,
    PICTURES,
    SOUNDS,
    fold_clip,
    frames_of,
    load_array,
    picture_facts,
    sound_facts,
)
from crossdistill.data.modality import STORED, Modality
from crossdistill.data.options import ReadOptions
from crossdistill.errors import DataError

LOOKED_AT = 16
"""Files whose headers are looked at to choose defaults, spread evenly: enough to meet the odd one."""

LARGEST = 64
"""Longer side of pictures in pixels, by default: what the small encoders are made for."""

LEAST_SIDE = 8
"""Of square arrays of fractions that are taken for pictures: sequences have fewer channels, or more steps."""

LONGEST = 10.0
"""Seconds of sound at most, by default."""


def guess_modality(name: str, paths: Sequence[str], options: ReadOptions) -> Modality:
    """Choose how the files of one modality are decoded.

    Args:
        name: Of the modality.
        paths: Its different files; missing and broken ones are passed over and told of when they are decoded.
        options: The user's.

    Returns:
        The modality, not yet fitted.

    Raises:
        DataError: If no file can be read, or an option is wrong.
    """
    there = [path for path in paths if os.path.isfile(path)]  # noqa: PTH113 - for each of a million
    looked_at = there[:: max(1, len(there) // LOOKED_AT)][:LOOKED_AT]
    first_error: DataError | None = None
    facts: list[tuple[str, Any]] = []
    for path in looked_at:
        try:
            facts.append(_facts(Path(path)))
        except DataError as error:
            first_error = first_error or error
    if not facts:
        if not paths:
            raise DataError(f"'{name}': no row has it; leave its column out")
        raise first_error or DataError(f"'{name}': none of its {len(paths)} files exists; the first: {paths[0]}")
    kind = facts[0][0]
    same = [value for other, value in facts if other == kind]
    if kind == "image":
        return _image(name, same, options)
    if kind == "audio":
        return _audio(name, same, options)
    return _array(name, same, options)


def _facts(path: Path) -> tuple[str, Any]:
    ending = path.suffix.lower()
    if ending in PICTURES:
        return "image", picture_facts(path)
    if ending in SOUNDS:
        return "audio", sound_facts(path)
    if ending in ARRAYS:
        array = load_array(path)
        return "array", (array.shape, array.dtype)
    known = ", ".join(sorted(PICTURES | SOUNDS | ARRAYS))
    raise DataError(f"{path}: a file ending in '{ending}' cannot be read; known: {known}")


def _image(name: str, facts: Sequence[tuple[int, int, int, str]], options: ReadOptions) -> Modality:
    height, width = facts[0][:2]
    shrink = min(1.0, LARGEST / max(height, width))
    size = options.of("size", name, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    channels = options.of("channels", name, max(f[2] for f in facts))
    deep = any(f[3] == "float32" for f in facts)  # then those of 8 bits are refused where they are decoded
    return Modality(
        name=name,
        kind="image",
        shape=(channels, *size),
        scale=1.0 if deep else 1 / 255,
        dtype="float32" if deep else "uint8",
        channels=("red", "green", "blue") if channels == 3 else ("grey",),
    )


LEAST_RATE = 1000
"""Of what networks hear, in Hz: less leaves a spectrogram too few bands. Files of lower rates may be raised to it."""


def _audio(name: str, facts: Sequence[tuple[int, float]], options: ReadOptions) -> Modality:
    rate = options.of("rate", name, min(f[0] for f in facts))
    seconds = options.of("seconds", name, round(min(LONGEST, max(f[1] for f in facts)), 3))
    mels = options.of("mels", name, 64)
    if not (LEAST_RATE <= rate <= HERTZ[1] and seconds > 0):
        raise DataError(
            f"'{name}': sounds need a rate of {LEAST_RATE} to {HERTZ[1]} Hz and some length; the files have {rate} and "
            f"{seconds} s"
        )
    return Modality(
        name=name,
        kind="audio",
        shape=(1, mels, frames_of(rate, seconds)),
        dtype="float16",  # a log-mel spans -19 to 0; half precision keeps it to 0.01
        decode={"rate": rate, "seconds": seconds, "mels": mels},
    )


def _array(name: str, facts: Sequence[tuple[tuple[int, ...], np.dtype[Any]]], options: ReadOptions) -> Modality:
    dtype = np.result_type(*(f[1] for f in facts))
    kind, shape = _form(name, facts[0][0], dtype, options, squares=False)  # by chance the first of many lengths is one
    if not kind:
        raise DataError(f"'{name}': an array of shape {shape} is no kind of sample")
    if kind == "sequence" and len(shape) == 2:
        middle = sorted(f[0][1] for f in facts if len(f[0]) == 2)[len(facts) // 2 :][:1]
        shape = (shape[0], options.of("length", name, middle[0] if middle else shape[1]))
    stored: Any = str(dtype) if str(dtype) in STORED else "float32"
    if kind == "sequence" and stored != "float16":
        stored = "float32"  # resampling in time makes fractions
    return Modality(name=name, kind=kind, shape=shape, dtype=stored, scale=picture_scale(kind, stored))


def _form(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], options: ReadOptions, *, squares: bool = True
) -> tuple[Any, tuple[int, ...]]:
    """Say of what kind samples of a shape are ("" for none), and what shape they have when colours come first."""
    square = squares and len(shape) == 2 and shape[0] == shape[1] >= LEAST_SIDE
    grey = square or str(dtype) in ("uint8", "bool")
    guess = {1: "vector", 2: "image" if grey else "sequence", 3: "image", 4: "image"}.get(len(shape), "")
    kind = options.of("kinds", name, guess)
    if kind == "image" and len(shape) == 4:  # a clip: its frames' colours are channels of one picture
        return kind, fold_clip(np.broadcast_to(np.zeros((), bool), shape)).shape
    if kind in ("image", "audio") and len(shape) == 2:
        return kind, (1, *shape)
    if kind == "image" and len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3):
        return kind, (shape[2], *shape[:2])
    return kind, shape


def told_of_axes(modality: Modality, options: ReadOptions) -> str:
    """Say how a sequence was read that may have its axes the other way round; empty where there is no doubt."""
    if modality.kind != "sequence" or modality.shape[0] <= modality.shape[1]:
        return ""
    if options.of("kinds", modality.name, "") == "sequence":
        return ""
    channels, steps = modality.shape
    return (
        f"'{modality.name}' is read as sequences, channels by steps {channels} x {steps}: swap its last two axes if "
        f"they are steps by channels; if not, say kinds: {{{modality.name}: sequence}}, or image (in bench: --kind)"
    )


def picture_scale(kind: str, dtype: str) -> float:
    """Give 1/255 for pictures of 8 bits, else 1."""
    return 1 / 255 if kind == "image" and dtype == "uint8" else 1.0


def array_modality(name: str, array: np.ndarray, options: ReadOptions) -> tuple[np.ndarray, Modality]:
    """Bring an array (n, ...) to a form that can be stored, and say what it is.

    One axis a sample makes vectors (n, d), two make sequences (n, c, t) or, for uint8, bool and squares, grey pictures
    (n, h, w), three make pictures (n, c, h, w) or (n, h, w, c) where only the last axis can be one of colours, four
    make clips (n, t, c, h, w) or (n, t, h, w, c), whose frames become channels (n, t c, h, w). `kinds` says otherwise.

    Returns:
        The array (n, *shape), uint8, int16, float16 or float32, and its modality, not yet fitted.

    Raises:
        DataError: If it holds no real numbers or has too few or too many axes.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"'{name}': holds {array.dtype}, not real numbers")
    kind, shape = _form(name, array.shape[1:], array.dtype, options)
    if not kind:
        one = "; where each pair has one number, its shape is (n, 1)" if array.ndim == 1 else ""
        raise DataError(f"'{name}': an array of shape {array.shape} is no kind of modality{one}")
    if array.ndim == 3 and len(shape) == 3:
        array = array[:, None]
    elif array.ndim == 5 and len(shape) == 3:
        array = fold_clip(array)
    elif array.shape[1:] != shape:
        array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    try:
        array = storable(array)
    except OverflowError as error:
        raise DataError(f"'{name}': {error}") from None
    dtype: Any = str(array.dtype)
    return array, Modality(name=name, kind=kind, shape=shape, dtype=dtype, scale=picture_scale(kind, dtype))


def storable(array: np.ndarray) -> np.ndarray:
    """Convert to uint8, int16, float16 or float32, the smallest that keeps the numbers (float64 is rounded).

    Raises:
        OverflowError: If a number is too large for all of them, with the first such.
    """
    if str(array.dtype) in STORED:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.size and array.min() >= -32768 and array.max() <= 32767:
        return array.astype(np.int16)
    with np.errstate(over="ignore"):
        kept = array.astype(np.float32)
    if (over := np.isinf(kept)).any() and (over := over & np.isfinite(array)).any():
        most = np.finfo(np.float32).max
        raise OverflowError(
            f"row {np.argwhere(over)[0][0]} holds {array[over][0]:.3g}; samples are kept as float32, up to {most:.3g}. "
            "Scale them down"
        )
    return kept
