"""The test of a pairing: exact under shuffling, and the ways in which arrays slip are found and placed."""

import numpy as np
import pytest

from crossdistill.diagnostics.alignment import _Sum, pairing_test
from crossdistill.errors import ConfigError, DataError, NotMeaningful


def pairs(n=1600, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, 6))
    return u @ rng.normal(size=(6, 10)) + noise * rng.normal(size=(n, 10)), np.tanh(u) + 0.3 * rng.normal(size=(n, 6))


def test_partners_are_told_from_shuffled_pairs():
    source, target = pairs()
    found = pairing_test(source, target)
    assert found.p_value == 0.001
    assert found.retrieval > 5 / 64
    assert found.z > 20
    assert found.local_z == pytest.approx(found.z, rel=0.1)  # rows in no order: neighbours are as good as any
    assert (found.shuffled, found.slips, found.mixed) == ((), (), 0)
    assert found.percentile.mean() > 0.8
    assert found.within_z is None
    lost = pairing_test(source[np.random.default_rng(1).permutation(1600)], target)
    assert lost.p_value > 0.01
    assert lost.retrieval == pytest.approx(1 / 64, abs=0.012)
    assert lost.percentile.mean() == pytest.approx(0.5, abs=0.03)
    assert (lost.shuffled, lost.slips, lost.mixed) == ((), (), 0)


def test_p_values_of_random_pairings_are_uniform():
    source, target = pairs(120)
    found = [
        pairing_test(source[np.random.default_rng(seed).permutation(120)], target, permutations=99, seed=seed)
        for seed in range(200)
    ]
    p = np.array([f.p_value for f in found])
    for alpha in (0.1, 0.5):
        assert np.mean(p <= alpha) == pytest.approx(alpha, abs=2.7 * np.sqrt(alpha * (1 - alpha) / 200))
    z = np.array([f.z for f in found])
    assert z.mean() == pytest.approx(0, abs=0.2)  # 2.8 standard errors
    assert z.std() == pytest.approx(1, abs=0.15)  # three


def test_the_sum_over_random_pairings_has_the_variance_that_z_is_made_from():
    scores = np.random.default_rng(0).gamma(1, size=(7, 7))
    scores -= scores.mean(axis=1, keepdims=True)
    total = _Sum()
    total.add(scores)
    rng = np.random.default_rng(1)
    drawn = [scores[np.arange(7), rng.permutation(7)].sum() for _ in range(20_000)]
    assert total.variance == pytest.approx(np.var(drawn), rel=0.04)
    assert total.total == pytest.approx(np.trace(scores))
    assert _Sum().z == 0


@pytest.mark.parametrize("lag", [-3, 1])
def test_a_row_that_was_dropped_on_the_way_is_found(lag):
    source, target = pairs()
    moved = source.copy()
    moved[700:] = np.roll(source, lag, axis=0)[700:]
    found = pairing_test(moved, target)
    assert len(found.slips) == 1
    slip = found.slips[0]
    assert slip.lag == lag
    assert abs(slip.first - 700) <= 100  # parts of 100 rows
    assert slip.last > 1500
    assert found.p_value == 0.001
    assert not pairing_test(source, target).slips


def test_a_shuffled_part_is_found():
    source, target = pairs()
    broken = source.copy()
    broken[400:800] = source[400 + np.random.default_rng(0).permutation(400)]
    (part,) = pairing_test(broken, target).shuffled
    assert abs(part[0] - 400) <= 100
    assert abs(part[1] - 800) <= 100


@pytest.mark.parametrize(("n", "noise"), [(600, 0.3), (1600, 1.0)])
def test_a_shuffled_half_is_found(n, noise):
    source, target = pairs(n, noise=noise)
    broken = source.copy()
    broken[: n // 2] = source[np.random.default_rng(0).permutation(n // 2)]
    (part,) = pairing_test(broken, target).shuffled
    assert part[0] == 0
    assert abs(part[1] - n // 2) <= 100


def test_pairs_that_are_wrong_all_over_the_array_are_counted():
    source, target = pairs(noise=0.3)
    broken, rng = source.copy(), np.random.default_rng(0)
    rows = rng.permutation(1600)[:400]
    broken[rows] = source[rng.permutation(rows)]
    found = pairing_test(broken, target)
    assert found.mixed == pytest.approx(0.25, abs=0.08)
    assert np.isin(np.argsort(found.percentile)[:10], rows).all()
    assert not found.slips
    assert not found.shuffled


def test_pairs_matched_by_label_alone_are_right_among_all_rows_and_at_chance_within_a_label():
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(5), 300)
    offset = 3 * rng.normal(size=(5, 6))
    source, target = (offset[label] + rng.normal(size=(1500, 6)) for _ in range(2))
    found = pairing_test(source, target, labels=label)
    assert found.z > 20
    assert abs(found.within_z) < 3
    assert found.local_z < 0.2 * found.z  # sorted by label, so neighbours are exchangeable
    honest = pairing_test(source, source + rng.normal(size=source.shape), labels=label)
    assert honest.within_z > 10


def test_neighbours_of_a_smooth_recording_do_not_look_like_partners():
    # a slow walk with noise of its own in every frame: frames beside it would predict it, were they in the fit
    rng = np.random.default_rng(0)
    u = np.cumsum(rng.normal(size=(1600, 6)), axis=0)
    u = (u - u.mean(0)) / u.std(0)
    found = pairing_test(u + 0.05 * rng.normal(size=u.shape), np.tanh(u))
    assert not found.slips
    assert found.p_value == 0.001


def test_constant_sides_are_at_chance_and_a_seed_gives_the_same_bits():
    source, target = pairs(200)
    for sides in ((np.ones_like(source), target), (source, np.ones_like(target))):
        found = pairing_test(*sides)
        assert found.p_value > 0.01
        assert np.isfinite(found.percentile).all()
    first, again = pairing_test(source, target), pairing_test(source, target)
    assert first.percentile.tobytes() == again.percentile.tobytes()
    assert first.p_value == again.p_value


def test_what_does_not_fit_is_refused():
    source, target = pairs(60)
    with pytest.raises(NotMeaningful, match="50 pairs; received 49"):
        pairing_test(source[:49], target[:49])
    with pytest.raises(DataError, match="60 and 59"):
        pairing_test(source, target[:59])
    with pytest.raises(DataError, match="labels"):
        pairing_test(source, target, labels=np.zeros(59))
    with pytest.raises(ConfigError, match="permutations"):
        pairing_test(source, target, permutations=98)
