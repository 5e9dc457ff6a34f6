"""Theorem G's certificate, and the reconstructed bound's terms against their formulas."""

import dataclasses
import math

import numpy as np
import pytest

from crossdistill.diagnostics.bound import (
    kappa_lower_bound,
    rademacher_linear,
    reconstructed_bound,
    vote_certificate,
)
from crossdistill.diagnostics.distance import kernel_kl, kernel_tv, vote_error
from crossdistill.diagnostics.estimate import Estimate
from crossdistill.errors import ConfigError, DataError, NotMeaningful


def world(noise, seed=0, n=640):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    z = 2 * np.eye(4)[y] + 0.5 * rng.normal(size=(n, 4))
    return z, z + noise * rng.normal(size=z.shape), y


@pytest.mark.parametrize("noise", [0.1, 0.5, 3.0])
def test_the_certificate_holds_and_is_empty_where_modalities_are_far_apart(noise):
    z, w, _ = world(noise)
    labelled, _, y = world(0, seed=1)  # other items of the source, with labels
    certificate = vote_certificate(vote_error(labelled, y), kernel_tv(z, w))
    target, truth = world(noise, seed=2)[1:]
    assert vote_error(target, truth).value < certificate.bound.high
    assert certificate.bound.value == min(1, certificate.source_error.value + certificate.distance.value)
    assert certificate.bound.low <= certificate.bound.value <= certificate.bound.high <= 1
    assert certificate.majority == min(1, 2 * certificate.bound.high)
    assert ("nothing is certified" in certificate.bound.note) == (certificate.bound.high == 1)
    if noise == 0.1:
        assert certificate.bound.high < 0.3  # chance errs 0.75
    assert certificate.as_json()["bound"]["value"] == certificate.bound.value


def test_coarsening_by_class_makes_a_far_tighter_certificate():
    z, w, y = world(0.5)
    error = vote_error(z, y)
    fine, coarse = (vote_certificate(error, kernel_tv(z, w, labels=labels)).bound for labels in (None, y))
    assert vote_error(w, y).value <= coarse.value < fine.value - 0.1


def test_certificates_take_estimates_of_one_quantity():
    z, w, y = world(0.5)
    with pytest.raises(ConfigError, match="size"):
        vote_certificate(vote_error(z, y, size=32), kernel_tv(z, w))
    with pytest.raises(ConfigError, match="tau"):
        vote_certificate(vote_error(z, y, tau=0.2), kernel_tv(z, w))
    with pytest.raises(NotMeaningful, match="intervals"):
        vote_certificate(dataclasses.replace(vote_error(z, y), low=None), kernel_tv(z, w))


def test_rademacher_is_the_mean_over_all_signs_and_below_jensens_bound():
    z = np.random.default_rng(0).normal(size=(4, 3))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T.reshape(-1, 4, 2)
    exact = np.mean([np.linalg.norm(unit.T @ s) for s in signs]) * 3 / 4
    found = rademacher_linear(5 * z, 2, norm=3, draws=20_000)
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.01 * exact
    many = rademacher_linear(np.random.default_rng(1).normal(size=(50, 64)), 10)
    # the sheet's 0.4473 +- 0.0003, of other features; Jensen's bound is sqrt(10 / 50) = 0.4472
    assert many.value == pytest.approx(0.4472, abs=0.003)
    assert many.value < math.sqrt(10 / 50) + 3 * many.standard_error
    assert "vacuous" in many.note
    assert not rademacher_linear(np.ones((1000, 1)), 2, draws=10).note
    assert rademacher_linear(z, 2, seed=3) == rademacher_linear(z, 2, seed=3)


def test_draws_in_parts_are_all_draws(monkeypatch):
    z = np.random.default_rng(0).normal(size=(6, 3))
    monkeypatch.setattr("crossdistill.diagnostics.bound.CHUNK", 6 * 2 * 7)  # seven draws at a time
    found = rademacher_linear(z, 2, draws=500)
    assert found.n == 500
    assert found.value == pytest.approx(rademacher_linear(z, 2, draws=5000, seed=1).value, rel=0.05)


def test_kappa_is_the_steepest_rise_of_the_risk():
    rng = np.random.default_rng(0)
    losses = rng.random((3, 400)) + np.array([[0.0], [0.2], [0.1]])
    found = kappa_lower_bound(losses, [0.0, 0.4, 0.1], 0)
    rise = losses.mean(axis=1) - losses[0].mean()
    assert found.value == pytest.approx(max(rise[1] / 0.4, rise[2] / 0.1))
    assert found.low < 1.0 < found.high
    assert found.standard_error == pytest.approx(math.sqrt(2 / 12 / 400) / 0.1, rel=0.15)
    assert "never a certificate" in found.note
    twice = kappa_lower_bound(np.repeat(losses, 2, axis=1), [0, 0.4, 0.1], 0, groups=np.repeat(np.arange(400), 2))
    assert twice.value == pytest.approx(found.value)
    assert twice.standard_error == pytest.approx(found.standard_error, rel=1e-6)


