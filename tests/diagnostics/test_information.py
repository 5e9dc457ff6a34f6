"""Estimators of mutual information against known truths, their invariances, their error bars and their refusals."""

import doctest

import numpy as np
import pytest
import torch
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from crossdistill.diagnostics import information, information_knn
from crossdistill.diagnostics.information import calibration_line, mutual_information
from crossdistill.diagnostics.information_closed import discrete, entropy, gaussian, gaussian_bias, gaussian_information
from crossdistill.diagnostics.information_contrast import contrast_information, info_nce
from crossdistill.diagnostics.information_knn import ksg, ross
from crossdistill.diagnostics.information_prepared import probe_logits
from crossdistill.diagnostics.sub_samples import SubSamples
from crossdistill.errors import ConfigError, DataError, NotMeaningful

NUMERIC = ("ksg", "gaussian", "latent", "infonce")


def dense(n, d, truth, seed=0):
    """All columns equally correlated with their partners."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, n, d))
    r = np.sqrt(-np.expm1(-2 * truth / d))
    return x, r * x + np.sqrt(1 - r * r) * noise


def classes(n, d, seed=0):
    """Two unit Gaussians whose means are 2 apart in the first column: 0.336820 nats, by quadrature in the test."""
    rng = np.random.default_rng(seed)
    code = np.arange(n) % 2
    x = rng.normal(size=(n, d))
    x[:, 0] += 2 * code
    return x, code


def truth_of_classes():
    grid = np.linspace(-10, 12, 20001)
    near, far = (np.exp(-((grid - m) ** 2) / 2) / np.sqrt(2 * np.pi) for m in (0, 2))
    mixture = (near + far) / 2
    each = [np.trapezoid(p * np.log(p / mixture), grid) for p in (near, far)]
    return float(np.mean(each))


def loop_ksg(x, y, k):
    """Kraskov's first estimate, from its definition."""
    from scipy.special import digamma

    n, terms = len(x), []
    for i in range(n):
        in_x, in_y = np.abs(x - x[i]).max(axis=1), np.abs(y - y[i]).max(axis=1)
        reach = np.sort(np.delete(np.maximum(in_x, in_y), i))[k - 1]
        counts = [np.sum(np.delete(apart, i) < reach) for apart in (in_x, in_y)]
        terms.append(sum(digamma(count + 1) for count in counts))
    return digamma(k) + digamma(n) - np.mean(terms)


@pytest.mark.parametrize("columns", [(1, 1), (2, 3), (4, 4)])
def test_ksg_is_its_definition_by_trees_and_directly(columns, monkeypatch):
    x, y = np.random.default_rng(0).normal(size=(2, 120, 4))
    y = y + x
    x, y = x[:, : columns[0]], y[:, : columns[1]]
    for k in (4, information_knn.FEW_NEIGHBOURS + 1):
        expected = loop_ksg(x, y, k)
        for rows, block in ((10**9, 2**21), (10**9, 700), (0, 2**21)):  # directly, in blocks, by trees
            monkeypatch.setattr(information_knn, "TREE_ROWS", rows)
            monkeypatch.setattr(information_knn, "BLOCK", block)
            assert ksg(x, y, k) == pytest.approx(expected, abs=1e-12)


def test_the_smallest_are_left_out_one_by_one_where_some_are_equal():
    apart = np.random.default_rng(0).integers(0, 6, size=(40, 30)).astype(float)
    ordered = np.sort(apart, axis=1)
    for k in (0, 1, 5, information_knn.FEW_NEIGHBOURS, information_knn.FEW_NEIGHBOURS + 1):
        assert (information_knn._smallest(apart.copy(), k)[:, 0] == ordered[:, k]).all()


