"""Algorithm 1 of MFH against all permutations, its closed form, its invariances, and what a nullified head gives."""

import doctest
import itertools

import numpy as np
import pytest

from crossdistill.diagnostics import modality_generality, nullify, venn, venn_ratios
from crossdistill.errors import ConfigError, DataError


def world(n=60, d=5, k=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + 1, rng.normal(size=(k, d)), rng.normal(size=k), rng.normal(size=(n, k))


def curved(x):
    return np.stack([np.tanh(x).sum(axis=1), x[:, 0] * x[:, 1], np.abs(x[:, 2])], axis=1)


def size(apart, distance):
    return np.mean(apart**2 if distance == "squared" else np.abs(apart))


def slow_expectation(x, apply, target, distance):
    """Average over all orders of the rows, channel by channel."""
    scores = []
    for i in range(x.shape[1]):
        found = []
        for order in itertools.permutations(range(len(x))):
            broken = x.copy()
            broken[:, i] = x[list(order), i]
            found.append(size(apply(broken) - target, distance))
        scores.append(np.mean(found))
    return np.array(scores)


def test_the_closed_form_is_the_mean_over_all_permutations():
    x, weight, bias, target = world(n=5, d=4)
    found = modality_generality(x, (weight, bias), target, method="closed_form")
    expected = slow_expectation(x, lambda z: z @ weight.T + bias, target, "squared")
    np.testing.assert_allclose(found.scores, expected, rtol=1e-12)
    assert found.baseline == pytest.approx(size(x @ weight.T + bias - target, "squared"))
    np.testing.assert_allclose(found.excess, expected - found.baseline)


@pytest.mark.parametrize("distance", ["squared", "absolute"])
def test_permutations_come_to_their_expectation(distance):
    x, weight, bias, target = world(n=6, d=3)
    linear = modality_generality(
        x, (weight, bias), target, distance=distance, method="permutation", n_permutations=8000
    )
    bent = modality_generality(x, curved, target, distance=distance, n_permutations=8000)
    for found, apply in ((linear, lambda z: z @ weight.T + bias), (bent, curved)):
        np.testing.assert_allclose(found.scores, slow_expectation(x, apply, target, distance), rtol=0.03)


@pytest.mark.parametrize("distance", ["squared", "absolute"])
def test_a_linear_head_and_the_same_head_as_a_function_see_the_same_permutations(distance, monkeypatch):
    x, weight, bias, target = world()
    kept = {"distance": distance, "method": "permutation", "n_permutations": 7, "seed": 3}
    fast = modality_generality(x, (weight, bias), target, **kept)
    slow = modality_generality(x, lambda z: z @ weight.T + bias, target, **kept)
    np.testing.assert_allclose(fast.scores, slow.scores, rtol=1e-12)
    np.testing.assert_allclose(fast.standard_errors, slow.standard_errors, rtol=1e-9)
    monkeypatch.setattr(venn, "CHUNK", 2 * target.size)  # two at a time, another stream of the same generator
    split = modality_generality(x, (weight, bias), target, **kept)
    np.testing.assert_allclose(split.scores, fast.scores, rtol=1e-12)
    monkeypatch.setattr(venn, "STACK", 3 * x.size)  # a head is given three at a time
    stacked = modality_generality(x, lambda z: z @ weight.T + bias, target, **kept)
    np.testing.assert_allclose(stacked.scores, slow.scores, rtol=1e-12)
    other = modality_generality(x, (weight, bias), target, **{**kept, "seed": 4})
    assert not np.allclose(other.scores, fast.scores)


@pytest.mark.parametrize("method", ["closed_form", "permutation"])
def test_what_does_not_reach_the_logits_scores_the_baseline_exactly(method):
    x, weight, bias, target = world()
    x[:, 1], weight[:, 3] = 2.0, 0.0
    found = modality_generality(x, (weight, bias), target, method=method)
    assert found.scores[1] == found.scores[3] == found.baseline
    assert not found.told_apart[[1, 3]].any()
    found = modality_generality(x, lambda z: z @ weight.T + bias, target)
    assert found.scores[1] == found.baseline
    assert found.standard_errors[1] == 0


def test_scores_do_not_hang_on_orders_scales_or_common_shifts():
    x, weight, bias, target = world()
    found = modality_generality(x, (weight, bias), target)
    channels, rows = np.random.default_rng(1).permutation(5), np.random.default_rng(2).permutation(60)
    moved = modality_generality(x[rows][:, channels], (weight[:, channels], bias), target[rows])
    np.testing.assert_allclose(moved.scores, found.scores[channels])
    np.testing.assert_allclose(moved.standard_errors, found.standard_errors[channels])
    shifted = modality_generality(x, (weight, bias + 7), target + 7)
    np.testing.assert_allclose(shifted.scores, found.scores)
    scale = np.array([1, 2, 4, 8, 0.5])
    np.testing.assert_allclose(modality_generality(x * scale, (weight / scale, bias), target).scores, found.scores)


def test_a_channel_that_pulls_away_from_the_student_scores_below_the_baseline():
    x = np.random.default_rng(0).normal(size=(400, 2))
    # permuted, 3 x_1 is as large and no more against the student's -3 x_1
    found = modality_generality(x, (np.array([[1.0, 3.0]]), np.zeros(1)), x[:, :1] - 3 * x[:, 1:])
    assert found.excess[1] < 0 < found.excess[0]
    assert found.told_apart.all()


@pytest.mark.parametrize(("method", "distance"), [("closed_form", "squared"), ("permutation", "absolute")])
def test_standard_errors_are_the_spread_over_draws_of_pairs(method, distance):
    weight, bias = np.array([[1.0, -0.5, 0.0], [0.3, 0.2, 0.1]]), np.zeros(2)
    rises, errors = [], []
    for seed in range(300):
        x = np.random.default_rng(seed).normal(size=(80, 3))
        target = x[:, :2] + 0.5 * np.random.default_rng(1000 + seed).normal(size=(80, 2))
        found = modality_generality(x, (weight, bias), target, method=method, distance=distance, n_permutations=20)
        rises.append(found.excess)
        errors.append(found.standard_errors)
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(rises, axis=0), rtol=0.2)


