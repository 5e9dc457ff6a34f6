"""One file to one array: pictures by Pillow, sounds by soundfile and torch.stft, arrays by numpy."""

from __future__ import annotations

import functools
import math
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import DataError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
SOUNDS = frozenset({".wav", ".flac", ".ogg", ".aiff", ".aif"})
ARRAYS = frozenset({".npy"})
FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "GIF",
    "TIFF",
    "WEBP",
    "PPM",
    "MPO",
    "AVIF",
    "JPEG2000",
    "DIB",
    "ICO",
    "PCX",
    "SGI",
    "TGA",
)
"""What Pillow may take a picture for, whatever its ending; for PostScript it would start Ghostscript, a program."""

WINDOW, HOP = 0.025, 0.010
"""Length and step of a spectrogram's window in seconds: 25 ms and 10 ms, the usual ones for speech."""

HERTZ = (1, 10_000_000)
"""Rates of sounds that are read: from seismographs to ultrasound; other ones are damage."""

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are broken, or would unpack to something enormous."""


def decode_file(path: Path, *, kind: str, shape: tuple[int, ...], dtype: str, options: Mapping[str, Any]) -> np.ndarray:
    """Read one file as a sample.

    Args:
        path: The file; its ending says what it is.
        kind: The modality's kind.
        shape: Of the sample; pictures are resized (stretched), sequences resampled in time, sounds cut or padded.
        dtype: Of the stored sample.
        options: The modality's decode parameters.

    Returns:
        The sample, of that shape and dtype.

    Raises:
        DataError: If the file is missing, broken or of another kind; the message names it.
    """
    ending = path.suffix.lower()
    if ending in ARRAYS:
        array = load_array(path)
        if kind == "image" and array.dtype == np.uint8 and dtype.startswith("float"):
            raise DataError(
                f"{path}: numbers of 8 bits in 0..255, where the others are fractions ({dtype}); convert it"
            )
        _check_fits(path, array, dtype)
        sample = _fit_array(path, array, kind, shape)
    elif kind == "image" and ending in PICTURES:
        image = _pixels(path, channels=shape[0])
        if image.mode == "F":
            if dtype == "uint8":
                raise DataError(f"{path}: a picture of more than 8 bits among pictures of 8; convert it or the others")
            _check_fits(path, np.asarray(image), dtype)
        elif dtype != "uint8":
            raise DataError(
                f"{path}: a picture of 8 bits, where the others have more ({dtype}); convert it or the others"
            )
        sample = _stretched(image, size=shape[1:], channels=shape[0])
    elif kind == "audio" and ending in SOUNDS:
        wave = read_sound(path, rate=int(options["rate"]), seconds=float(options["seconds"]))
        _check_fits(path, wave.numpy(), "float32")
        sample = log_mel(wave[None], rate=int(options["rate"]), mels=int(options["mels"])).numpy()
        if check_finite(sample):
            raise DataError(f"{path}: holds {float(wave.abs().max()):.3g}, where sounds are in -1..1; scale it down")
    else:
        raise DataError(f"{path}: a file ending in '{ending}' cannot be read as {kind}")
    if np.dtype(dtype).kind in "iu" and sample.dtype.kind == "f":
        sample = np.rint(sample)  # what resizing and resampling made of whole numbers
    return sample.astype(dtype)


def check_finite(sample: np.ndarray) -> str:
    """Say what is not finite in a sample, or nothing."""
    if sample.dtype.kind != "f":
        return ""
    wrong = int(sample.size - np.isfinite(sample).sum())
    return f"{wrong} of {sample.size} numbers are NaN or infinite" if wrong else ""


def _check_fits(path: Path, array: np.ndarray, dtype: str) -> None:
    """Refuse numbers that would be other ones as `dtype`; what floats round is no matter.

    Raises:
        DataError: Naming the file and the first of them.
    """
    wrong = check_finite(array)
    if wrong:
        raise DataError(f"{path}: {wrong}")
    if str(array.dtype) == dtype:
        return
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(array.astype(dtype))
        allowed = f"numbers up to {np.finfo(dtype).max:.3g}"
    else:
        limits = np.iinfo(dtype)
        bad = (array < limits.min) | (array > limits.max)
        if array.dtype.kind == "f":
            bad |= array != np.rint(array)
        allowed = f"whole numbers in {limits.min}..{limits.max}"
    if bad.any():
        raise DataError(
            f"{path}: holds {array[bad][0]:.9g}; samples are stored as {dtype} here, {allowed}, as the first files "
            "were. Convert this file or the others"
        )


def check_plain(path: Path) -> None:
    """Refuse what is there and no file: a folder, a pipe, where a reader may wait for ever, a device without an end.

    Raises:
        DataError: Naming it.
        OSError: If it is not there, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}, not a file")


