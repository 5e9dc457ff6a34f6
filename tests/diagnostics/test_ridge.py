"""The ridge student against the equation written out, its two Gram matrices, its invariances and its folds."""

import doctest

import numpy as np
import pytest

from crossdistill.data.synthetic import shared_latent
from crossdistill.diagnostics import ridge
from crossdistill.diagnostics.ridge import group_folds, ridge_student, standardised
from crossdistill.errors import ConfigError, DataError, NotMeaningful


def pairs(n=120, width=7, d=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * 3 + 1
    z = np.tanh(x[:, :d] - 1) + 0.3 * rng.normal(size=(n, d))
    return x, z


def by_the_equation(x, z, student, seed, penalty):
    """Fit every fold alone, on the same random features."""
    rng = np.random.default_rng(seed)
    x = np.clip((x - x.mean(0)) / x.std(0), -6, 6)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, width = x.shape
    weight = rng.standard_normal((width, 512))
    bias = 0.5 * rng.standard_normal(512)
    p = np.hstack([np.maximum(x @ weight / width**0.5 + bias, 0), x, np.ones((n, 1))])
    found, mean = np.empty_like(z), z.mean(0)
    for held in np.unique(student.fold):
        rest = student.fold != held
        gram = p[rest].T @ p[rest] + penalty * n * np.eye(p.shape[1])
        found[~rest] = p[~rest] @ np.linalg.solve(gram, p[rest].T @ (z[rest] - mean))
    r2 = 1 - np.sum((z - mean - found) ** 2) / np.sum((z - mean) ** 2)
    found += mean
    return found / np.linalg.norm(found, axis=1, keepdims=True), r2


@pytest.mark.parametrize("n", [90, 700])  # fewer and more pairs than the 520 features
def test_each_fold_is_predicted_by_the_ridge_of_the_others(n):
    x, z = pairs(n)
    student = ridge_student(x, z, penalty=0.3, folds=4, seed=5)
    values, r2 = by_the_equation(x, z, student, seed=5, penalty=0.3)
    np.testing.assert_allclose(student.values, values, atol=1e-9)
    assert student.r2 == pytest.approx(r2, abs=1e-9)
    assert np.bincount(student.fold).tolist() == [len(part) for part in np.array_split(np.arange(n), 4)]


def test_a_rotated_teacher_gives_a_rotated_student_and_scales_do_not_matter():
    x, z = pairs(600)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    student = ridge_student(x, z)
    turned = ridge_student(x * [1, 2, 4, 8, 16, 0.5, 0.25] - 3, 4 * z @ rotation)
    np.testing.assert_allclose(turned.values, student.values @ rotation, atol=1e-9)
    assert turned.r2 == pytest.approx(student.r2, abs=1e-9)
    np.testing.assert_allclose(np.linalg.norm(student.values, axis=1), 1)


def test_what_is_shared_is_predicted_and_shuffled_pairs_are_not():
    data = shared_latent(rho=0.7, n_pairs=800, n_test=2, n_validation=2).split("train")
    x, a = (np.asarray(data.raw(name, np.arange(800)), dtype=float) for name in ("b", "a"))
    rng = np.random.default_rng(0)
    linear = standardised(x) @ rng.normal(size=(64, 8))
    exact, shared, shuffled = (ridge_student(x, z).r2 for z in (linear, a, a[rng.permutation(800)]))
    # the sheet's own figures, of other draws and a trained teacher: .89, .54 and -.13
    assert exact == pytest.approx(0.89, abs=0.05)
    assert 0.2 < shared < exact
    assert -0.25 < shuffled < 0


def test_the_row_itself_has_no_part_in_its_own_value():
    x, z = pairs()
    before = ridge_student(x, z)
    changed = z.copy()
    mine = before.fold == 2
    # opposite entries of two rows of one fold: the mean, which all share, stays
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    first, second = np.flatnonzero(mine)[:2]
    changed[first], changed[second] = unit[second], unit[first]
    after = ridge_student(x, changed)
    np.testing.assert_allclose(after.values[mine], before.values[mine], atol=1e-12)
    assert np.abs(after.values[~mine] - before.values[~mine]).max() > 1e-6


def test_no_group_is_on_two_sides_and_the_order_of_pairs_hardly_matters():
    x, z = pairs(400)
    groups = np.array([f"g{i}" for i in np.random.default_rng(0).integers(0, 23, 400)])
    student = ridge_student(x, z, groups=groups)
    for name in np.unique(groups):
        assert len(np.unique(student.fold[groups == name])) == 1
    assert np.bincount(student.fold).min() > 60  # 80 on average
    order = np.random.default_rng(1).permutation(400)
    assert ridge_student(x[order], z[order]).r2 == pytest.approx(ridge_student(x, z).r2, abs=0.02)


def test_a_seed_gives_the_same_bits():
    x, z = pairs()
    first, again, other = ridge_student(x, z), ridge_student(x, z), ridge_student(x, z, seed=1)
    assert first.values.tobytes() == again.values.tobytes()
    assert not np.allclose(first.values, other.values)


def test_constant_teachers_columns_and_wild_entries_stay_finite():
    x, z = pairs()
    flat = ridge_student(x, np.ones((120, 5)))
    np.testing.assert_allclose(flat.values, 5**-0.5)
    assert flat.r2 == 0
    x[:, 0] = 1e300
    x[3, 1] = 1e200
    wild = ridge_student(x, z)
    assert np.isfinite(wild.values).all()
    scaled = standardised(x)
    assert not scaled[:, 0].any()
    assert np.abs(scaled).max() == 6
    np.testing.assert_allclose(scaled[:, 2:].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled[:, 2:].std(0), 1)


def test_folds_are_as_many_as_groups_at_most():
    assert sorted(np.bincount(group_folds(11, 5)).tolist()) == [2, 2, 2, 2, 3]
    fold = group_folds(6, 5, ["a", "a", "b", "b", "c", "c"])
    assert np.unique(fold).tolist() == [0, 1, 2]
    assert (fold[::2] == fold[1::2]).all()
    assert np.unique(group_folds(3, 5)).tolist() == [0, 1, 2]


def test_what_does_not_fit_is_refused():
    x, z = pairs()
    with pytest.raises(DataError, match="120 and 119"):
        ridge_student(x, z[:-1])
    with pytest.raises(DataError, match="not finite in row 4"):
        ridge_student(np.where(np.arange(120)[:, None] == 4, np.nan, x), z)
    with pytest.raises(ConfigError, match="penalty"):
        ridge_student(x, z, penalty=0)
    with pytest.raises(ConfigError, match="folds"):
        ridge_student(x, z, folds=1)
    with pytest.raises(NotMeaningful, match="received 1"):
        ridge_student(x, z, groups=np.zeros(120))


def test_examples_in_the_docstrings():
    found = doctest.testmod(ridge)
    assert found.failed == 0
    assert found.attempted > 0
