"""SimCLR's loss against the double sum over views that it is."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import nt_xent

DOUBLE = torch.float64


def slow_nt_xent(first, second, tau):
    u = F.normalize(torch.cat([first, second]).double(), dim=1)
    b, total = len(first), 0.0
    for i in range(2 * b):
        positive = math.exp(float(u[i] @ u[(i + b) % (2 * b)]) / tau)
        total -= math.log(positive / sum(math.exp(float(u[i] @ u[k]) / tau) for k in range(2 * b) if k != i))
    return total / (2 * b)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("tau", [0.05, 0.2, 0.5, 3.0])
@pytest.mark.parametrize("b", [1, 2, 7])
def test_it_equals_the_double_sum_over_views(b, tau, dtype, tolerance):
    first, second = torch.randn(b, 4, dtype=dtype), torch.randn(b, 4, dtype=dtype)
    value = nt_xent(first, second, tau=tau).item()
    assert value == pytest.approx(slow_nt_xent(first, second, tau), rel=tolerance, abs=tolerance)
    assert nt_xent(second, 4 * first, tau=tau).item() == pytest.approx(value, rel=tolerance, abs=tolerance)


def test_the_default_temperature_is_the_documented_one():
    first, second = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 4, dtype=DOUBLE)
    assert nt_xent(first, second) == nt_xent(first, second, tau=0.2)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_both_views_get_the_gradient_of_finite_differences(tau):
    views = [torch.randn(4, 3, dtype=DOUBLE, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda first, second: nt_xent(first, second, tau=tau), views)


def test_constant_views_give_the_logarithm_of_the_candidates():
    assert nt_xent(torch.ones(5, 3), torch.ones(5, 3)).item() == pytest.approx(math.log(9), rel=1e-6)


def test_views_and_temperatures_that_do_not_fit_are_refused():
    with pytest.raises(ObjectiveError, match="rows must be pairs; received 5 student, 4 teacher"):
        nt_xent(torch.ones(5, 3), torch.ones(4, 3))
    with pytest.raises(ConfigError, match="tau must be a temperature"):
        nt_xent(torch.ones(5, 3), torch.ones(5, 3), tau=1e-5)
