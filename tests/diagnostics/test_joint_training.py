"""Joint training: its gradient against autograd, what it is for, and what is refused."""

import doctest

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from crossdistill.diagnostics import joint_training, modality_generality
from crossdistill.diagnostics.joint_training import align_jointly
from crossdistill.errors import ConfigError, DataError, NotMeaningful


def nested(own=10, shared=10, n=200, width=50, seed=42):
    """MFH's third set: the first columns are in both modalities, the next decide too and are the teacher's alone."""
    rng = np.random.default_rng(seed)
    latent, teacher = rng.normal(size=(n, own + shared)), rng.normal(size=(n, width))
    student = rng.normal(size=(n, width))
    teacher[:, : own + shared], student[:, :shared] = latent, latent[:, :shared]
    return teacher, student, (latent.sum(axis=1) > 0).astype(int)


def found_shared(x, t, nets):
    return np.mean(modality_generality(x, nets.teacher, nets.student.logits(t)).kept(10) < 10)


def test_training_is_torchs_sgd_on_the_sum_of_three_terms():
    x, t, _ = nested(n=40, width=25)
    y = np.arange(40) % 3
    start = align_jointly(x, t, y, rate=1e-300, steps=1, seed=3)
    layers = [torch.nn.Linear(25, 3, dtype=torch.float64) for _ in range(2)]
    for layer, linear in zip(layers, start, strict=True):
        layer.weight.data, layer.bias.data = (
            torch.from_numpy(linear.weight.copy()),
            torch.from_numpy(linear.bias.copy()),
        )
    optimiser = torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.05, momentum=0.9)
    for _ in range(5):
        z_t, z_s = layers[0](torch.from_numpy(x)), layers[1](torch.from_numpy(t))
        target = torch.from_numpy(y)
        loss = F.cross_entropy(z_t, target) + F.cross_entropy(z_s, target) + 0.7 * F.mse_loss(z_t, z_s)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for layer, linear in zip(layers, align_jointly(x, t, y, pull=0.7, rate=0.05, steps=5, seed=3), strict=True):
        np.testing.assert_allclose(linear.weight, layer.weight.detach(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(linear.bias, layer.bias.detach(), rtol=1e-9, atol=1e-12)


def test_networks_trained_together_show_what_they_share_and_apart_they_do_not():
    together, apart = [], []
    for seed in range(42, 46):
        x, t, y = nested(seed=seed)
        together.append(found_shared(x, t, align_jointly(x, t, y)))
        apart.append(found_shared(x, t, align_jointly(x, t, y, pull=0.0)))
    assert np.mean(together) >= 0.9
    assert np.mean(together) > np.mean(apart) + 0.05


def test_unknown_labels_are_left_out_and_wrong_input_is_refused():
    x, t, y = nested(n=90)
    known = np.arange(90) % 3 > 0
    some, same = (
        align_jointly(x, t, np.where(known, y, -1), steps=3),
        align_jointly(x[known], t[known], y[known], steps=3),
    )
    np.testing.assert_array_equal(some.teacher.weight, same.teacher.weight)
    with pytest.raises(NotMeaningful, match="two classes"):
        align_jointly(x, t, np.zeros(90))
    with pytest.raises(DataError, match="lower one"), np.errstate(all="ignore"):
        align_jointly(x * 1e200, t, y, rate=1e200, steps=4)
    for bad in ({"pull": -1.0}, {"rate": 0.0}, {"steps": 0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            align_jointly(x, t, y, **bad)


def test_the_example_of_the_docstring():
    assert doctest.testmod(joint_training).failed == 0
    assert doctest.testmod(joint_training).attempted > 0
