"""Small pictures of raw samples, of any kind, as PNG data that a page carries inside itself."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from crossdistill.report.evidence import Modality

SIDE = 128  # longest side of a stored picture in pixels; about the size it is shown at
_LINES = ("#1f6feb", "#c26a00", "#137a3c", "#b42318", "#7a4fbf", "#0f766e", "#9d174d", "#475569")
_OVERSAMPLE = 3  # lines are drawn larger and reduced: Pillow does not smooth them

Array = NDArray[np.float64]


def draw_sample(sample: NDArray[Any], modality: Modality, side: int = SIDE) -> str:
    """Draw one sample the way its modality is looked at.

    Args:
        sample: The raw array, without a batch dimension. Image (h, w), (c, h, w) or (h, w, c), video (t, c, h, w)
            by its middle frame; sequence (c, t), or (t, c) if the channels' names say so; audio: wave
            (n,) or (1, n), or spectrogram (bands, t) or (1, bands, t); vector (d,).
            Values that are not finite count as 0.
        modality: Its kind and channels; an unknown kind is drawn as a vector.
        side: Longest side of the picture in pixels.

    Returns:
        A "data:image/png;base64,…" address.
    """
    if sample.size == 0:
        return _encode(Image.new("RGB", (SIDE, SIDE), "white"))
    draw = {"image": _image, "sequence": _sequence, "audio": _audio}.get(modality.kind, _vector)
    values = np.nan_to_num(np.asarray(sample, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    picture = draw(values, modality)
    if max(picture.size) > side:
        height, width = (max(1, round(n * side / max(picture.size))) for n in (picture.height, picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return _encode(picture)


def _encode(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    if picture.mode == "RGB":  # 256 colours are enough at this size and a third of the bytes
        picture = picture.quantize(256, method=Image.Quantize.MEDIANCUT)
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _fit(picture: Image.Image) -> Image.Image:
    """Shrink to SIDE smoothly; enlarge small pictures by a whole factor, so that their pixels stay what they are."""
    width, height = picture.size
    scale = SIDE / max(width, height)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return picture.resize(size, Image.Resampling.LANCZOS)
    return picture.resize((width * int(scale), height * int(scale)), Image.Resampling.NEAREST)


def _to_bytes(values: Array) -> NDArray[np.uint8]:
    """Map values to 0..255: kept where they already are bytes or fractions, else stretched from least to greatest."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and 1 < high <= 255 and not np.any(values % 1):
        low, high = 0.0, 255.0
    span = high - low or 1.0
    return np.clip((values - low) / span * 255 + 0.5, 0, 255).astype(np.uint8)