def test_order_normalised_and_kept_follow_the_scores():
    found = venn.Generality(np.array([2.0, 5.0, 1.0, 5.0, 3.0]), np.ones(5), 1.5)
    assert found.order.tolist() == [1, 3, 4, 0, 2]
    assert found.normalised.tolist() == [0.25, 1, 0, 1, 0.5]
    assert found.told_apart.tolist() == [False, True, False, True, False]
    assert found.kept(2).tolist() == [1, 3]
    assert found.kept(3, "least_general").tolist() == [0, 2, 4]
    for count in range(1, 5):  # what one keeps, the other removes
        both = [*found.kept(count), *found.kept(5 - count, "least_general")]
        assert sorted(both) == [0, 1, 2, 3, 4]
        assert len(set(found.kept(count, "random", seed=count))) == count
    assert found.kept(2, "random", seed=1).tolist() == found.kept(2, "random", seed=1).tolist()
    flat = venn.Generality(np.full(3, 2.0), np.zeros(3), 2.0)
    assert flat.normalised.tolist() == [0, 0, 0]
    assert not flat.told_apart.any()


def test_shared_channels_of_networks_trained_together_are_found():
    # both networks are right about what they share; the teacher has 4 deciding channels more, and 12 of noise
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 20))
    weight = np.concatenate([np.full(4, 1.0), np.full(4, 0.4), np.full(12, 0.02)])[None] * [[1.0], [-1.0]]
    student = x[:, :4].sum(axis=1, keepdims=True) * [1.0, -1.0]
    found = modality_generality(x, (weight, np.zeros(2)), student)
    assert found.kept(4).tolist() == [0, 1, 2, 3]


