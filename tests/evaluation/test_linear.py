import numpy as np
import pytest
import torch
from scipy.special import softmax

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation import accuracy, linear, linear_probe
from crossdistill.evaluation.linear import GRID


def problem(classes, each, d, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(classes, d))
    label = np.tile(np.arange(classes), each)
    return centre[label] + spread * rng.normal(size=(classes * each, d)), label


@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("c", [0.5, 10.0])
def test_the_penalised_likelihood_is_stationary(classes, normalise, c):
    x, y = problem(classes, 12, 5)
    probe = linear_probe(x, y, c=c, normalise=normalise)
    assert probe.converged
    used = x / np.linalg.norm(x, axis=1, keepdims=True) if normalise else x
    p = softmax(used @ probe.weight.T + probe.bias, axis=1)
    error = np.eye(classes)[y] - p
    assert np.abs(error.sum(axis=0)).max() < 2e-2  # the intercept is free
    assert np.abs(c * error.T @ used - probe.weight).max() < 2e-2 * max(c, 1)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_head_gives_the_same_probabilities(classes, normalise):
    x, y = problem(classes, 6, 4)
    probe = linear_probe(x, y, normalise=normalise)
    new = np.concatenate([problem(classes, 9, 4, seed=1)[0], np.zeros((1, 4))])
    new[0] *= 1e15
    new[1] *= 1e-15
    head = probe.head()
    given = head(torch.from_numpy(new).float()).softmax(dim=1).detach().numpy()
    assert np.allclose(given, probe.predict_proba(new), atol=2e-6)
    assert np.array_equal(probe.classes[given.argmax(axis=1)], probe.predict(new))


def test_the_head_learns_on():
    x, y = problem(3, 6, 4)
    head = linear_probe(x, y).head()
    features = torch.from_numpy(x).float().requires_grad_()
    head(features).logsumexp(dim=1).sum().backward()
    assert features.grad.isfinite().all()
    assert (features.grad * features).sum(dim=1).abs().max() < 1e-4  # the length is no information
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_scale_does_not_matter_when_normalised():
    x, y = problem(3, 10, 6)
    probe, scaled = linear_probe(x, y), linear_probe(x * np.exp(np.arange(30) - 15.0)[:, None], y)
    assert np.allclose(probe.predict_proba(x), scaled.predict_proba(x), atol=1e-6)


def test_labels_come_back_as_they_were():
    x, y = problem(3, 10, 6, spread=0.1)
    words = np.array(["owl", "ant", "bee"])[y]
    probe = linear_probe(x, words)
    assert probe.classes.tolist() == ["ant", "bee", "owl"]
    assert accuracy(probe.predict(x), words) == 1
    assert probe.predict_proba(x).sum(axis=1) == pytest.approx(1)


def test_one_label_a_class_and_many_classes_are_our_trade():
    x, y = problem(60, 1, 32)
    assert accuracy(linear_probe(x, y).predict(x), y) == 1
    assert linear_probe(x, y, c="cv").c == 10.0


def test_cross_validation_knows_noise_from_signal():
    noise = np.random.default_rng(0).normal(size=(60, 8))
    label = np.arange(60) % 3
    assert linear_probe(noise, label, c="cv").c == GRID[0]
    clear, y = problem(3, 20, 8, spread=0.05)
    assert linear_probe(clear, y, c="cv").c == GRID[-1]
    assert linear_probe(noise, label, c="cv").c == linear_probe(noise, label, c="cv").c


def test_what_does_not_fit_is_refused():
    x, y = problem(2, 3, 4)
    with pytest.raises(DataError, match="all 6 labels are 1"):
        linear_probe(x, np.ones(6, dtype=int))
    with pytest.raises(DataError, match="row 2"):
        linear_probe(np.where(np.arange(6)[:, None] == 2, np.inf, x), y)
    with pytest.raises(DataError, match="4 columns"):
        linear_probe(x, y).predict(x[:, :3])
    for c in (0.0, -1.0, np.nan, "best"):
        with pytest.raises(ConfigError, match="c must be"):
            linear_probe(x, y, c=c)


def test_a_part_of_the_rows_at_a_time_is_as_all_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    probe = linear_probe(rng.normal(size=(60, 5)), np.arange(60) % 12)
    rows = rng.normal(size=(100, 5))
    whole = probe.predict(rows)
    monkeypatch.setattr(linear, "HELD", 12 * 7)
    assert np.array_equal(probe.predict(rows), whole)
    rows[93, 2] = np.nan
    with pytest.raises(DataError, match="row 93"):
        probe.predict(rows)
