"""Feature regression against loops over rows and entries."""

import math

import pytest
import torch

from crossdistill.errors import ObjectiveError
from crossdistill.objectives import L2, Cosine

DOUBLE = torch.float64


def slow_l2(s, t, normalise=False):
    total = 0.0
    for a, b in zip(s.double().tolist(), t.double().tolist(), strict=True):
        if normalise:
            a, b = ([x / math.hypot(*row) for x in row] for row in (a, b))
        total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return total / s.numel()


def slow_cosine(s, t):
    total = 0.0
    for a, b in zip(s.double().tolist(), t.double().tolist(), strict=True):
        total += 1 - sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
    return total / len(s)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize(("b", "d"), [(1, 4), (5, 3), (8, 16)])
def test_they_equal_loops_written_from_the_equations(b, d, dtype, tolerance):
    s, t = torch.randn(b, d, dtype=dtype), 2 * torch.randn(b, d, dtype=dtype)
    assert L2()(s, t).item() == pytest.approx(slow_l2(s, t), rel=tolerance)
    assert L2(normalise=True)(s, t).item() == pytest.approx(slow_l2(s, t, normalise=True), rel=tolerance)
    assert Cosine()(s, t).item() == pytest.approx(slow_cosine(s, t), rel=tolerance)
    assert L2()(t, t) == 0


def test_normalised_l2_is_two_over_d_times_cosine():
    s, t = torch.randn(7, 6, dtype=DOUBLE), torch.randn(7, 6, dtype=DOUBLE)
    assert (L2(normalise=True)(s, t) * 6 / 2).item() == pytest.approx(Cosine()(s, t).item(), rel=1e-12)
    assert Cosine()(t * 4, t).item() == pytest.approx(0, abs=1e-12)
    assert Cosine()(-t, t).item() == pytest.approx(2, abs=1e-12)


def test_least_squares_is_where_the_gradient_of_a_linear_student_vanishes():
    x, t = torch.randn(20, 4, dtype=DOUBLE), torch.randn(20, 3, dtype=DOUBLE)
    w = torch.linalg.lstsq(x, t).solution.requires_grad_()
    L2()(x @ w, t).backward()
    assert w.grad.norm() < 1e-12


@pytest.mark.parametrize("objective", [L2(), L2(normalise=True), Cosine()])
def test_gradients_and_half_precision(objective):
    s, t = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True), torch.randn(4, 3, dtype=DOUBLE)
    assert torch.autograd.gradcheck(lambda x: objective(x, t), (s,))
    teacher = t.clone().requires_grad_()
    objective(s, teacher).backward()
    assert teacher.grad is None
    half = torch.zeros(1, 3, dtype=torch.bfloat16, requires_grad=True)
    value = objective(half, t[:1].bfloat16())
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(half.grad).all()
    with pytest.raises(ObjectiveError, match="widths must be equal"):
        objective(s, torch.randn(4, 5))


def test_distances_too_large_for_their_type_are_refused_with_a_remedy():
    s, t = torch.full((2, 3), -1e20), torch.ones(2, 3)
    message = (
        r"l2: squared distances overflow torch.float32.* 1e\+20 of the student and 1 of the teacher. Set normalise"
    )
    with pytest.raises(ObjectiveError, match=message):
        L2()(s, t)
    with pytest.raises(ObjectiveError, match=r"9.97e\+19 of the teacher. Set normalise, or scale the features"):
        L2()(t, s.bfloat16())
    assert L2(normalise=True)(s, t).item() == pytest.approx(4 / 3, rel=1e-6)
    assert L2()(s.double(), t.double()).item() == pytest.approx(1e40, rel=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_left_to_the_training_loop(broken):
    assert not L2()(torch.full((2, 3), broken), torch.ones(2, 3)).isfinite()
