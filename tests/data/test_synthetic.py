from __future__ import annotations

import numpy as np
import pytest
import torch

from crossdistill.data import load, shared_latent
from crossdistill.errors import DataError


def canonical(rho: float) -> float:
    """Give the mean of the three largest canonical correlations of the two modalities."""
    data = shared_latent(rho=rho, n_pairs=4000, seed=1).split("train")
    sides = [torch.cat(list(data.samples(name))).double() for name in ("a", "b")]
    bases = [torch.linalg.qr(x - x.mean(0)).Q for x in sides]
    return float(torch.linalg.svdvals(bases[0].T @ bases[1])[:3].mean())


def test_rho_is_what_the_modalities_share():
    none, some, much = (canonical(rho) for rho in (0.0, 0.5, 0.9))
    assert none < 0.25 < some < much
    assert much > 0.6


def test_the_latent_world():
    data = load("synthetic:shared_latent", rho=0.8, seed=0)
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 4000, "validation": 500, "test": 2000}
    assert data.classes == 10
    assert data.modality("a").mean == (0.0,)
    assert data.modality("a").std == (1.0,)
    assert data.fingerprint == load("synthetic:shared_latent", rho=0.8, seed=0).fingerprint
    assert data.fingerprint != load("synthetic:shared_latent", rho=0.8, seed=1).fingerprint
    with pytest.raises(DataError, match=r"rho must be in \[0, 1\]"):
        shared_latent(rho=1.5)


def test_the_source_does_not_depend_on_rho():
    first, second = (shared_latent(rho=rho, n_pairs=50, n_test=10) for rho in (0.1, 0.9))
    assert first.fingerprint_of("a") == second.fingerprint_of("a")
    assert first.fingerprint_of("b") != second.fingerprint_of("b")


def test_the_digits():
    data = load("synthetic:digits_views", seed=2)
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 900, "validation": 256, "test": 641}
    image = torch.cat(list(data.samples("image")))[:, 0]
    sums = torch.cat(list(data.samples("sums")))
    assert (image.min(), image.max()) == (0, 1)
    noise = sums - torch.cat([image.sum(1), image.sum(2)], dim=1) / 4
    assert noise.std() == pytest.approx(0.15, abs=0.005)
    assert noise.mean().abs() < 0.005
    assert np.bincount(data.label).min() > 150
    with pytest.raises(DataError, match="1797 digits; 1700 and 256 leave none to test"):
        load("synthetic:digits_views", n_pairs=1700)
