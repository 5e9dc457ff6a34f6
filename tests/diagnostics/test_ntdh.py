"""The non-target divergence against the loss of the same name, its identities, and its probes."""

import doctest

import numpy as np
import pytest
import torch

from crossdistill.diagnostics import ntdh
from crossdistill.diagnostics.ntdh import nontarget_estimate, nontarget_of_probes
from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.objectives.ntdh import nontarget_divergence


def logits(n=60, c=4, seed=0):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(n, c)), rng.normal(size=(n, c)), np.arange(n) % c


@pytest.mark.parametrize("kind", ["js", "ntdh", "kl"])
def test_it_is_the_mean_that_the_loss_of_that_name_gives(kind):
    t, s, y = logits()
    y[:7] = -1
    found = nontarget_estimate(t, s, y, trained="distilled", kind=kind)
    loss = nontarget_divergence(torch.from_numpy(s), torch.from_numpy(t), torch.from_numpy(y), kind=kind)
    assert found.value == pytest.approx(float(loss), rel=1e-5)
    assert found.n == 53
    assert "distilled" in found.note


def test_what_is_said_of_the_label_does_not_matter_and_js_is_bounded():
    t, s, y = logits()
    found = nontarget_estimate(t, s, y, trained="independent")
    moved = t + np.eye(4)[y] * np.random.default_rng(1).normal(size=(60, 1)) * 50
    assert nontarget_estimate(moved, s, y, trained="independent").value == pytest.approx(found.value)
    assert nontarget_estimate(s, t, y, trained="independent").value == pytest.approx(found.value)
    far = nontarget_estimate(500 * t, -500 * t, y, trained="independent")
    assert found.value < far.value <= np.log(2) + 1e-12
    assert nontarget_estimate(t, t + 3, y, trained="independent").value == pytest.approx(0, abs=1e-12)


def test_errors_are_the_spread_over_draws_and_of_groups():
    drawn = [nontarget_estimate(*logits(seed=seed), trained="independent") for seed in range(80)]
    spread = np.std([one.value for one in drawn])
    assert np.mean([one.standard_error for one in drawn]) == pytest.approx(spread, rel=0.25)
    t, s, y = (np.repeat(part, 4, axis=0) for part in logits())
    grouped = nontarget_estimate(t, s, y, trained="independent", groups=np.repeat(np.arange(60), 4))
    assert grouped.standard_error == pytest.approx(drawn[0].standard_error)
    assert grouped.n == 60


def test_probes_of_modalities_that_share_more_diverge_less():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, size=600)
    means = 1.2 * rng.normal(size=(2, 5, 6))
    x = means[0][y] + rng.normal(size=(600, 6))
    own = means[1][y] + rng.normal(size=(600, 6))
    near, far = x + 0.2 * rng.normal(size=x.shape), own
    assert nontarget_of_probes(x, near, y).high < nontarget_of_probes(x, far, y).low
    assert nontarget_of_probes(x, x, y, groups=np.arange(600) // 3).n == 200


def test_what_tells_nothing_is_withheld():
    t, s, y = logits()
    with pytest.raises(NotMeaningful, match="two classes"):
        nontarget_estimate(t[:, :2], s[:, :2], y % 2, trained="independent")
    with pytest.raises(NotMeaningful, match="two classes"):
        nontarget_of_probes(t, s, y % 2)
    with pytest.raises(NotMeaningful, match="class 2 has 9"):
        nontarget_of_probes(t[:38], s[:38], y[:38])
    with pytest.raises(DataError, match="same pairs and classes"):
        nontarget_estimate(t, s[:, :3], y, trained="independent")
    with pytest.raises(DataError, match="0 to 3"):
        nontarget_estimate(t, s, y + 1, trained="independent")
    with pytest.raises(ConfigError, match="did you mean 'distilled'"):
        nontarget_estimate(t, s, y, trained="distil")
    with pytest.raises(ConfigError, match="kind"):
        nontarget_of_probes(t, s, y, kind="jsd")


def test_the_example_of_the_docstring():
    assert doctest.testmod(ntdh).failed == 0
    assert doctest.testmod(ntdh).attempted > 0
