"""Kernel distances against loops from the equations, inequalities, the intervals' coverage, and what is refused."""

import dataclasses
import doctest
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from crossdistill.data.synthetic import shared_latent
from crossdistill.diagnostics import distance
from crossdistill.diagnostics.distance import (
    independent_difference,
    kernel_entropy,
    kernel_kl,
    kernel_tv,
    mi_lower_bound,
    tv_at_most,
    vote_error,
)
from crossdistill.diagnostics.estimate import Estimate
from crossdistill.diagnostics.ridge import ridge_student
from crossdistill.errors import ConfigError, DataError, NotMeaningful


def draw(n, rng, noise=0.5):
    z = rng.normal(size=(n, 8))
    z[:, 0] += 2
    return z, np.tanh(z) * [1, 1, 1, 1, 0.3, 0.3, 0.3, 0.3] + noise * rng.normal(size=z.shape)


def slow_kernel(z, tau):
    """Write K(j|i) out for one set, (m, m)."""
    m = len(z)
    k = np.zeros((m, m))
    for i in range(m):
        for j in range(m):
            if i != j:
                k[i, j] = math.exp(z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) / tau)
        k[i] /= k[i].sum()
    return k


def slow_tv(z, w, y, tau):
    return np.abs(slow_kernel(z, tau) - slow_kernel(w, tau)).sum(axis=1).mean() / 2


def slow_class_tv(z, w, y, tau):
    apart = slow_kernel(z, tau) - slow_kernel(w, tau)
    return np.mean([sum(abs(row[y == c].sum()) for c in np.unique(y)) / 2 for row in apart])


def slow_kl(z, w, y, tau):
    a, b = slow_kernel(z, tau), slow_kernel(w, tau)
    return np.mean([sum(a[i, j] * math.log(a[i, j] / b[i, j]) for j in range(len(z)) if i != j) for i in range(len(z))])


def slow_entropy(z, w, y, tau):
    k = slow_kernel(z, tau)
    return np.mean([-sum(p * math.log(p) for p in row if p) for row in k])


def slow_vote(z, w, y, tau):
    k = slow_kernel(z, tau)
    return np.mean([sum(k[i, j] for j in range(len(z)) if y[i] != y[j]) for i in range(len(z))])


def slow_mi(z, w, y, tau):
    z, w = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, w))
    s = np.exp(z @ w.T / tau)
    m = len(z)
    return math.log(m) + np.mean(
        [(math.log(s[i, i] / s[i].sum()) + math.log(s[i, i] / s[:, i].sum())) / 2 for i in range(m)]
    )


FAST = {
    "tv": (lambda z, w, y, **kept: kernel_tv(z, w, **kept), slow_tv),
    "class tv": (lambda z, w, y, **kept: kernel_tv(z, w, labels=y, **kept), slow_class_tv),
    "kl": (lambda z, w, y, **kept: kernel_kl(z, w, **kept), slow_kl),
    "entropy": (lambda z, w, y, **kept: kernel_entropy(z, **kept), slow_entropy),
    "vote": (lambda z, w, y, **kept: vote_error(z, y, **kept), slow_vote),
    "mi": (lambda z, w, y, **kept: mi_lower_bound(z, w, **kept), slow_mi),
}


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_values_and_errors_are_those_of_the_equation_over_sets(name, tau, monkeypatch):
    fast, slow = FAST[name]
    rng = np.random.default_rng(3)
    z, w = draw(43, rng)
    y = rng.choice(["a", "b", "c"], 43)
    monkeypatch.setattr(distance, "CHUNK", 2 * 8**2)  # two sets at a time
    found = fast(z, w, y, size=8, tau=tau, seed=7)
    sets = np.random.default_rng(7).permutation(43)[:40].reshape(5, 8)
    expected = [slow(z[s], w[s], y[s], tau) for s in sets]
    assert found.value == pytest.approx(np.mean(expected), rel=1e-10)
    assert found.standard_error == pytest.approx(np.std(expected, ddof=1) / 5**0.5, rel=1e-10)
    assert found.n == 5
    half = stats.t.ppf(0.975, 4) * found.standard_error
    assert found.low == pytest.approx(max(found.value - half, -math.inf if name == "mi" else 0))


