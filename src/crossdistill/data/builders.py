"""How the named sets are made from their files: arrays in, pairs out, standardised by training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from crossdistill.data.dataset import PairedDataset
from crossdistill.data.decode import log_mel
from crossdistill.data.modality import Modality
from crossdistill.data.omniglot import omniglot_pairs, small_arrays
from crossdistill.data.probe import storable
from crossdistill.errors import DataError, suggest

Files = Mapping[str, Mapping[str, np.ndarray]]
"""Arrays of each file of a set, by the file's name without its ending."""

RATE = 8000
"""Sampling rate of the sounds of `grid_s1` and `avdigits` in Hz."""


def _pairs(arrays: Mapping[str, np.ndarray], modalities: Sequence[Modality], **facts: Any) -> PairedDataset:
    """Fit modalities on the training rows and make the data set."""
    train = np.flatnonzero(facts["split"] == 0)
    return PairedDataset(arrays, {m.name: m.fitted(arrays[m.name], train) for m in modalities}, **facts)


def _picture(name: str, shape: Sequence[int], channels: tuple[str, ...] = ()) -> Modality:
    return Modality(name=name, kind="image", shape=tuple(shape), dtype="uint8", scale=1 / 255, channels=channels)


def mfeat(files: Files, *, modalities: Sequence[str] = ("fou", "fac", "kar", "pix", "zer", "mor")) -> PairedDataset:
    """Read six feature views of handwritten digits; `modalities` chooses among them."""
    data = files["mfeat"]
    known = ("fou", "fac", "kar", "pix", "zer", "mor")
    for name in modalities:
        if name not in known:
            raise DataError(f"mfeat has no modality '{name}'{suggest(name, known)}")
    arrays = {name: storable(data[name]) for name in modalities}
    kinds: dict[str, Any] = {name: str(array.dtype) for name, array in arrays.items()}
    return _pairs(
        arrays,
        [Modality(name=n, kind="vector", shape=tuple(a.shape[1:]), dtype=kinds[n]) for n, a in arrays.items()],
        label=data["label"],
        split=data["split"],
    )


def emoji(files: Files) -> PairedDataset:
    """Read colour drawings and line drawings of symbols; the label is the symbol's broad group."""
    data = files["emoji"]
    arrays = {"colour": np.ascontiguousarray(data["colour"].transpose(0, 3, 1, 2)), "line": data["line"][:, None]}
    return _pairs(
        arrays,
        [_picture("colour", (3, 64, 64), ("red", "green", "blue")), _picture("line", (1, 64, 64), ("grey",))],
        label=data["group"],
        class_names=tuple(str(name) for name in data["group_names"]),
        split=data["split"],
    )


def omniglot(files: Files, *, label: str = "character", size: int = 28, points: int = 64) -> PairedDataset:
    """Read pictures and pen movements; options as in `small_arrays`, `label` is "character" or "alphabet"."""
    return omniglot_pairs(small_arrays(files["omniglot"], size=size, points=points), name="omniglot", label=label)


def omniglot_small(files: Files, *, label: str = "character") -> PairedDataset:
    """Read the shipped set: `omniglot` with its default encodings."""
    return omniglot_pairs(files["omniglot-small"], name="omniglot-small", label=label)


def grid_s1(files: Files, *, slot: str = "digit", frames: int = 16, mels: int = 40) -> PairedDataset:
    """Cut one word out of each utterance: lips as (frames, 24, 40) pictures at 25 a second, and the sound as a log-mel.

    Args:
        files: Of the set.
        slot: Which word, and so the classes: command, colour, preposition, letter, digit or adverb.
        frames: Pictures a word; 16 are 0.64 s.
        mels: Bands of the spectrogram.
    """
    facts, video, audio = files["labels"], files["video"], files["audio"]
    slots = [str(s) for s in facts["slots"]]
    if slot not in slots:
        raise DataError(f"grid_s1 has no slot '{slot}'{suggest(slot, slots)}")
    k = slots.index(slot)
    middle: np.ndarray = facts["word_times"][:, k].mean(axis=1) * 25
    lengths = np.diff(video["offsets"])
    if not 1 <= frames <= lengths.min():
        raise DataError(f"grid_s1: frames must be in 1..{lengths.min()}, the shortest utterance; received {frames}")
    latest: np.ndarray = lengths - frames
    start = np.minimum(np.maximum(np.round(middle - frames / 2), 0), latest).astype(int)
    lips = video["frames"][(video["offsets"][:-1] + start)[:, None] + np.arange(frames)]
    step = RATE // 25
    waves = audio["audio"][(audio["offsets"][:-1] + start * step)[:, None] + np.arange(frames * step)]
    sound = _log_mels(waves, mels)
    return _pairs(
        {"audio": sound, "lips": lips},
        [_sound("audio", sound, frames / 25, mels), _picture("lips", lips.shape[1:])],
        label=facts["labels"][:, k],
        class_names=tuple(str(name) for name in facts[f"names_{slot}"]),
        split=facts["split"],
    )


def _log_mels(waves: np.ndarray, mels: int) -> np.ndarray:
    """Turn int16 waves (n, t) into log-mels (n, 1, mels, frames) float16."""
    starts = range(0, len(waves), 512)
    parts = (torch.from_numpy(waves[s : s + 512]).float() / 32768 for s in starts)
    found = [log_mel(part, rate=RATE, mels=mels).half() for part in parts]
    return torch.cat(found)[:, None].numpy()


