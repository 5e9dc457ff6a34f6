"""The competing network: its activation and gradient, and the race against its closed forms."""

import numpy as np
import pytest
import torch

from crossdistill.diagnostics.fusion_network import (
    FusionNetwork,
    hitting_time,
    smoothed_relu,
    win_probability,
    winner_score,
)
from crossdistill.errors import ConfigError, DataError


def drawn(widths=(4, 3), classes=3, neurons=5, scale=0.5, q=3, seed=0):
    return FusionNetwork.drawn(widths, classes, neurons=neurons, scale=scale, q=q, seed=seed)


def pairs(n=30, widths=(4, 3), classes=3, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, width)) for width in widths], np.arange(n) % classes


def slow_relu(a, q, beta):
    return torch.where(a >= beta, a - (1 - 1 / q) * beta, a.clamp(min=0) ** q / (q * beta ** (q - 1)))


@pytest.mark.parametrize("q", [2, 3, 4])
def test_the_smoothed_relu_is_a_power_that_turns_linear(q):
    a = np.linspace(-1, 2, 301)
    np.testing.assert_allclose(smoothed_relu(a, q=q, beta=0.5), slow_relu(torch.from_numpy(a), q, 0.5))
    ends = smoothed_relu([-1e-9, 0.0, 0.5, 0.5 + 1e-9], q=q, beta=0.5)
    np.testing.assert_allclose(ends, [0, 0, 0.5 / q, 0.5 / q], atol=2e-9)
    assert smoothed_relu([-1.0, 0.2, 3.0], q=1).tolist() == [0, 0.2, 3]


@pytest.mark.parametrize("q", [1, 3, 4])
def test_a_step_of_training_is_one_of_autograd(q):
    net, (x, y) = drawn(q=q), pairs()
    weights = [torch.from_numpy(w).requires_grad_() for w in net.weights]
    logits = sum(
        slow_relu(torch.einsum("nd,cmd->ncm", torch.from_numpy(a), w), q, 0.5).sum(2)
        if q > 1
        else torch.einsum("nd,cmd->ncm", torch.from_numpy(a), w).relu().sum(2)
        for a, w in zip(x, weights, strict=True)
    )
    torch.testing.assert_close(logits.detach(), torch.from_numpy(net.contributions(x).sum(axis=0)))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)).backward()
    after, speed = net.trained(x, y, rate=0.1, steps=1)
    for r, w in enumerate(weights):
        np.testing.assert_allclose(after.weights[r], w.detach() - 0.1 * w.grad, rtol=1e-10, atol=1e-14)
        assert speed[r] == pytest.approx(float(w.grad.square().sum() / w.detach().square().sum()))


def test_a_branch_alone_is_the_same_branch():
    net, (x, _) = drawn(), pairs()
    both = net.contributions(x)
    for r in range(2):
        np.testing.assert_array_equal(net.only(r).contributions([x[r]])[0], both[r])


def test_the_time_to_leave_the_small_zone_is_that_of_its_equation():
    assert hitting_time(0.01, 1.0) == pytest.approx(98)
    # one clean feature a class, every sample the same: q = 3, S = 1 / (2 beta^2)
    x, y = np.repeat(np.eye(2), 10, axis=0), np.repeat([0, 1], 10)
    net, steps, rate = FusionNetwork((np.array([[[0.01, 0.0]], [[0.0, 0.01]]]),)), 0, 0.05
    foretold = hitting_time(0.01, 2.0, rate=rate, classes=2)
    while net.correlations([np.eye(2)]).max() < 0.5:
        net, steps = net.trained([x], y, rate=rate, steps=20)[0], steps + 20
    # Euler's steps lag behind near the blow-up, and the loss falls a little on the way
    assert foretold < steps < 1.05 * foretold + 20


@pytest.mark.parametrize("q", [3, 4])
def test_growth_without_features_is_the_score_with_them(q):
    # small weights and clean one-hot features: d ln phi / dt = q (1 - 1/c) S G^(q-2)
    x = [strength * np.repeat(np.eye(4), 5, axis=0) for strength in (1.0, 1.4)]
    y, net = np.repeat(np.arange(4), 5), drawn((4, 4), 4, scale=0.01, q=q, seed=3)
    correlation = net.correlations([np.eye(4), np.eye(4)])
    strength = np.array([1.0, 1.4]) ** q / 4 / 0.5 ** (q - 1)
    expected = q * 0.75 * strength * correlation ** (q - 2)
    np.testing.assert_allclose(net.growth(x, y), expected, rtol=0.01)
    order = winner_score(correlation, np.tile(strength, (4, 1)), q=q).argmax(axis=1)
    assert net.growth(x, y).argmax(axis=1).tolist() == order.tolist()
    assert net.growth([part[:15] for part in x], y[:15])[3].tolist() == [0, 0]  # a class without samples


def test_a_dead_class_does_not_grow():
    x, y = [np.eye(2)], np.arange(2)
    net = FusionNetwork((np.array([[[-1.0, 0.0]], [[0.0, 1.0]]]),))
    assert net.growth(x, y)[:, 0].tolist() == [0, pytest.approx(net.growth(x, y)[1, 0])]
    assert net.growth(x, y)[1, 0] > 0


def test_win_probabilities_are_those_of_drawn_weights():
    rng = np.random.default_rng(0)
    for kappa in (0.5, 1.0, 2.0, 3.0):
        assert win_probability(kappa, 1) == pytest.approx(0.25 + np.arctan(1 / kappa) / (2 * np.pi), abs=1e-7)
        for neurons in (3, 8):
            both = win_probability(kappa, neurons) + win_probability(1 / kappa, neurons)
            assert both == pytest.approx(1 - 4.0**-neurons, abs=1e-7)
            own, other = rng.normal(size=(2, 40000, neurons)).max(axis=2)
            drawn_share = ((own > 0) & (own > kappa * np.maximum(other, 0))).mean()
            assert win_probability(kappa, neurons) == pytest.approx(drawn_share, abs=0.01)  # four standard errors
    assert win_probability(1.3**3, 8) == pytest.approx(0.118, abs=0.001)


def test_what_is_no_race_is_refused():
    with pytest.raises(ConfigError, match="q > 2"):
        winner_score([1.0], [1.0], q=2)
    with pytest.raises(ConfigError, match="q >= 1"):
        smoothed_relu([1.0], q=0)
    with pytest.raises(ConfigError, match="beta > 0"):
        FusionNetwork.drawn([2], 2, beta=0.0)
    for correlation in (0.0, 0.6):
        with pytest.raises(ConfigError, match="correlation"):
            hitting_time(correlation, 1.0)
    for kappa, neurons in ((0.0, 3), (1.0, 0)):
        with pytest.raises(ConfigError, match="kappa"):
            win_probability(kappa, neurons)
    net, (x, y) = drawn(scale=3.0), pairs()
    with np.errstate(all="ignore"), pytest.raises(DataError, match="rate 1e"):
        net.trained(x, y, rate=1e308, steps=4)