def test_one_column_is_counted_by_the_differences_themselves():
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=400), rng.integers(0, 9, 400) / 10, 1e3 + 1e-9 * rng.normal(size=400)):
        apart = np.abs(x[:, None] - x)
        reach = np.sort(apart, axis=1)[np.arange(400), rng.integers(0, 400, 400)]  # each ends just at some row
        found = information_knn._counter(x[:, None])(x[:, None], reach)
        assert (found == (apart <= reach[:, None]).sum(axis=1)).all()
        below = np.nextafter(reach, 0)
        found = information_knn._counter(x[:, None])(x[:, None], below)
        assert (found == (apart <= below[:, None]).sum(axis=1)).all()


def test_neighbours_agree_with_scikit_learn_in_one_column(monkeypatch):
    x, y = dense(2000, 1, 1.0)
    theirs = mutual_info_regression(x, y[:, 0], n_neighbors=3, random_state=0)[0]
    assert mutual_information(x, y, estimator="ksg").value == pytest.approx(theirs, abs=0.01)
    x, code = classes(1000, 1)
    x = (x - x.mean()) / x.std()
    theirs = mutual_info_classif(x, code, n_neighbors=3, random_state=0)[0]
    assert ross(x, code) == pytest.approx(theirs, abs=1e-6)
    for rows in (0, 10**9):
        monkeypatch.setattr(information_knn, "TREE_ROWS", rows)
        assert ross(x, code) == pytest.approx(theirs, abs=1e-6)


def test_truths_are_met_where_an_estimator_is_good():
    for truth in (1.0, 3.0):  # the error of 2000 rows is some .025
        x, y = dense(2000, 1, truth)
        assert mutual_information(x, y, estimator="ksg").value == pytest.approx(truth, abs=0.1)
        x, y = dense(2000, 10, truth)
        assert mutual_information(x, y, estimator="gaussian").value == pytest.approx(truth, abs=0.12)
    assert mutual_information(*dense(2000, 10, 1.0), estimator="infonce").value == pytest.approx(0.9, abs=0.15)
    x, code = classes(2000, 2)
    truth = truth_of_classes()
    assert mutual_information(x, code, estimator="ksg").value == pytest.approx(truth, abs=0.06)
    for lower in ("classifier", "infonce", "latent"):
        assert mutual_information(x, code, estimator=lower).value == pytest.approx(truth, abs=0.06)
    assert mutual_information(code, x, estimator="ksg").value == mutual_information(x, code, estimator="ksg").value


def test_latents_of_a_side_that_varies_in_one_row_alone_are_refused():
    x, y = np.random.default_rng(0).normal(size=(2, 500, 8))
    x[3] = 1e12
    with pytest.raises(NotMeaningful, match="x hardly differs between most rows"):
        mutual_information(x, y, estimator="latent")
    with pytest.raises(NotMeaningful, match="y hardly differs between most rows"):
        mutual_information(y, x, estimator="latent")


def test_latents_find_what_few_dimensions_share_in_many_columns():
    truth = 1.0
    shared, partner = dense(1000, 2, truth)
    rng = np.random.default_rng(5)
    maps = rng.normal(size=(2, 2, 64))
    for bent in (lambda z: z, np.tanh):
        found = mutual_information(bent(shared @ maps[0]), bent(partner @ maps[1]), estimator="latent")
        assert found.value == pytest.approx(truth, abs=0.12)  # three errors of 1000 pairs
        assert found.settings["latents"] == 2
    noise = rng.normal(size=(2, 2000, 9))
    a, b = dense(2000, 1, 2.0)
    x, y = np.hstack([a, noise[0]]), np.hstack([np.abs(b), noise[1]])  # uncorrelated: linear directions see nothing
    known = ksg(a, np.abs(b))
    found = mutual_information(x, y, estimator="latent")
    assert found.settings["networks"]
    assert 0.6 * known < found.value < known + 0.1
    assert abs(mutual_information(x, y, estimator="gaussian").value) < 0.02


