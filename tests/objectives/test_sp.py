"""SP against a loop written from its equation, and what must leave it alone."""

import math

import pytest
import torch

from crossdistill.errors import ObjectiveError
from crossdistill.objectives.sp import SimilarityPreserving, inner_product_rows, similarity_preserving

DOUBLE = torch.float64


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, dtype=DOUBLE)).Q


def slow_rows(x):
    x = x.double().tolist()
    found = []
    for a in x:
        row = [sum(p * q for p, q in zip(a, c, strict=True)) for c in x]
        found.append([value / math.hypot(*row) for value in row])
    return found


def slow(s, t):
    rows = zip(slow_rows(s), slow_rows(t), strict=True)
    return sum((p - q) ** 2 for a, c in rows for p, q in zip(a, c, strict=True)) / len(s) ** 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 1e-4)])
@pytest.mark.parametrize(("b", "d_s", "d_t"), [(2, 3, 3), (6, 4, 9), (17, 8, 2)])
def test_it_equals_a_loop_written_from_the_equation(b, d_s, d_t, dtype, tolerance):
    s, t = torch.randn(b, d_s, dtype=dtype), 3 * torch.randn(b, d_t, dtype=dtype)
    for value in (similarity_preserving(s, t), SimilarityPreserving()(s, t)):
        assert value.item() == pytest.approx(slow(s, t), rel=tolerance)


def test_turning_and_scaling_change_nothing_and_shifting_does():
    s, t = torch.randn(12, 5, dtype=DOUBLE), torch.randn(12, 7, dtype=DOUBLE)
    value = similarity_preserving(s, t).item()
    for other in ((3 * s @ rotation(5), t), (s, 1e-3 * t @ rotation(7))):
        assert similarity_preserving(*other).item() == pytest.approx(value, rel=1e-12)
    assert abs(similarity_preserving(s + 1, t).item() - value) > 0.01 * value
    assert similarity_preserving(0.2 * t @ rotation(7), t).item() == pytest.approx(0, abs=1e-28)
    assert 0 < value <= 4 / 12


def test_rows_are_of_unit_length_and_a_constant_student_has_equal_entries():
    rows = inner_product_rows(torch.randn(6, 3, dtype=DOUBLE))
    torch.testing.assert_close(rows.square().sum(dim=1), torch.ones(6, dtype=DOUBLE))
    constant = inner_product_rows(torch.full((6, 3), 2.0, dtype=DOUBLE))
    torch.testing.assert_close(constant, torch.full((6, 6), 6**-0.5, dtype=DOUBLE))


def test_orthogonal_against_constant():
    s, t = torch.ones(5, 2, dtype=DOUBLE), torch.eye(5, dtype=DOUBLE)
    assert similarity_preserving(s, t).item() == pytest.approx(2 * (1 - 5**-0.5) / 5, rel=1e-12)  # |a - c|^2 a row, / b


def test_what_is_no_pair_is_refused():
    with pytest.raises(ObjectiveError, match="sp: rows must be pairs; received 3 student, 2 teacher"):
        SimilarityPreserving()(torch.randn(3, 2), torch.randn(2, 2))