def given():
    z, w, y = world(0.5)
    return kernel_tv(z, w), rademacher_linear(z[:100], 4, norm=2), kernel_kl(z, w), y


def test_what_cannot_be_known_stays_unknown():
    distance, rademacher, _, _ = given()
    found = reconstructed_bound(distance, rademacher, kappa=1, n_source=1000, n_pairs=640)
    assert [t.name for t in found.terms] == ["modality distance", "step 1", "step 2", "step 3", "deviation"]
    assert [t.how for t in found.terms] == ["measured", "unknown", "unknown", "measured", "computed"]
    assert found.total is None
    assert found.vacuous
    assert "reconstruction" in found.as_json()["source"]


def test_terms_are_those_of_the_theorem():
    distance, rademacher, kl, _ = given()
    found = reconstructed_bound(
        distance, rademacher, kappa=2, n_source=10_000, n_pairs=64_063, log_brackets_source=5, log_brackets_target=3
    )
    most = math.log(4) + math.sqrt(2) * 2
    expected = [
        distance.value,
        3 * math.sqrt((5 + math.log(120)) / 10_000),
        3 * math.sqrt((3 + math.log(120)) / 1000),
        4 * rademacher.value,
        most * math.sqrt(2 * math.log(120) / 100),
    ]
    np.testing.assert_allclose([t.value for t in found.terms], expected)
    assert found.loss_bound == pytest.approx(most)
    assert found.total == pytest.approx(2 * sum(expected[:3]) + sum(expected[3:]))
    measured = reconstructed_bound(distance, rademacher, kl_held_out=kl)
    assert measured.terms[2].value == pytest.approx(math.sqrt(kl.value / 2))
    assert measured.terms[2].how == "measured"
    assert reconstructed_bound(distance, rademacher, n_source=1, log_brackets_source=99).terms[1].value == 1


def test_with_few_classes_and_a_million_labels_it_says_something():
    tight = Estimate(0.01, 0.001, 0.008, 0.012, 50, settings={"size": 64, "tau": 0.1})
    many = Estimate(0.002, 0.0, 0.002, 0.002, 2000, settings={"rows": 10**6, "classes": 4, "norm": 2.0})
    kept = {"log_brackets_source": 10, "log_brackets_target": 10, "n_source": 10**6, "n_pairs": 10**8}
    found = reconstructed_bound(tight, many, kappa=1, **kept)
    assert not found.vacuous
    assert reconstructed_bound(tight, many, kappa=1000, **kept).vacuous


def test_a_heads_cross_entropy_never_exceeds_its_bound():
    rng = np.random.default_rng(0)
    bound = reconstructed_bound(*given()[:2]).loss_bound
    for _ in range(200):
        weight, z = rng.normal(size=(4, 2)), rng.normal(size=2)
        logits = (2 * weight / np.linalg.norm(weight)) @ (z / np.linalg.norm(z))
        assert np.log(np.exp(logits).sum()) - logits.min() <= bound


def test_what_does_not_fit_is_refused():
    distance, rademacher, kl, _ = given()
    with pytest.raises(ConfigError, match="delta"):
        reconstructed_bound(distance, rademacher, delta=0)
    with pytest.raises(ConfigError, match="kappa"):
        reconstructed_bound(distance, rademacher, kappa=-1)
    with pytest.raises(ConfigError, match="n_pairs"):
        reconstructed_bound(distance, rademacher, n_pairs=0)
    with pytest.raises(ConfigError, match="step 2"):
        reconstructed_bound(distance, rademacher, n_pairs=63, log_brackets_target=1)
    with pytest.raises(ConfigError, match="rademacher_linear"):
        reconstructed_bound(distance, distance)
    with pytest.raises(ConfigError, match="size"):
        reconstructed_bound(distance, rademacher, kl_held_out=dataclasses.replace(kl, settings={"size": 2, "tau": 0.1}))
    with pytest.raises(ConfigError, match="classes"):
        rademacher_linear(np.ones((3, 2)), 0)
    losses = np.ones((2, 5))
    with pytest.raises(DataError, match="above 0"):
        kappa_lower_bound(losses, [0, 0], 0)
    with pytest.raises(ConfigError, match="best"):
        kappa_lower_bound(losses, [0, 1], 2)
    with pytest.raises(NotMeaningful, match="two encoders"):
        kappa_lower_bound(losses[:1], [0], 0)
    with pytest.raises(NotMeaningful, match="received 2 and 1"):
        kappa_lower_bound(losses, [0, 1], 0, groups=np.zeros(5))