@pytest.mark.parametrize("estimator", NUMERIC)
def test_nothing_shared_and_shuffled_pairs_give_nothing(estimator):
    x, y = dense(1000, 5, 0.0)
    assert abs(mutual_information(x, y, estimator=estimator).value) < 0.08
    x, y = dense(1000, 5, 1.5)
    order = np.random.default_rng(9).permutation(1000)
    assert abs(mutual_information(x, y[order], estimator=estimator).value) < 0.08
    assert mutual_information(x, y, estimator=estimator).value > 0.5


@pytest.mark.parametrize("estimator", NUMERIC)
def test_scales_shifts_and_constant_columns_change_nothing(estimator):
    x, y = dense(400, 3, 1.0)
    given = mutual_information(x, y, estimator=estimator)
    moved = mutual_information(x * [1e3, 2.0, 1e-4] + 5, y * 7, estimator=estimator)
    assert moved.value == pytest.approx(given.value, abs=1e-3)
    padded = mutual_information(np.hstack([x, np.full((400, 1), 0.1)]), y, estimator=estimator)
    assert padded.value == pytest.approx(given.value, abs=1e-12)
    assert "1 constant" in padded.note
    torch_state = torch.get_rng_state()
    again = mutual_information(torch.from_numpy(x), torch.from_numpy(y), estimator=estimator)
    assert again == given
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_sides_may_be_changed_over():
    x, y = dense(600, 3, 1.0)
    y = y[:, :2]
    for estimator in ("ksg", "gaussian"):
        there, back = (mutual_information(*s, estimator=estimator).value for s in ((x, y), (y, x)))
        assert there == pytest.approx(back, abs=1e-12)


def test_gaussian_estimate_and_its_bias():
    rng = np.random.default_rng(0)
    x, y = dense(500, 4, 1.0)
    mixed = x @ rng.normal(size=(4, 4)) + 3
    assert gaussian(mixed, y) == pytest.approx(gaussian(x, y), abs=1e-8)
    spanned = np.hstack([x, x @ rng.normal(size=(4, 3))])  # three columns that say nothing more
    assert gaussian(spanned, y) == pytest.approx(gaussian(x, y), abs=1e-8)
    assert gaussian_bias(2000, 50, 50) == pytest.approx(0.64, abs=0.01)
    values = [gaussian(*dense(400, 10, 0.0, seed)) for seed in range(200)]
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / 200**0.5)
    assert gaussian_information([0.6, -0.8]) == pytest.approx(-0.5 * np.log(0.64 * 0.36))
    with pytest.raises(DataError, match="canonical correlations"):
        gaussian_information([1.0])
    with pytest.raises(NotMeaningful, match="more rows than columns"):
        gaussian_bias(101, 50, 50)
    with pytest.raises(NotMeaningful, match="infinite"):
        gaussian(x, mixed)


def test_tables_of_classes():
    code = np.arange(1000) % 5
    miller_madow = (5 - 5 - 5 + 1) / 2000
    assert entropy(code) == pytest.approx(np.log(5))
    assert discrete(code, code) == pytest.approx(np.log(5) - miller_madow)
    rng = np.random.default_rng(0)
    values = [discrete(*rng.integers(0, 5, size=(2, 500))) for _ in range(200)]
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / 200**0.5)
    words = np.array(list("abcde"))[code]
    logits = np.eye(5)[code] + 0.3 * rng.random((1000, 5))
    assert mutual_information(words, code).value == pytest.approx(discrete(code, code))
    assert mutual_information(logits, words, estimator="discrete").value == pytest.approx(discrete(code, code))