def _image(values: Array, modality: Modality) -> Image.Image:
    del modality
    while values.ndim > 3:
        values = values[len(values) // 2]
    if values.ndim == 3:
        if values.shape[0] in (1, 3, 4) or values.shape[-1] not in (1, 3, 4):
            values = np.moveaxis(values, 0, -1)
        values = values[..., :3] if values.shape[-1] in (3, 4) else values.mean(-1)
    if values.ndim < 2:
        return _vector(values, Modality(name="", kind="vector"))
    return _fit(Image.fromarray(_to_bytes(values)))


def _time_first(values: Array, channels: int) -> Array:
    """Turn a sequence (c, t) into (t, c); one that is (t, c) already is known by its number of channels."""
    if values.ndim != 2:
        return values.reshape(len(values), -1) if values.ndim > 2 else values.reshape(-1, 1)
    rows, columns = values.shape
    return values if columns == channels != rows else values.T


def _sequence(values: Array, modality: Modality) -> Image.Image:
    values = _time_first(values, len(modality.channels))
    named = [channel.lower() for channel in modality.channels]
    if len(named) == values.shape[1]:
        for x, y, steps in (("x", "y", False), ("dx", "dy", True)):
            if x in named and y in named:
                path = values[:, [named.index(x), named.index(y)]]
                pen = values[:, named.index("pen")] if "pen" in named else np.ones(len(path))
                return _pen(np.cumsum(path, axis=0) if steps else path, pen)
    if values.shape[1] > len(_LINES):
        return _heat(values.T, "viridis")
    return _lines(values)


def _pen(path: Array, pen: Array) -> Image.Image:
    """Draw (t, 2) points, y downwards; the step to a point is in the air where the point's `pen` is 0."""
    side = SIDE * _OVERSAMPLE
    picture = Image.new("L", (side, side), 255)
    level = (float(pen.min()) + float(pen.max())) / 2 if np.ptp(pen) else 0.0  # right for 0/1 and for standardised pens
    down = pen > level
    ink = down | np.append(down[1:], False)  # padding and moves in the air do not count for the size
    if not ink.any():
        return picture.resize((SIDE, SIDE))
    low, high = path[ink].min(0), path[ink].max(0)
    margin = 0.09 * side
    scale = (side - 2 * margin) / (float((high - low).max()) or 1.0)
    points = (path - (low + high) / 2) * scale + side / 2
    canvas = ImageDraw.Draw(picture)
    radius = _OVERSAMPLE * 1.2
    for index in np.flatnonzero(down):
        x, y = (float(value) for value in points[index])
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=20)
        if index:
            canvas.line([*points[index - 1].tolist(), x, y], fill=20, width=round(2 * radius))
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _lines(values: Array) -> Image.Image:
    """Draw (t, c) as c lines on one common scale."""
    width, height = SIDE * _OVERSAMPLE, SIDE * _OVERSAMPLE * 3 // 4
    picture = Image.new("RGB", (width, height), "white")
    canvas = ImageDraw.Draw(picture)
    low, span = float(values.min()), float(np.ptp(values)) or 1.0
    x = np.linspace(0.03, 0.97, len(values)) * width
    for channel in range(values.shape[1]):
        y = (0.95 - 0.9 * (values[:, channel] - low) / span) * height
        points = [value for pair in zip(x.tolist(), y.tolist(), strict=True) for value in pair]
        if len(values) > 1:
            canvas.line(points, fill=_LINES[channel], width=_OVERSAMPLE + 1)
    return picture.resize((SIDE, SIDE * 3 // 4), Image.Resampling.LANCZOS)


def _audio(values: Array, modality: Modality) -> Image.Image:
    """Draw a spectrogram in decibels, low tones below; a wave is first cut into half-overlapping Hann windows."""
    del modality
    values = np.squeeze(values)
    if values.ndim > 2:
        values = values.reshape(-1, *values.shape[-2:]).mean(0)
    if values.ndim == 2 and min(values.shape) > 2:
        return _heat(values[::-1], "magma")
    wave = values.mean(int(np.argmin(values.shape))) if values.ndim == 2 else np.atleast_1d(values)
    size = int(min(256, max(16, 2 ** int(np.log2(max(len(wave) / 16, 16))))))
    wave = np.pad(wave, (0, max(0, size - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[:: size // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    top = float(power.max())
    if top == 0:
        return _heat(np.zeros_like(power.T), "magma")
    floor = top * 1e-7  # 70 dB below the loudest moment is shown as silence
    return _heat(10 * np.log10(np.maximum(power, floor)).T[::-1], "magma")


def _heat(values: Array, colours: str) -> Image.Image:
    low, span = float(values.min()), float(np.ptp(values)) or 1.0
    rgb = (mpl.colormaps[colours]((values - low) / span)[..., :3] * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(rgb).resize((SIDE, SIDE * 3 // 4), Image.Resampling.BILINEAR)


def _vector(values: Array, modality: Modality) -> Image.Image:
    """Draw a strip, blue below zero and red above, or light to dark where nothing is negative."""
    del modality
    flat = values.reshape(1, -1)
    signed = bool((flat < 0).any())
    most = float(np.abs(flat).max()) or 1.0
    scaled = flat / most / 2 + 0.5 if signed else flat / most
    rgb = (mpl.colormaps["RdBu_r" if signed else "Blues"](scaled)[..., :3] * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(rgb).resize((SIDE, SIDE // 4), Image.Resampling.BOX)