def why_unread(error: Exception) -> str:
    """Say why numpy has not read a file, without its advice to load what is not safe."""
    if "pickle" not in str(error):
        return str(error)
    objects = "holds Python objects, which are never loaded"
    # numpy takes any file that is not its own for Python objects
    return f"it {objects}" if "Object arrays" in str(error) else f"it is no file of numpy's, or {objects}"


def load_array(path: Path, *, words: bool = False) -> np.ndarray:
    """Read a NPY file of numbers, or of `words` too; nothing is ever unpickled.

    Raises:
        DataError: If it is missing, broken, or holds something else.
    """
    try:
        check_plain(path)
        array: Any = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except DataError:
        raise
    except Exception as error:  # numpy raises a dozen kinds for broken files, a tokenizer's among them
        raise DataError(f"{path}: not an array that can be read: {why_unread(error)}") from None
    if getattr(getattr(array, "dtype", None), "kind", "") not in tuple("biufUS" if words else "biuf"):
        what = "real numbers or words" if words else "real numbers"
        raise DataError(f"{path}: holds {getattr(array, 'dtype', 'an archive')}, not an array of {what}")
    return array


def _fit_array(path: Path, array: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bring a sample from a NPY file to its shape; only time may differ, and colours may come last."""
    if kind == "image" and array.ndim == 4:
        array = fold_clip(array)
    if kind == "sequence" and array.ndim == 2 and array.shape[0] == shape[0] and array.shape[1] != shape[1]:
        return resample_time(array, shape[1])
    if kind in ("image", "audio") and array.shape == shape[1:] and shape[0] == 1:
        return array[None]
    if kind == "image" and shape[0] in (1, 3) and array.shape == (*shape[1:], shape[0]) != shape:
        return array.transpose(2, 0, 1)
    if array.shape != shape:
        raise DataError(f"{path}: the sample has shape {array.shape}, the others {shape}")
    return array


def fold_clip(clips: np.ndarray) -> np.ndarray:
    """Make clips (..., t, c, h, w) or, with 1 or 3 colours, (..., t, h, w, c) pictures (..., t c, h, w)."""
    if clips.shape[-1] in (1, 3):
        clips = np.moveaxis(clips, -1, -3)
    return np.ascontiguousarray(clips).reshape(*clips.shape[:-4], -1, *clips.shape[-2:])


def resample_time(sequence: np.ndarray, length: int) -> np.ndarray:
    """Bring (c, t) to (c, length) float32 by linear interpolation, both ends kept."""
    old, new = np.linspace(0, 1, sequence.shape[1]), np.linspace(0, 1, length)
    return np.stack([np.asarray(np.interp(new, old, channel), dtype=np.float32) for channel in sequence])


def picture_facts(path: Path) -> tuple[int, int, int, str]:
    """Give height, width, channels (1 or 3) and stored dtype of a picture, reading its header only."""
    with _opened(path) as image:
        deep = image.mode.startswith(("I", "F"))
        grey = deep or image.mode in ("1", "L", "LA")
        try:
            swap = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # these orientations lie on their side
        except _BROKEN as error:  # of a PNG without it all is read
            raise DataError(f"{path}: a broken picture: {error}") from None
        width, height = image.size[::-1] if swap else image.size
        return height, width, 1 if grey else 3, "float32" if deep else "uint8"


def read_picture(path: Path, *, size: tuple[int, ...], channels: int) -> np.ndarray:
    """Read a picture as (channels, h, w), uint8, or float32 where it has more than 8 bits.

    It is turned upright, put on white where transparent, and stretched to `size`: by area average where it shrinks,
    bilinearly where it grows.

    Args:
        path: The file.
        size: (h, w) in pixels.
        channels: 1 for grey, 3 for colour.

    Raises:
        DataError: If the file is missing or broken.
    """
    return _stretched(_pixels(path, channels=channels), size=size, channels=channels)


def _pixels(path: Path, *, channels: int) -> Image.Image:
    """Read a picture at its own size, upright and on white: mode "L" or "RGB", or "F" for more than 8 bits."""
    with _opened(path) as opened:
        try:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):
                return image.convert("F")
            if image.mode in ("P", "LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("L" if channels == 1 else "RGB")
        except _BROKEN as error:
            raise DataError(f"{path}: a broken picture: {error}") from None


def _stretched(image: Image.Image, *, size: tuple[int, ...], channels: int) -> np.ndarray:
    height, width = size
    if (image.height, image.width) != (height, width):
        shrinks = image.height >= height and image.width >= width
        image = image.resize((width, height), Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return np.repeat(pixels[None], channels, axis=0)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@functools.cache
def _formats() -> tuple[str, ...]:
    """Give those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(path: Path) -> Image.Image:
    try:
        check_plain(path)
        return Image.open(path, formats=_formats())
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except _BROKEN as error:
        raise DataError(f"{path}: not a picture that Pillow can read: {error}") from None


def sound_facts(path: Path) -> tuple[int, float]:
    """Give the sampling rate in Hz and the length in seconds of a sound, reading its header only."""
    soundfile = _soundfile()
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"{path}: not a sound that can be read: {error}") from None
    return int(info.samplerate), float(info.duration)