def test_a_nullified_channel_is_a_bias_for_a_linear_head():
    x, weight, bias, _ = world()
    train = x[:40]
    given = nullify(x, [0, 3], reference=train) @ weight.T + bias
    gone = [1, 2, 4]
    expected = x[:, [0, 3]] @ weight[:, [0, 3]].T + bias + weight[:, gone] @ train[:, gone].mean(axis=0)
    np.testing.assert_allclose(given, expected)
    np.testing.assert_allclose(nullify(x, [0, 3], fill="zero")[:, gone], 0)
    assert nullify(x, np.arange(5)).tolist() == x.tolist()
    np.testing.assert_allclose(nullify(x, [2]).mean(axis=0), x.mean(axis=0))
    assert np.ptp(nullify(x, [2])[:, 0]) == 0


def test_ratios_of_the_venn_diagram():
    assert venn_ratios(6, 6, 4) == (0.375, 0.375, 0.25)
    assert sum(venn_ratios(3, 1, 7)) == pytest.approx(1)
    # the synthetic sweep: k shared of ten in each modality
    for k in range(0, 11, 2):
        assert venn_ratios(10 - k, 10 - k, k).gamma == k / (20 - k)
    assert venn_ratios(10, 10, 0, per="modality") == (1, 1, 0)
    assert venn_ratios(40, 0, 10, per="modality") == (0.8, 0, 0.2)


def test_what_does_not_fit_is_refused():
    x, weight, bias, target = world()
    with pytest.raises(DataError, match="same pairs"):
        modality_generality(x[:-1], (weight, bias), target)
    with pytest.raises(DataError, match="two or more"):
        modality_generality(x[:1], (weight, bias), target[:1])
    with pytest.raises(DataError, match="not finite in row 2"):
        modality_generality(np.where(np.arange(60)[:, None] == 2, np.nan, x), (weight, bias), target)
    with pytest.raises(DataError, match="columns"):
        modality_generality(x, (weight[:, :2], bias), target)
    with pytest.raises(DataError, match=r"weight \(3, 5\), bias \(3,\)"):
        modality_generality(x, (weight, bias[:2]), target)
    with pytest.raises(DataError, match=r"must give logits \(60, 3\)"):
        modality_generality(x, lambda z: z, target)
    with pytest.raises(ConfigError, match="did you mean 'squared'"):
        modality_generality(x, (weight, bias), target, distance="square")
    with pytest.raises(ConfigError, match="method"):
        modality_generality(x, (weight, bias), target, method="exact")
    for kept in ({"distance": "absolute"}, {"head": curved}):
        with pytest.raises(ConfigError, match="closed form"):
            modality_generality(
                x, **{"head": (weight, bias), "student_logits": target, "method": "closed_form", **kept}
            )
    with pytest.raises(ConfigError, match="n_permutations >= 1"):
        modality_generality(x, (weight, bias), target, n_permutations=0)
    found = modality_generality(x, (weight, bias), target)
    with pytest.raises(ConfigError, match="1 to 5"):
        found.kept(6)
    with pytest.raises(ConfigError, match="'least_general'"):
        found.kept(2, "least")
    for kept in ([], [5], [-1], [0.5], [[0]]):
        with pytest.raises(DataError, match="whole numbers"):
            nullify(x, kept)
    with pytest.raises(ConfigError, match="fill"):
        nullify(x, [0], fill="median")
    with pytest.raises(DataError, match="5 columns"):
        nullify(x, [0], reference=x[:, :2])
    with pytest.raises(ConfigError, match=">= 0"):
        venn_ratios(-1, 2, 3)
    with pytest.raises(ConfigError, match="not all 0"):
        venn_ratios(0, 0, 0)
    with pytest.raises(ConfigError, match="per='union'"):
        venn_ratios(3, 0, 0, per="modality")
    with pytest.raises(ConfigError, match="per"):
        venn_ratios(3, 0, 0, per="both")


def test_the_example_of_the_docstring():
    assert doctest.testmod(venn).failed == 0
    assert doctest.testmod(venn).attempted > 0
