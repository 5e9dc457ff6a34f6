"""The spreading operator against its series, and what its labels are worth."""

import numpy as np
import pytest

from crossdistill.diagnostics.few_labels import balance_weights, probe_answers
from crossdistill.diagnostics.spreading import label_spreading, shares, spread
from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import unit_rows


def views(n=120, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, 5)), 100 * rng.normal(size=(n, 3)) + 7]


def slow_operator(blocks, neighbours, alpha, terms=400):
    """Sum alpha^t S^t, with a graph built row by row."""
    rows = [block - block.mean(axis=0) for block in blocks]
    rows = np.hstack([block / np.linalg.norm(block, axis=1, keepdims=True) for block in rows])
    n, similarity = len(rows), rows @ rows.T
    weights = np.zeros((n, n))
    for i in range(n):
        for j in sorted(set(range(n)) - {i}, key=lambda j: -similarity[i, j])[:neighbours]:
            weights[i, j] = weights[j, i] = np.exp(similarity[i, j] / 0.3)
    degree = weights.sum(axis=1)
    step = alpha * weights / np.sqrt(degree[:, None] * degree[None, :])
    total, power = np.eye(n), np.eye(n)
    for _ in range(terms):
        power = power @ step
        total += power
    return total


def test_the_operator_is_the_sum_of_its_series_symmetric_and_positive():
    found = label_spreading(views(), neighbours=6, alpha=0.8)
    np.testing.assert_allclose(found, slow_operator(views(), 6, 0.8), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(found, found.T, atol=1e-14)
    assert (found > 0).all()


def test_columns_alone_are_those_of_the_whole():
    sources = np.array([7, 3, 50])
    whole = label_spreading(views())
    np.testing.assert_allclose(label_spreading(views(), sources=sources), whole[:, sources], rtol=1e-10)


def test_views_count_alike_whatever_their_scale_and_place():
    first, second = views()
    moved = label_spreading([first, 1e-3 * second + 5])
    np.testing.assert_allclose(moved, label_spreading([first, second]), rtol=1e-6)


def test_labels_of_a_class_count_alike_and_equal_views_split_by_class():
    assert shares(np.array([0, 0, 1]), 3).tolist() == [[0.5, 0, 0], [0.5, 0, 0], [0, 1, 0]]
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], [150, 30])
    blobs = 4.0 * np.eye(6)[truth] + rng.normal(size=(180, 6))
    labelled = np.array([0, 1, 2, 3, 4, 5, 179])
    found = spread(label_spreading([blobs], sources=labelled), truth[labelled], 2)
    weights = balance_weights(truth, 2)
    assert (weights * (found == truth)).sum() > 0.95  # well apart; one label of the small class suffices
    assert weights[truth == 1].sum() == pytest.approx(0.5)


def test_spread_labels_use_what_the_target_alone_has_not():
    """The teacher's view makes five labels a class reach further than the target's probe does."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 800)
    latent = rng.normal(size=(10, 8))[truth] + 0.5 * rng.normal(size=(800, 8))
    target = latent @ rng.normal(size=(8, 30)) + 6 * rng.normal(size=(800, 30))
    labelled = np.concatenate([np.flatnonzero(truth == c)[:5] for c in range(10)])
    rest = np.setdiff1d(np.arange(800), labelled)
    found = spread(label_spreading([latent, target], sources=labelled), truth[labelled], 10)
    raw = unit_rows(target)
    alone = probe_answers(raw[labelled], truth[labelled], raw[rest], 10)
    # some 0.9 and 0.4 in this world
    assert (found[rest] == truth[rest]).mean() > (alone == truth[rest]).mean() + 0.2


@pytest.mark.parametrize(("given", "error"), [({"neighbours": 0}, ConfigError), ({"alpha": 1.0}, ConfigError)])
def test_parameters_out_of_range_are_refused(given, error):
    with pytest.raises(error):
        label_spreading(views(), **given)


def test_views_that_do_not_fit_are_refused():
    first, second = views()
    for bad in ([first, second[:-1]], [], [first[:1]], [np.full((9, 2), np.nan)]):
        with pytest.raises(DataError):
            label_spreading(bad)


def test_constant_rows_and_tiny_sets_stay_finite():
    assert np.isfinite(label_spreading([np.ones((60, 4)), np.arange(60.0)[:, None]])).all()
    assert label_spreading([np.eye(2)]).shape == (2, 2)