def read_sound(path: Path, *, rate: int, seconds: float) -> Tensor:
    """Read a sound as one channel (rate * seconds,) float32: mixed down, resampled, cut or padded with silence.

    Raises:
        DataError: If the file is missing or broken, or soundfile is not installed.
    """
    soundfile = _soundfile()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with soundfile.SoundFile(str(path)) as file:
            own = int(file.samplerate)
            if not HERTZ[0] <= own <= HERTZ[1]:
                raise DataError(
                    f"{path}: a rate of {own} Hz; sounds have {HERTZ[0]} to {HERTZ[1]}. The file is damaged"
                )
            # a second more than is kept, for the filter that resamples; hours of the rest need no memory
            wave = file.read(math.ceil(own * (seconds + 1)), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"{path}: not a sound that can be read: {error}") from None
    if not len(wave):
        raise DataError(f"{path}: the sound is empty")
    mono = torch.from_numpy(wave.mean(axis=1))
    if own != rate:
        mono = _resample(mono, own, rate)
    length = round(rate * seconds)
    return F.pad(mono, (0, max(0, length - len(mono))))[:length]


def _soundfile() -> Any:
    """Import soundfile when a sound is read, not before: it is an extra."""
    try:
        import soundfile
    except ImportError:
        raise DataError("reading sounds needs soundfile; install it with: pip install 'crossdistill[audio]'") from None
    return soundfile


def _resample(wave: Tensor, old: int, new: int) -> Tensor:
    """Resample (t,) by a polyphase filter (scipy's Kaiser window)."""
    from scipy.signal import resample_poly  # 0.3 s to import, and most data sets need none

    common = math.gcd(old, new)
    return torch.from_numpy(np.asarray(resample_poly(wave.numpy(), new // common, old // common), dtype=np.float32))


def frames_of(rate: int, seconds: float) -> int:
    """Give the number of frames of a spectrogram of `seconds` at `rate` Hz."""
    return round(rate * seconds) // round(rate * HOP) + 1


def log_mel(waves: Tensor, *, rate: int, mels: int) -> Tensor:
    """Turn waves (b, t) float32 in [-1, 1] into log-mel spectrograms (b, mels, frames) float32.

    Power of a Hann window of 25 ms every 10 ms, in `mels` triangular bands that are equally spaced on the mel scale
    (2595 log10(1 + f / 700)) from 0 Hz to rate / 2; the natural logarithm of the power, floored at -80 dB of full
    scale so that silence is finite.
    """
    length = round(rate * WINDOW)
    size = 1 << (length - 1).bit_length()
    window = torch.hann_window(length)
    spectrum = torch.stft(
        waves, size, round(rate * HOP), length, window, center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum.abs().square() / window.sum().square()
    return torch.log(torch.clamp(_mel_bands(rate, size, mels) @ power, min=1e-8))


@functools.lru_cache(maxsize=8)
def _mel_bands(rate: int, size: int, mels: int) -> Tensor:
    """Give the triangular bands (mels, size // 2 + 1); each has unit sum, so that no band is empty or dominates."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    tones = torch.arange(size // 2 + 1, dtype=torch.float64) * rate / size
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bands = torch.clamp(torch.minimum((tones - low) / (middle - low), (high - tones) / (high - middle)), min=0)
    nearest = (tones - middle).abs().argmin(dim=1)
    empty = bands.sum(dim=1) == 0  # a band narrower than the distance of two tones takes the nearest tone
    bands[empty, nearest[empty]] = 1.0
    return (bands / bands.sum(dim=1, keepdim=True)).float()
