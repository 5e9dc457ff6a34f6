"""VID against a loop written from its equation, and where its minimum lies."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.vid import VariationalInformation, gaussian_information

DOUBLE = torch.float64


def slow(mean, teacher, variance):
    total = 0.0
    for m, t in zip(mean.tolist(), teacher.tolist(), strict=True):
        total += sum((y - x) ** 2 / v + math.log(v) for x, y, v in zip(m, t, variance.tolist(), strict=True))
    return total / mean.numel() / 2


def prepared(d_s=4, d_t=5, dtype=DOUBLE, **how):
    torch.manual_seed(2)
    objective = VariationalInformation(**how)
    objective.prepare(torch.zeros(2, d_s, dtype=dtype), torch.zeros(2, d_t, dtype=dtype), pairs=9)
    return objective


@pytest.mark.parametrize(("b", "d"), [(1, 1), (1, 4), (6, 5)])
def test_the_likelihood_equals_a_loop(b, d):
    mean, teacher = torch.randn(b, d, dtype=DOUBLE), torch.randn(b, d, dtype=DOUBLE)
    variance = torch.rand(d, dtype=DOUBLE) + 0.1
    assert gaussian_information(mean, teacher, variance).item() == pytest.approx(slow(mean, teacher, variance))


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("how", [{}, {"layers": 1}, {"hidden": 7, "variance": 0.5}, {"eps": 0.0, "layers": 2}])
def test_the_loss_is_that_of_its_regressor_and_its_variances(how, dtype, tolerance):
    objective = prepared(dtype=dtype, **how)
    s, t = torch.randn(6, 4, dtype=dtype), torch.randn(6, 5, dtype=dtype)
    start = how.get("variance", 5.0)
    variance = F.softplus(objective.raw) + objective.eps
    torch.testing.assert_close(variance, torch.full_like(variance, start))
    wide = s.double() if dtype == DOUBLE else s.float()
    with torch.no_grad():
        expected = slow(objective.regressor(wide), t.to(wide), variance)
    assert objective(s, t).item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    ("how", "widths"), [({}, [4, 5, 5, 5]), ({"layers": 1}, [4, 5]), ({"hidden": 7}, [4, 7, 7, 5])]
)
def test_the_regressor_has_the_layers_asked_for(how, widths):
    layers = [layer for layer in prepared(**how).regressor if isinstance(layer, nn.Linear)]
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths


def test_the_best_variance_is_the_mean_squared_error_of_its_channel():
    mean, teacher = torch.randn(50, 3, dtype=DOUBLE), torch.randn(50, 3, dtype=DOUBLE)
    variance = (teacher - mean).square().mean(dim=0).requires_grad_()
    gaussian_information(mean, teacher, variance).backward()
    assert variance.grad.abs().max() < 1e-12


def test_a_channel_that_cannot_be_foretold_gets_the_larger_variance():
    torch.manual_seed(0)
    s = torch.randn(200, 4)
    t = torch.stack([s[:, 0], 3 * torch.randn(200)], dim=1)
    objective = prepared(4, 2, torch.float32, layers=1, variance=1.0)
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        objective(s, t).backward()
        optimiser.step()
    known, noise = (F.softplus(objective.raw) + objective.eps).tolist()
    assert known < 0.1
    assert noise > 3


def test_what_is_made_for_these_widths_is_kept():
    objective = prepared()
    before = objective.regressor, objective.raw
    objective.prepare(torch.ones(7, 4, dtype=DOUBLE), torch.ones(7, 5, dtype=DOUBLE), pairs=9)
    assert (objective.regressor, objective.raw) == before
    objective.prepare(torch.ones(7, 3), torch.ones(7, 2), pairs=9)
    assert objective.raw.shape == (2,)
    assert objective.regressor[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layers": 0}, "layers and hidden must be at least 1; received 0 and None"),
        ({"hidden": 0}, "layers and hidden must be at least 1"),
        ({"eps": -1.0}, "eps must be finite and at least 0"),
        ({"variance": 1e-5}, "variance must be finite and above eps"),
        ({"variance": float("inf")}, "variance must be finite"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        VariationalInformation(**how)


def test_what_cannot_be_computed_is_refused():
    s, t = torch.randn(4, 4), torch.randn(4, 5)
    with pytest.raises(ObjectiveError, match="vid: its regressor is not made yet; call prepare"):
        VariationalInformation()(s, t)
    objective = prepared(dtype=torch.float32)
    with pytest.raises(ObjectiveError, match=r"vid: the loss overflows torch.float32.* 1e\+30 of the teacher. Scale"):
        objective(s, torch.full((4, 5), 1e30))
    with pytest.raises(ObjectiveError, match="vid: rows must be pairs"):
        objective(s, t[:3])