def test_infonce_is_capped_and_nothing_for_a_constant_critic():
    f = np.full((64, 5), 2.0)
    assert np.abs(info_nce(f, f)).max() < 1e-12
    g = np.hstack([100 * np.eye(64), np.zeros((64, 1))])
    assert info_nce(g, g).max() == pytest.approx(np.log(64))
    x, y = dense(256, 3, 12.0)
    halves = np.arange(128), np.arange(128, 256)
    found = contrast_information(x, y, halves, batch=50)
    assert found.cap == pytest.approx(np.log(42))  # 128 in three batches of 50 at most
    assert found.terms.max() <= np.log(43)
    told = mutual_information(x, y, estimator="infonce")
    assert told.settings["cap"] == pytest.approx(np.log(128))
    assert told.value <= np.log(128)
    assert "cap" in told.note


def test_the_bound_by_a_classifier():
    code = np.arange(600) % 3
    sure = np.eye(3)[code] * 50 + np.random.default_rng(0).normal(size=(600, 3))
    assert mutual_information(sure, code, estimator="classifier").value == pytest.approx(np.log(3), abs=0.05)
    noise = np.random.default_rng(1).normal(size=(600, 3))
    assert mutual_information(noise, code, estimator="classifier").value < 0.01


def test_probes_give_predictions_of_rows_they_did_not_see():
    x, code = classes(400, 3)
    groups = np.arange(400) // 4
    label = np.where(groups < 60, code, -1)
    logits = probe_logits(x, label, groups=groups, folds=4)
    np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1)
    assert np.mean(logits.argmax(axis=1) == code) > 0.75  # Bayes: 84 %
    flipped = label.copy()
    flipped[8:12] = 1 - flipped[8:12]
    changed = np.abs(probe_logits(x, flipped, groups=groups, folds=4) - logits).max(axis=1) > 0
    assert not changed[8:12].any()  # no row is told by a probe that saw its group
    assert changed[240:].all()
    with pytest.raises(NotMeaningful, match="folds"):
        probe_logits(x, np.where(np.arange(400) < 3, code, -1))
    with pytest.raises(ConfigError, match="folds >= 2"):
        probe_logits(x, code, folds=1)


def test_intervals_hold_the_truth_as_often_as_they_say():
    for estimator, d in (("gaussian", 4), ("ksg", 1)):
        held = 0
        for seed in range(100):
            found = mutual_information(*dense(200, d, 0.7, seed), estimator=estimator)
            held += found.low <= 0.7 <= found.high
        assert held >= 89, estimator  # 0.95, and 100 draws err by 2.2


