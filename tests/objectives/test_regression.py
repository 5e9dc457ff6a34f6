import pytest
import torch

from crossdistill.errors import ObjectiveError
from crossdistill.objectives import L2, Cosine


def test_l2_is_zero_only_for_equal_features_and_matches_the_mean():
    s, t = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    assert L2()(t, t) == 0
    expected = sum(float((s[i, j] - t[i, j]) ** 2) for i in range(5) for j in range(3)) / 15
    assert L2()(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_normalised_l2_is_two_over_d_times_cosine():
    s, t = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    assert (L2(normalise=True)(s, t) * 6 / 2).item() == pytest.approx(Cosine()(s, t).item(), rel=1e-12)
    assert Cosine()(t * 4, t).item() == pytest.approx(0, abs=1e-12)
    assert Cosine()(-t, t).item() == pytest.approx(2, abs=1e-12)


def test_least_squares_is_where_the_gradient_of_a_linear_student_vanishes():
    x, t = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    w = torch.linalg.lstsq(x, t).solution.requires_grad_()
    L2()(x @ w, t).backward()
    assert w.grad.norm() < 1e-12


@pytest.mark.parametrize("objective", [L2(), L2(normalise=True), Cosine()])
def test_gradients_and_half_precision(objective):
    s, t = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: objective(x, t), (s,))
    half = torch.zeros(1, 3, dtype=torch.bfloat16, requires_grad=True)
    value = objective(half, t[:1].bfloat16())
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(half.grad).all()
    with pytest.raises(ObjectiveError, match="widths must be equal"):
        objective(s, torch.randn(4, 5))
