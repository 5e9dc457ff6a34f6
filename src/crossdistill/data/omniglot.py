"""Omniglot's pictures and pen movements, small enough to ship: the encodings, and the two sets that use them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from PIL import Image

from crossdistill.data.dataset import PairedDataset
from crossdistill.data.modality import Modality
from crossdistill.errors import DataError, suggest

LICENCE = "MIT"
ATTRIBUTION = (
    "B. Lake, R. Salakhutdinov, J. Tenenbaum: Human-level concept learning through probabilistic program induction, "
    "Science 350 (2015); Copyright (c) 2015 Brenden Lake"
)
LABELS = ("character", "alphabet")


def small_arrays(data: Mapping[str, np.ndarray], *, size: int = 28, points: int = 64) -> dict[str, np.ndarray]:
    """Make the small encodings from the set's own arrays.

    Args:
        data: Of omniglot.npz: pictures as packed bits, pen movements as one long path with offsets.
        size: Height and width of the pictures in pixels, by area average.
        points: Steps of the pen's path.

    Returns:
        `image` (n, 1, size, size) uint8, 255 = ink; `pen` (n, 3, points) int16 in hundredths: x and y in pixels of the
        105-pixel canvas, and whether the pen came there on the paper; `character`, `alphabet`, `drawer`, `split` and
        the names.
    """
    height, width = (int(v) for v in data["image_shape"])
    bits = np.unpackbits(data["image_bits"], axis=1)[:, : height * width].reshape(-1, height, width)
    pictures = [Image.fromarray(ink * np.uint8(255)).resize((size, size), Image.Resampling.BOX) for ink in bits]
    offsets = data["offsets"]
    paths = [
        resample_pen(data["xy"][start:stop], data["stroke"][start:stop], points) for start, stop in pairwise(offsets)
    ]
    kept = ("character", "alphabet", "drawer", "split", "character_names", "alphabet_names")
    return {
        "image": np.stack([np.asarray(p) for p in pictures])[:, None],
        "pen": np.stack(paths),
        **{name: data[name] for name in kept},
    }


def resample_pen(xy: np.ndarray, stroke: np.ndarray, points: int) -> np.ndarray:
    """Bring a drawing to a fixed number of points, evenly along the ink.

    Every stroke gets points by its share of the length, two at least; the pen came to its first one in the air.

    Args:
        xy: (t, 2) in hundredths of a pixel.
        stroke: Number of the stroke (t,), not falling.
        points: How many to give, at least twice the number of strokes.

    Returns:
        x, y and pen (0 or 100) as (3, points) int16.
    """
    parts = np.split(xy.astype(np.float64), np.flatnonzero(np.diff(stroke)) + 1)
    ways = [np.r_[0, np.cumsum(np.hypot(*np.diff(part, axis=0).T))] for part in parts]
    lengths = np.array([way[-1] for way in ways])
    shares = lengths / lengths.sum() if lengths.sum() else np.full(len(parts), 1 / len(parts))
    room = shares * (points - 2 * len(parts))
    counts = 2 + np.floor(room).astype(int)
    for k in np.argsort(np.floor(room) - room, kind="stable")[: points - counts.sum()]:
        counts[k] += 1  # the largest remainders take what rounding left
    out: list[np.ndarray] = []
    for part, way, count in zip(parts, ways, counts, strict=True):
        at = np.arange(int(count)) * (float(way[-1]) / (int(count) - 1))
        down = np.full(count, 100.0)
        down[0] = 0
        x, y = (np.asarray(np.interp(at, way, part[:, k]), dtype=np.float64) for k in (0, 1))
        out.append(np.stack([x, y, down]))
    return np.round(np.concatenate(out, axis=1)).astype(np.int16)


def omniglot_pairs(arrays: Mapping[str, np.ndarray], *, name: str, label: str) -> PairedDataset:
    """Make the data set from small arrays.

    Args:
        arrays: What `small_arrays` gave.
        name: Of the data set.
        label: "character" (242 classes) or "alphabet" (8).

    Raises:
        DataError: If the label is unknown.
    """
    if label not in LABELS:
        raise DataError(f"{name}: no label is called '{label}'{suggest(label, LABELS)}")
    image, pen = arrays["image"], arrays["pen"]
    train = np.flatnonzero(arrays["split"] == 0)
    modalities = {
        "image": Modality(
            name="image",
            kind="image",
            shape=tuple(image.shape[1:]),
            dtype="uint8",
            scale=1 / 255,
            channels=("grey",),
        ),
        "pen": Modality(
            name="pen",
            kind="sequence",
            shape=tuple(pen.shape[1:]),
            dtype="int16",
            scale=0.01,
            channels=("x", "y", "pen"),
        ),
    }
    stored = {"image": image, "pen": pen}
    return PairedDataset(
        stored,
        {key: modality.fitted(stored[key], train) for key, modality in modalities.items()},
        name=name,
        label=arrays[label],
        class_names=tuple(str(word) for word in arrays[f"{label}_names"]),
        group=arrays["drawer"],
        split=arrays["split"],
        licence=LICENCE,
        attribution=ATTRIBUTION,
        about="4840 characters of 8 alphabets by 20 people, as picture and as pen movement; split by person.",
    )
