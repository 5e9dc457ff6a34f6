"""Features of a data set, and the few labelled samples that evaluation may see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Whole, label_column
from crossdistill.networks.base import as_outputs


def embed(encoder: nn.Module, samples: Iterable[Tensor]) -> NDArray[np.float32]:
    """Encode batches in eval mode and without gradient; every submodule's mode is put back.

    Args:
        encoder: Module that gives features (b, d), feature maps to be pooled, or `Outputs`.
        samples: Batches (b, ...), on any device; they are moved to the encoder's.

    Returns:
        Features (n, d) float32, in the order of the samples.

    Raises:
        DataError: If there are no samples, or a feature is not finite.
        NetworkError: If the encoder gives no features.
    """
    first = next(encoder.parameters(), None)
    modes = [(part, part.training) for part in encoder.modules()]
    rows: list[NDArray[np.float32]] = []
    encoder.eval()
    try:
        with torch.no_grad():
            for batch in samples:
                batch = batch if first is None else batch.to(first.device)
                rows.append(as_outputs(encoder(batch)).features.float().cpu().numpy())
    finally:
        for part, mode in modes:
            part.training = mode
    if not rows or not sum(map(len, rows)):
        raise DataError("there is nothing to encode: the samples are empty")
    features = np.concatenate(rows)
    if not np.isfinite(features).all():
        bad = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise DataError(f"the feature of sample {bad} is not finite; the encoder's weights or the sample are broken")
    return features


def few_labels(
    label: ArrayLike,
    k: int | None,
    seed: int,
    names: Sequence[str] = (),
    *,
    fewer: Literal["refuse", "take"] = "refuse",
) -> Whole:
    """Choose k labelled samples of each class: a pure function of (label, k, seed).

    One permutation of all labelled samples decides, so that with one seed the choice for k = 1 lies inside the one for
    k = 5, and rows without label change nothing.

    Args:
        label: Classes (n,), of any type that can be sorted; the number -1 is no label and is never chosen.
        k: Samples of each class, >= 1; None takes all that are labelled.
        seed: >= 0.
        names: Name of class c at place c, for the message.
        fewer: Whether a class that has fewer is refused, or gives all it has; some class must have k.

    Returns:
        Positions (k * classes,), ascending.

    Raises:
        DataError: If a class (with "take": every class) has fewer than k labelled samples, or there are none at all.
        ConfigError: If k or the seed is out of range.
    """
    column = label_column("label", label)
    if (k is not None and k < 1) or seed < 0:
        raise ConfigError(f"few labels need k >= 1 (or none for all) and a seed >= 0; received k {k}, seed {seed}")
    known = np.flatnonzero(column != -1) if column.dtype.kind in "iuf" else np.arange(len(column))
    if not len(known):
        raise DataError(f"none of {len(column)} samples is labelled")
    if k is None:
        return known.astype(np.int64)
    classes, code, count = np.unique(column[known], return_inverse=True, return_counts=True)
    if (count.max() if fewer == "take" else count.min()) < k:
        poor = int(count.argmin())
        name = str(classes[poor])
        if column.dtype.kind in "iu" and 0 <= classes[poor] < len(names):
            name = f"'{names[classes[poor]]}' ({name})"
        raise DataError(
            f"class {name} has {count[poor]} labelled samples, {k} were asked for; label more or ask for fewer"
        )
    order = np.random.default_rng(seed).permutation(len(known))
    grouped = order[np.argsort(code[order], kind="stable")]  # class by class, each in the permutation's order
    start = np.concatenate([[0], count.cumsum()[:-1]])
    place = np.arange(len(known)) - np.repeat(start, count)
    return np.sort(known[grouped[place < k]]).astype(np.int64)