@pytest.mark.parametrize("name", FAST)
def test_the_error_over_groups_is_that_of_leaving_each_out(name):
    fast, slow = FAST[name]
    rng = np.random.default_rng(4)
    z, w = draw(40, rng)
    y = rng.integers(0, 3, 40)
    groups = rng.permutation(np.repeat([5, 6, 7, 8, 9], [4, 6, 8, 10, 12]))
    found = fast(z, w, y, size=10, tau=0.2, groups=groups, seed=2)
    sets = np.random.default_rng(2).permutation(40).reshape(4, 10)
    means = []
    for gone in range(5, 10):
        kept = [s[groups[s] != gone] for s in sets]
        means.append(np.average([slow(z[s], w[s], y[s], 0.2) for s in kept], weights=[len(s) for s in kept]))
    assert found.standard_error == pytest.approx(np.sqrt(4 / 5 * np.square(means - np.mean(means)).sum()), rel=1e-9)
    assert found.n == 5
    assert found.value == pytest.approx(fast(z, w, y, size=10, tau=0.2, seed=2).value, rel=1e-12)


def test_a_group_that_leaves_one_pair_or_none_of_a_set_takes_the_set_with_it():
    rng = np.random.default_rng(0)
    z, w = draw(24, rng)
    sets = np.random.default_rng(0).permutation(24).reshape(6, 4)
    groups = np.zeros(24, dtype=int)
    groups[sets[0]], groups[sets[1]], groups[sets[2]] = 1, [1, 1, 1, 2], [1, 1, 2, 2]
    found = kernel_tv(z, w, size=4, groups=groups)
    means = []
    for gone in range(3):
        kept = [s[groups[s] != gone] for s in sets]
        kept = [s for s in kept if len(s) > 1]
        means.append(np.average([slow_tv(z[s], w[s], None, 0.1) for s in kept], weights=[len(s) for s in kept]))
    assert found.standard_error == pytest.approx(np.sqrt(2 / 3 * np.square(means - np.mean(means)).sum()), rel=1e-9)


def test_what_does_not_change_a_kernel_changes_no_distance():
    rng = np.random.default_rng(0)
    z, w = draw(300, rng)
    turned = 7 * z @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert kernel_tv(z, turned).value == pytest.approx(0, abs=1e-12)
    assert kernel_kl(z, turned).value == pytest.approx(0, abs=1e-12)
    wide = np.hstack([w, np.zeros((300, 5))])  # widths may differ
    assert kernel_tv(z, wide).value == pytest.approx(kernel_tv(z, w).value, rel=1e-12)
    assert kernel_tv(z, w).value == pytest.approx(kernel_tv(w, z).value, rel=1e-12)
    assert kernel_kl(z, w).value != pytest.approx(kernel_kl(w, z).value, rel=1e-3)


def test_known_values():
    rng = np.random.default_rng(0)
    z, _ = draw(320, rng)
    flat = 1 + 1e-9 * rng.normal(size=(320, 3))
    assert kernel_entropy(flat, size=32).value == pytest.approx(math.log(31))
    assert "high" in kernel_entropy(flat).note
    assert "low" in kernel_entropy(z, tau=0.001).note
    assert not kernel_entropy(z, size=32).note
    # of a constant student the loss is ln(size - 1), less the teacher's entropy
    kl = kernel_kl(z, flat, size=32).value
    assert kl == pytest.approx(math.log(31) - kernel_entropy(z, size=32).value)
    assert mi_lower_bound(flat, flat).value == pytest.approx(0, abs=1e-12)
    eye = np.tile(np.eye(8), (2, 1))[np.argsort(np.random.default_rng(0).permutation(16))]  # each set of 8 orthonormal
    found = mi_lower_bound(eye, eye, size=8, tau=0.5)
    loss = math.log(1 + 7 * math.exp(-2))
    assert loss == pytest.approx(0.666467925, abs=1e-9)
    assert found.value == pytest.approx(math.log(8) - loss)
    assert "cap" in mi_lower_bound(z, z, tau=0.01).note
    labels = np.arange(320) % 4
    assert vote_error(np.eye(4)[labels], labels, tau=0.05).value == pytest.approx(0, abs=1e-6)
    assert vote_error(flat, labels).value == pytest.approx(0.75, abs=0.02)


