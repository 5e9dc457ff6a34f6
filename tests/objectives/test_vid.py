"""VID against a loop written from its equation, and where its minimum lies."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.base import Context
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
    maps = (torch.randn(b, d, 3, 2, dtype=DOUBLE) for _ in range(2))
    mean, teacher = maps
    places = (x.permute(0, 2, 3, 1).reshape(-1, d) for x in (mean, teacher))
    assert gaussian_information(mean, teacher, variance).item() == pytest.approx(slow(*places, variance))


def regressed(objective, x, k=0):
    """What a regressor gives for rows (n, d), as linear layers by hand."""
    convolutions = objective.regressors[k][::2]
    for number, one in enumerate(convolutions):
        x = x.to(one.weight) @ one.weight[:, :, 0, 0].T + (0 if one.bias is None else one.bias)
        x = x.relu() if number + 1 < len(convolutions) else x
    return x.detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize(
    "how", [{}, {"depth": 1, "bias": True}, {"hidden": 7, "variance": 0.5}, {"eps": 0.0, "depth": 2}]
)
def test_the_loss_is_that_of_its_regressor_and_its_variances(how, dtype, tolerance):
    objective = prepared(dtype=dtype, **how)
    s, t = torch.randn(6, 4, dtype=dtype), torch.randn(6, 5, dtype=dtype)
    variance = F.softplus(objective.raw[0]) + objective.eps
    torch.testing.assert_close(variance, torch.full_like(variance, how.get("variance", 5.0)))
    expected = slow(regressed(objective, s), t.double(), variance)
    assert objective(s, t).item() == pytest.approx(expected, rel=tolerance)


def test_the_regressor_and_the_numbers_are_the_released_ones():
    objective = prepared()
    layers = objective.regressors[0]
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(5, 4, 1, 1), (5, 5, 1, 1), (5, 5, 1, 1)]
    assert all(layer.bias is None for layer in layers[::2])
    torch.testing.assert_close(objective.raw[0].exp() + 1, torch.full((5,), math.exp(5 - 1e-5), dtype=DOUBLE))
    assert prepared(hidden=7).regressors[0][0].weight.shape == (7, 4, 1, 1)


def test_between_maps_every_place_counts_and_the_larger_map_is_pooled():
    s = [torch.randn(3, 4, 4, 6, dtype=DOUBLE), torch.randn(3, 2, 2, 2, dtype=DOUBLE)]
    t = [torch.randn(3, 5, 2, 3, dtype=DOUBLE), torch.randn(3, 6, 4, 2, dtype=DOUBLE)]
    objective = VariationalInformation("maps", layers=(("a", "a"), ("b", "b")), layer_weights=(1.0, 0.5))
    objective.prepare(s, t, pairs=3)
    small = (F.avg_pool2d(s[0], 2), s[1]), (t[0], F.avg_pool2d(t[1], (2, 1)))
    parts = objective.terms(s, t, Context())
    for k, weight in enumerate((1.0, 0.5)):
        mine, theirs = (side[k].permute(0, 2, 3, 1).flatten(0, 2) for side in small)
        variance = F.softplus(objective.raw[k]) + 1e-5
        expected = weight * slow(regressed(objective, mine, k), theirs, variance)
        assert parts[f"vid{k}"].item() == pytest.approx(expected, rel=1e-12)
    assert objective(s, t).item() == pytest.approx(sum(parts.values()).item())
    assert (objective.reads, objective.needs) == ("maps", {"pairs", "feature_maps"})
    assert (prepared().reads, prepared().needs) == ("features", {"pairs"})


def test_the_best_variance_is_the_mean_square_error_of_its_channel():
    mean, teacher = torch.randn(50, 3, dtype=DOUBLE), torch.randn(50, 3, dtype=DOUBLE)
    variance = (teacher - mean).square().mean(dim=0).requires_grad_()
    gaussian_information(mean, teacher, variance).backward()
    assert variance.grad.abs().max() < 1e-12


def test_a_channel_that_cannot_be_foretold_gets_the_larger_variance():
    torch.manual_seed(0)
    s = torch.randn(200, 4)
    t = torch.stack([s[:, 0], 3 * torch.randn(200)], dim=1)
    objective = prepared(4, 2, torch.float32, depth=1, variance=1.0)
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        objective(s, t).backward()
        optimiser.step()
    known, noise = (F.softplus(objective.raw[0]) + objective.eps).tolist()
    assert known < 0.1
    assert noise > 3


def test_what_is_made_for_these_widths_is_kept():
    objective = prepared()
    before = objective.regressors[0], objective.raw[0]
    objective.prepare(torch.ones(7, 4, dtype=DOUBLE), torch.ones(7, 5, dtype=DOUBLE), pairs=9)
    assert (objective.regressors[0], objective.raw[0]) == before
    objective.prepare(torch.ones(7, 3), torch.ones(7, 2), pairs=9)
    assert objective.raw[0].shape == (2,)
    assert objective.regressors[0][0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"on": "logits"}, "on must be features or maps; received 'logits'"),
        ({"layers": (("a", "b"),)}, "layers and layer_weights are for on='maps'"),
        ({"depth": 0}, "depth and hidden must be at least 1; received 0 and None"),
        ({"hidden": 0}, "depth and hidden must be at least 1"),
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
    with pytest.raises(
        ObjectiveError, match=r"vid was prepared for \[\] channels .* received \[\(4, 5\)\]. Call prepare"
    ):
        VariationalInformation()(s, t)
    objective = prepared(dtype=torch.float32)
    with pytest.raises(ObjectiveError, match=r"vid: the loss overflows torch.float32.* 1e\+30 of the teacher. Scale"):
        objective(s, torch.full((4, 5), 1e30))
    with pytest.raises(ObjectiveError, match="vid: rows must be pairs"):
        objective(s, t[:3])
    with pytest.raises(ObjectiveError, match=r"of the teacher's shape; received \(2, 3, 2, 2\) and \(2, 3, 2, 1\)"):
        gaussian_information(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 1), torch.ones(3))