def test_groups_are_drawn_as_a_whole_and_widen_the_error():
    drawn = SubSamples(60, np.repeat(np.arange(20), 3), seed=4)
    assert drawn.units == 20
    for rows in drawn.rows:
        assert len(rows) == 30
        assert (np.bincount(rows // 3, minlength=20) % 3 == 0).all()
    x, y = dense(200, 1, 0.7)
    groups = np.repeat(np.arange(200), 5)
    repeated = np.repeat(x, 5, axis=0), np.repeat(y, 5, axis=0)
    alone = mutual_information(x, y, estimator="gaussian", draws=200)
    naive = mutual_information(*repeated, estimator="gaussian", draws=200)
    right = mutual_information(*repeated, estimator="gaussian", groups=groups, draws=200)
    assert right.n == 200
    assert right.standard_error == pytest.approx(alone.standard_error, rel=0.25)
    assert naive.standard_error < 0.6 * right.standard_error
    large = SubSamples(9000, None, draws=2)
    assert len(large.rows[0]) == 2000


def test_calibration_line_says_what_neighbours_miss():
    low, middle, high = calibration_line("ksg", 500, 8, 8, truths=(0.0, 1.0, 2.0))
    assert abs(low.value) < 0.05
    assert middle.value < 0.7
    assert 0.3 < high.value - middle.value < 0.7
    for point in calibration_line("gaussian", 500, 8, 8, truths=(0.0, 1.0, 2.0)):
        assert point.value == pytest.approx(point.truth, abs=0.2)
    for d in (2, 4):  # four classes as a simplex need three columns; in two they are random
        for point in calibration_line("ksg", 1000, d, 1, classes=4):
            assert point.value == pytest.approx(point.truth, abs=0.12)
    with pytest.raises(ConfigError, match=r"log\(2\)"):
        calibration_line("ksg", 500, 2, 1, classes=2, truths=(0.7,))
    with pytest.raises(ConfigError, match="estimator of numbers"):
        calibration_line("discrete", 500, 2, 1)


def test_auto_chooses_by_the_sides():
    x, y = dense(300, 4, 1.0)
    code = np.arange(300) % 3

    def chosen(a, b):
        return mutual_information(a, b).settings["estimator"]

    assert chosen(code, code) == "discrete"
    assert chosen(x[:, :3], y[:, :3]) == chosen(x, code) == "ksg"
    assert chosen(np.hstack([x, y]), code) == "classifier"
    assert chosen(x, y) == "latent"


def test_what_is_not_meaningful_is_withheld_with_its_reason():
    x, y = dense(300, 3, 1.0)
    code = np.arange(300) % 3
    with pytest.raises(NotMeaningful, match="50 pairs"):
        mutual_information(x[:49], y[:49])
    with pytest.raises(NotMeaningful, match="20 groups"):
        mutual_information(x, y, groups=np.arange(300) % 19)
    with pytest.raises(NotMeaningful, match="none of its 3 columns"):
        mutual_information(np.full((300, 3), 0.1), y)
    with pytest.raises(NotMeaningful, match="says nothing"):
        mutual_information(x, np.zeros(300, dtype=int))
    with pytest.raises(NotMeaningful, match="smallest has 4"):
        mutual_information(x, np.where(np.arange(300) < 4, 3, code))
    wide = np.random.default_rng(0).normal(size=(2, 300, 80))
    with pytest.raises(NotMeaningful, match="more than 323 pairs"):
        mutual_information(*wide, estimator="gaussian")
    with pytest.raises(NotMeaningful, match="infinite"):
        mutual_information(x, x + 1, estimator="gaussian")
    assert "biased low" in mutual_information(*wide, estimator="ksg").note
    assert "few for 62 columns" in mutual_information(wide[0][:, :31], wide[1][:, :31], estimator="gaussian").note
    twice = np.repeat(x[:150], 2, axis=0), np.repeat(y[:150], 2, axis=0)
    found = mutual_information(*twice, estimator="ksg", draws=2)
    assert "50 % of pairs repeat" in found.note


def test_what_does_not_fit_is_refused():
    x, y = dense(100, 3, 1.0)
    code = np.arange(100) % 2
    with pytest.raises(DataError, match="as many rows"):
        mutual_information(x, y[:-1])
    with pytest.raises(DataError, match="not finite in row 7"):
        mutual_information(np.where(np.arange(100)[:, None] == 7, np.inf, x), y)
    with pytest.raises(DataError, match="object"):
        mutual_information(x.astype(object), y)
    with pytest.raises(DataError, match="groups must have one entry"):
        mutual_information(x, y, groups=code[:-1], estimator="gaussian")
    with pytest.raises(ConfigError, match="did you mean 'gaussian'"):
        mutual_information(x, y, estimator="gauss")
    with pytest.raises(ConfigError, match="needs classes"):
        mutual_information(x, y, estimator="classifier")
    with pytest.raises(ConfigError, match="two columns"):
        mutual_information(x[:, :1], code, estimator="discrete")
    with pytest.raises(ConfigError, match="take 'discrete'"):
        mutual_information(code, code, estimator="ksg")
    for wrong, says in (
        ({"k": 0}, "k >= 1"),
        ({"draws": 1}, "draws >= 2"),
        ({"level": 1.0}, "level"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ConfigError, match=says):
            mutual_information(x, y, estimator="ksg", **wrong)


def test_the_example_of_the_docstring():
    assert doctest.testmod(information).failed == 0
    assert doctest.testmod(information).attempted > 0