def test_inequalities_hold_for_every_draw():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z, w = draw(128, rng, noise=rng.uniform(0.1, 3))
        y = rng.integers(0, 4, 128)
        kept = {"size": 32, "tau": rng.choice([0.05, 0.1, 0.5]), "seed": seed}
        tv, coarse, kl = kernel_tv(z, w, **kept), kernel_tv(z, w, labels=y, **kept), kernel_kl(z, w, **kept)
        assert 0 <= coarse.value <= tv.value <= 1
        assert tv.value <= tv_at_most(kl.value)
        # Theorem G: no tolerance but rounding's, as the sets are the same
        gap = abs(vote_error(z, y, **kept).value - vote_error(w, y, **kept).value)
        assert gap <= coarse.value + 1e-12
        assert mi_lower_bound(z, w, **kept).value <= math.log(32)
        assert tv.low >= 0
        assert kl.low >= 0


def test_pinsker_and_the_sharper_bound():
    assert tv_at_most(0) == 0
    assert tv_at_most(0.5) == 0.5
    assert tv_at_most(3) == pytest.approx(math.sqrt(1 - math.exp(-3)))
    assert tv_at_most(1e300) == 1
    with pytest.raises(ConfigError, match="-1"):
        tv_at_most(-1)


def test_farther_pairs_are_farther_and_carry_less():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(640, 8))
    noise = rng.normal(size=z.shape)
    students = [z + s * noise for s in (0.2, 0.5, 1, 2, 5)]
    assert (np.diff([kernel_tv(z, w).value for w in students]) > 0).all()
    assert (np.diff([kernel_kl(z, w).value for w in students]) > 0).all()
    assert (np.diff([mi_lower_bound(z, w).value for w in students]) < 0).all()


def test_the_ridge_student_is_the_nearer_the_more_the_modalities_share():
    found = []
    for rho in (0, 0.5, 0.85, 1):
        data = shared_latent(rho=rho, n_pairs=1280, n_test=2, n_validation=2).split("train")
        a, b = (np.asarray(data.raw(name, np.arange(1280)), dtype=float) for name in ("a", "b"))
        found.append(kernel_tv(a, ridge_student(b, a).values))
    # here of the raw source, the sheet's teacher fell from .78 to .36; steps are far above a standard error
    assert all(first.low > second.high for first, second in itertools.pairwise(found))


def test_a_mutual_information_bound_stays_below_the_truth():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 6400)
    turned = angle + rng.vonmises(0, 4, 6400)
    z, w = (np.stack([np.cos(a), np.sin(a)], axis=1) for a in (angle, turned))
    truth = math.log(2 * np.pi) - stats.vonmises(4).entropy()
    found = mi_lower_bound(z, w, size=128, tau=0.25)  # cos / tau is the log density ratio, so the bound is tight
    assert found.value == pytest.approx(truth, abs=0.03)
    assert mi_lower_bound(z, w, size=128, tau=1).high < truth


@pytest.mark.parametrize("measure", [kernel_tv, kernel_kl, mi_lower_bound])
def test_intervals_cover_the_mean_over_sets(measure):
    truth = measure(*draw(40_000, np.random.default_rng(10**6)), size=16).value
    found = [measure(*draw(320, np.random.default_rng(seed)), size=16, seed=seed) for seed in range(200)]
    covered = np.mean([e.low <= truth <= e.high for e in found])
    assert 0.91 <= covered <= 0.99  # 0.95, 2.6 binomial standard errors of 200 to either side
    spread = np.std([e.value for e in found])
    assert 0.85 < np.mean([e.standard_error for e in found]) / spread < 1.15  # the spread's own error is 5 %


