"""Worlds with known truth: data whose shared information is set by hand, to test methods and diagnostics against."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from crossdistill.data.dataset import PairedDataset
from crossdistill.data.modality import Modality
from crossdistill.errors import DataError


def shared_latent(
    *, rho: float = 0.8, n_pairs: int = 4000, n_test: int = 2000, n_validation: int = 500, seed: int = 0
) -> PairedDataset:
    """Two modalities of one latent, of which the target sees a share `rho`.

        mu_c ~ N(0, I_8)     u = mu_y + 0.6 eps               v ~ 1.2 N(0, I_8)
        a = 2 tanh(u A1) A2 + 0.3 eps                         in R^64, the source, "a"
        b = 2 tanh([rho u, sqrt(1 - rho^2) v] B1) B2 + eps    in R^64, the target, "b"

    with Gaussian A1 (8 x 64) / sqrt 8, A2 and B2 (64 x 64) / 8 and B1 (16 x 64) / 4. At rho = 0 the modalities share
    nothing, and nothing can be distilled. Numbers are not standardised, so that published figures are comparable.

    Args:
        rho: Share of the latent that the target sees, in [0, 1].
        n_pairs: Training pairs.
        n_test: Test pairs.
        n_validation: Validation pairs.
        seed: Of everything: the world and its samples.

    Returns:
        10 classes; modalities "a" and "b", vectors of 64.

    Raises:
        DataError: If rho is outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise DataError(f"shared_latent: rho must be in [0, 1]; received {rho:g}")
    rng = np.random.default_rng(seed)
    mu = rng.standard_normal((10, 8))
    a1, a2 = rng.standard_normal((8, 64)) / math.sqrt(8), rng.standard_normal((64, 64)) / 8
    b1, b2 = rng.standard_normal((16, 64)) / 4, rng.standard_normal((64, 64)) / 8
    labels, firsts, seconds = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    sizes = (n_pairs, n_test, n_validation)
    for n in sizes:
        y = rng.integers(0, 10, n)
        u = mu[y] + 0.6 * rng.standard_normal((n, 8))
        v = 1.2 * rng.standard_normal((n, 8))
        labels.append(y)
        firsts.append(2 * np.tanh(u @ a1) @ a2 + 0.3 * rng.standard_normal((n, 64)))
        latent = np.concatenate([rho * u, math.sqrt(1 - rho**2) * v], axis=1)
        seconds.append(2 * np.tanh(latent @ b1) @ b2 + rng.standard_normal((n, 64)))
    return PairedDataset(
        {"a": np.concatenate(firsts).astype(np.float32), "b": np.concatenate(seconds).astype(np.float32)},
        {name: Modality(name=name, kind="vector", shape=(64,)) for name in ("a", "b")},
        name="synthetic:shared_latent",
        label=np.concatenate(labels),
        class_names=tuple(str(c) for c in range(10)),
        split=np.repeat([0, 2, 1], sizes),
        licence="generated; no rights reserved",
        about=f"Synthetic: 10 classes, 8 latent dimensions, rho = {rho:g}, seed {seed}.",
    )


def digits_views(*, n_pairs: int = 900, n_validation: int = 256, seed: int = 0) -> PairedDataset:
    """Scikit-learn's 1797 real digits: the picture, and its noisy column and row sums.

    The source "image" is the 8 x 8 picture / 16; the target "sums" is its 8 column sums and 8 row sums / 4, plus
    Gaussian noise of standard deviation 0.15. Numbers are not standardised, so that published figures are comparable.

    Args:
        n_pairs: Training pairs.
        n_validation: Held-out pairs; the other digits are the test: 641 by default.
        seed: Of the order and of the noise.

    Returns:
        10 classes; modalities "image" (1, 8, 8) and "sums" (16,).

    Raises:
        DataError: If no digit is left for the test.
    """
    from sklearn.datasets import load_digits  # half a second to import, for this world alone

    digits = cast("Any", load_digits())  # typed by some builds of scikit-learn only
    pixels, label = digits.data, digits.target
    images = np.asarray(pixels, dtype=np.float64).reshape(-1, 8, 8) / 16
    if n_pairs < 1 or n_validation < 0 or n_pairs + n_validation >= len(images):
        raise DataError(f"digits_views has {len(images)} digits; {n_pairs} and {n_validation} leave none to test")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    images, label = images[order], np.asarray(label)[order]
    sums = np.concatenate([images.sum(axis=1), images.sum(axis=2)], axis=1) / 4
    sums += 0.15 * rng.standard_normal(sums.shape)
    return PairedDataset(
        {"image": images[:, None].astype(np.float32), "sums": sums.astype(np.float32)},
        {
            "image": Modality(name="image", kind="image", shape=(1, 8, 8), channels=("grey",)),
            "sums": Modality(name="sums", kind="vector", shape=(16,)),
        },
        name="synthetic:digits_views",
        label=label,
        class_names=tuple(str(c) for c in range(10)),
        split=np.repeat([0, 1, 2], [n_pairs, n_validation, len(images) - n_pairs - n_validation]),
        licence="BSD-3-Clause (scikit-learn); UCI data set 80, CC BY 4.0",
        attribution="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI (1998)",
        about=f"Real digits of scikit-learn, and their column and row sums with noise 0.15; seed {seed}.",
    )


WORLDS = {"shared_latent": shared_latent, "digits_views": digits_views}
"""Worlds by the name that follows "synthetic:"."""