def _sound(name: str, array: np.ndarray, seconds: float, mels: int) -> Modality:
    decode = {"rate": RATE, "seconds": seconds, "mels": mels}
    return Modality(name=name, kind="audio", shape=tuple(array.shape[1:]), dtype="float16", decode=decode)


def avdigits(
    files: Files,
    *,
    train: int = 6000,
    validation: int = 1000,
    test: int = 2000,
    mels: int = 40,
    speakers: str = "shared",
    seed: int = 0,
) -> PairedDataset:
    """Match written digits with spoken ones by class.

    Every image gets a recording of its digit, drawn at random from recordings of its own split (numbers 10-49 of each
    speaker and digit for training, 5-9 for validation, 0-4, the source's own test part, for the test), so that no sound
    is on both sides; recordings repeat within a split.

    Args:
        files: Of the set.
        train: Training pairs, at most 55000.
        validation: Validation pairs, at most 5000.
        test: Test pairs, at most 10000.
        mels: Bands of the spectrogram.
        speakers: "shared" by all splits, or "left_out": the test has all recordings of two speakers whom training and
            validation never hear, which is harder and closer to practice.
        seed: Of the matching.
    """
    if speakers not in ("shared", "left_out"):
        raise DataError(f"avdigits: speakers are shared or left_out; received '{speakers}'")
    mnist, fsdd = files["mnist"], files["fsdd"]
    for word, value, most in (("train", train, 55000), ("validation", validation, 5000), ("test", test, 10000)):
        if not 1 <= value <= most:
            raise DataError(f"avdigits: {word} must be in 1..{most}; received {value}")
    chosen = np.r_[:train, 55000 : 55000 + validation]
    images = np.concatenate([mnist["train_images"][chosen], mnist["test_images"][:test]])[:, None]
    label = np.concatenate([mnist["train_labels"][chosen], mnist["test_labels"][:test]]).astype(np.int64)
    split = np.repeat([0, 1, 2], [train, validation, test])
    part = np.where(fsdd["index"] < 5, 2, np.where(fsdd["index"] < 10, 1, 0))
    if speakers == "left_out":
        part = np.where(fsdd["speaker"] >= 4, 2, np.where(fsdd["index"] < 10, 1, 0))
    rng = np.random.default_rng(seed)
    recording = np.empty(len(label), dtype=np.int64)
    for s in range(3):
        for digit in range(10):
            rows = np.flatnonzero((split == s) & (label == digit))
            recording[rows] = rng.choice(np.flatnonzero((part == s) & (fsdd["digit"] == digit)), len(rows))
    length = round(0.64 * RATE)  # the longest 5 % of the recordings are cut, the others end in silence
    waves = np.zeros((len(fsdd["digit"]), length), dtype=np.int16)
    for i, (first, last) in enumerate(zip(fsdd["offsets"][:-1], fsdd["offsets"][1:], strict=True)):
        count = min(last - first, length)
        waves[i, :count] = fsdd["audio"][first : first + count]
    sound = _log_mels(waves, mels)[recording]
    return _pairs(
        {"image": images, "audio": sound},
        [_picture("image", (1, 28, 28), ("grey",)), _sound("audio", sound, 0.64, mels)],
        label=label,
        split=split,
    )


def pothole(files: Files, *, patch: int = 32, least: float = 0.1) -> PairedDataset:
    """Cut road scenes into square patches: depth and colour, with the label whether there is a pothole.

    Depth is the disparity minus the scene's median (its scale differs from scene to scene). Patches with a little of a
    pothole, more than nothing and less than `least`, are left out. Segmentation of whole scenes comes later.

    Args:
        files: Of the set.
        patch: Side of the patches in pixels, a divisor of 64 and so of 192 and 320.
        least: Share of a patch's pixels from which it shows a pothole.
    """
    data = files["pothole"]
    if patch < 4 or 64 % patch or not 0 < least <= 1:
        raise DataError(f"pothole: patch must divide 64, least be in (0, 1]; received {patch} and {least:g}")
    depth = data["disparity"].astype(np.float32)
    depth -= np.median(depth, axis=(1, 2), keepdims=True)
    pieces = {
        "depth": _cut(np.round(depth).astype(np.int16)[:, None], patch),
        "rgb": _cut(data["rgb"].transpose(0, 3, 1, 2), patch),
    }
    share = _cut(data["mask"][:, None], patch).mean(axis=(1, 2, 3))
    kept = np.flatnonzero((share == 0) | (share >= least))
    scene = np.repeat(np.arange(len(depth)), len(share) // len(depth))[kept]
    return _pairs(
        {name: np.ascontiguousarray(piece[kept]) for name, piece in pieces.items()},
        [
            Modality(name="depth", kind="image", shape=(1, patch, patch), dtype="int16", channels=("disparity",)),
            _picture("rgb", (3, patch, patch), ("red", "green", "blue")),
        ],
        label=(share[kept] > 0).astype(np.int64),
        class_names=("road", "pothole"),
        group=data["scene"][scene],
        split=data["split"][scene],
    )


def _cut(images: np.ndarray, patch: int) -> np.ndarray:
    """Cut (n, c, h, w) into (n * h/patch * w/patch, c, patch, patch), patches of an image one after the other."""
    n, c, h, w = images.shape
    tiles = images.reshape(n, c, h // patch, patch, w // patch, patch)
    return tiles.transpose(0, 2, 4, 1, 3, 5).reshape(-1, c, patch, patch)