def test_intervals_over_groups_cover_where_those_over_sets_do_not():
    def grouped(rng, groups):
        code = np.repeat(np.arange(groups), 16)
        z = rng.normal(size=(groups, 8))[code] + rng.normal(size=(groups * 16, 8))
        return z, z + rng.uniform(0.2, 1.5, groups)[code, None] * rng.normal(size=z.shape), code

    *pairs, _ = grouped(np.random.default_rng(10**6), 2500)
    truth, hit, ignoring = kernel_tv(*pairs, size=32).value, [], []
    for seed in range(100):
        z, w, code = grouped(np.random.default_rng(seed), 30)
        for groups, into in ((code, hit), (None, ignoring)):
            found = kernel_tv(z, w, size=32, groups=groups, seed=seed)
            into.append(found.low <= truth <= found.high)
    assert np.mean(hit) >= 0.89  # 0.95, less 2.7 binomial standard errors of 100
    assert np.mean(ignoring) < 0.85


def test_differences_are_of_one_quantity_and_add_their_errors():
    first = Estimate(0.5, 0.03, 0.44, 0.56, 20, settings={"size": 64, "tau": 0.1})
    second = Estimate(0.4, 0.04, 0.32, 0.48, 10, settings={"size": 64, "tau": 0.1})
    found = independent_difference(first, second)
    assert found.value == pytest.approx(0.1)
    assert found.standard_error == pytest.approx(0.05)
    freedom = 0.05**4 / (0.03**4 / 19 + 0.04**4 / 9)
    assert found.high == pytest.approx(0.1 + stats.t.ppf(0.975, freedom) * 0.05)
    for changed in ({"size": 32, "tau": 0.1}, {"size": 64, "tau": 0.2}, {}):
        with pytest.raises(ConfigError, match="same"):
            independent_difference(first, dataclasses.replace(second, settings=changed))
    with pytest.raises(ConfigError, match="level"):
        independent_difference(first, dataclasses.replace(second, level=0.9))
    with pytest.raises(NotMeaningful):
        independent_difference(first, dataclasses.replace(second, standard_error=None))
    exact = dataclasses.replace(first, standard_error=0.0)
    assert independent_difference(exact, exact).high == 0


def test_a_seed_gives_the_same_numbers_and_the_order_of_pairs_is_no_part():
    z, w = draw(320, np.random.default_rng(0))
    assert kernel_tv(z, w) == kernel_tv(z, w)
    assert kernel_tv(z, w, seed=1).value == pytest.approx(kernel_tv(z, w).value, abs=0.03)
    order = np.argsort(z[:, 0])
    found = kernel_tv(z[order], w[order])  # sorted pairs are drawn into sets all the same
    assert found.value == pytest.approx(kernel_tv(z, w).value, abs=0.03)  # 4 standard errors


def test_extreme_embeddings_stay_finite():
    z, w = draw(128, np.random.default_rng(0))
    w[5] = 0
    z[3] *= 1e200
    for found in (kernel_tv(z, w, tau=1e-4), kernel_kl(z, w, tau=1e-4), mi_lower_bound(z, w, tau=1e-4)):
        assert math.isfinite(found.value)
        assert math.isfinite(found.standard_error)


def test_what_does_not_fit_is_refused():
    z, w = draw(128, np.random.default_rng(0))
    with pytest.raises(NotMeaningful, match="127 pairs: take size 15"):
        kernel_tv(z[:127], w[:127])
    with pytest.raises(DataError, match="128 and 127"):
        kernel_tv(z, w[:127])
    with pytest.raises(DataError, match="target has a value that is not finite in row 2"):
        kernel_kl(z, np.where(np.arange(128)[:, None] == 2, np.inf, w))
    with pytest.raises(DataError, match="one space"):
        mi_lower_bound(z, w[:, :3])
    with pytest.raises(DataError, match="labels"):
        vote_error(z, np.zeros(127))
    with pytest.raises(NotMeaningful, match="groups"):
        kernel_tv(z, w, groups=np.zeros(128))
    nearly = np.zeros(128, dtype=int)
    nearly[0] = 1
    with pytest.raises(NotMeaningful, match="nearly all"):
        kernel_tv(z, w, groups=nearly)
    for wrong in ({"size": 2}, {"tau": 0}, {"tau": math.nan}, {"level": 1}, {"seed": -1}):
        with pytest.raises(ConfigError):
            kernel_tv(z, w, **wrong)


def test_examples_in_the_docstrings():
    found = doctest.testmod(distance)
    assert found.failed == 0
    assert found.attempted > 0
