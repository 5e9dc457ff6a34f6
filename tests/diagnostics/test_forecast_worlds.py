"""The forecast against gains that came true: synthetic worlds of known sharing, and views of real digits."""

import itertools
import os

import numpy as np
import pytest
import torch
from forecast_worlds import Pairs, self_supervised, shared
from scipy.stats import spearmanr

from crossdistill.data import load
from crossdistill.diagnostics.forecast import forecast_gain
from crossdistill.diagnostics.ridge import ridge_student, standardised
from crossdistill.diagnostics.spreading import label_spreading, spread
from crossdistill.objectives.cmcd import kernel_distances

SHARES = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
SMALL = {"n_pairs": 900, "n_test": 600, "steps": 200}


@pytest.fixture(scope="module")
def worlds():
    """Worlds by the share of the latent that the target sees; they have one teacher, as the source does not change."""
    found, teacher = {}, None
    for rho in SHARES:
        found[rho] = shared(rho, teacher=teacher, **SMALL)
        teacher = found[rho].teacher
    return found


def forecast(world, draw, proxy):
    return forecast_gain(*world.known(5, draw), ssl=world.ssl[: world.pairs], proxy=proxy)


def total_variation(world):
    x, z = world.x[: world.pairs], world.teacher[: world.pairs]
    student = torch.from_numpy(ridge_student(x, z).values)
    starts = range(0, world.pairs - 63, 64)
    found = [kernel_distances(student[s : s + 64], torch.from_numpy(z[s : s + 64]))["tv"] for s in starts]
    return float(np.mean(found))


@pytest.mark.slow
def test_the_ridge_student_finds_the_share_at_which_distillation_helps_where_similarity_does_not(worlds):
    """First study, three seeds: gain -0.3, 20.0, 27.8, 22.0, 9.5, 2.5 and p_max -1.8, 13.8, 22.6, 15.7, 9.6, 0.9."""
    gain = [world.realised(5) for world in worlds.values()]
    p_max = [
        np.mean([forecast(world, draw, "ridge").values()["p_max"] for draw in range(4)]) for world in worlds.values()
    ]
    assert spearmanr(p_max, gain).statistic >= 0.9
    assert 0 < np.argmax(p_max) < 5
    assert abs(p_max[0]) < 0.05
    assert abs(p_max[-1]) < 0.05
    variation = [total_variation(world) for world in worlds.values()]
    assert (np.diff(variation) < 0).all()
    assert abs(spearmanr(variation, gain).statistic) < 0.6


@pytest.mark.slow
def test_the_pilot_decides_where_it_helps_and_where_it_does_not(worlds):
    assert forecast(worlds[0.5], 0, "pilot").verdict == "help"
    for rho in (0.0, 1.0):  # gains within noise of 0
        assert forecast(worlds[rho], 0, "pilot").verdict != "help"


@pytest.mark.slow
def test_spread_labels_are_right_where_the_raw_probe_is_not(worlds):
    """First study: 84 % of spread labels right from five a class, where the raw probe has 51 and the teacher's 86."""
    world = worlds[0.7]
    x, z, labels, index = world.known(5, 0)
    found = spread(label_spreading([z, x, world.ssl[: world.pairs]], sources=index), labels, 10)
    right = (found == world.label[: world.pairs]).mean()
    accuracies = forecast(world, 0, "ridge").values()
    assert right > accuracies["acc_raw"] + 0.15
    assert right > 0.7


@pytest.fixture(scope="module")
def digits():
    """Six views of real digits by name, with embeddings of each by self-supervision."""
    if "CROSSDISTILL_DATA" not in os.environ:
        pytest.skip("needs the public data; set CROSSDISTILL_DATA")
    data = load("mfeat")
    split = np.asarray(data.columns.split)
    order = np.concatenate([np.flatnonzero(split == 0), np.flatnonzero(split == 2)])
    pairs = int((split == 0).sum())
    views = {
        name: standardised(np.asarray(data.columns.arrays[name], dtype=np.float64)[order])
        for name in ("fac", "fou", "kar", "mor", "pix", "zer")
    }
    return views, {name: self_supervised(x, pairs) for name, x in views.items()}, np.asarray(data.label)[order], pairs


@pytest.mark.slow
def test_forecasts_follow_the_gains_between_views_of_digits(digits):
    """First study, 30 pairs: rank correlation 0.70; twelve of the 30 at random: above 0.41 in 95 of 100 draws."""
    views, embedded, label, pairs = digits
    chosen = np.random.default_rng(0).permutation(list(itertools.permutations(views, 2)))
    gains, values = [], []
    for source, target in chosen[:12]:
        world = Pairs(views[target], embedded[source], embedded[target], label, pairs)
        gains.append(world.realised(5))
        values.append(forecast(world, 0, "ridge").gain.value)
    assert spearmanr(values, gains).statistic > 0.4
    for source, target in chosen[:5]:
        shuffled = embedded[source].copy()
        shuffled[:pairs] = np.random.default_rng(1).permutation(shuffled[:pairs])
        found = forecast(Pairs(views[target], shuffled, embedded[target], label, pairs), 0, "ridge")
        assert found.gain.value < 0
        assert any("pairing carries nothing" in warning for warning in found.warnings)
