"""Both losses called correlation congruence, against loops written from their equations."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.cc import CorrelationCongruence, correlations, difference_congruence, kernel_congruence

DOUBLE = torch.float64


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, dtype=DOUBLE)).Q


def slow_kernel(s, t, kernel, gamma, order=None, normalise=True):
    def compare(a, c):
        product = sum(p * q for p, q in zip(a, c, strict=True))
        if kernel == "bilinear":
            return product
        if order is None:
            return math.exp(-gamma * math.dist(a, c) ** 2)
        return math.exp(-2 * gamma) * sum((2 * gamma * product) ** p / math.factorial(p) for p in range(order + 1))

    matrices = []
    for x in (s, t):
        z = (F.normalize(x.double(), dim=1) if normalise else x.double()).tolist()
        matrices.append([[compare(a, c) for c in z] for a in z])
    entries = zip(matrices[0], matrices[1], strict=True)
    return math.sqrt(sum((p - q) ** 2 for a, c in entries for p, q in zip(a, c, strict=True))) / len(s) ** 2


def slow_difference(s, t):
    apart = [[abs(p - q) for p, q in zip(a, c, strict=True)] for a, c in zip(s.tolist(), t.tolist(), strict=True)]
    pairs = list(itertools.pairwise(apart))
    return sum(p * q for a, c in pairs for p, q in zip(a, c, strict=True)) / len(pairs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 1e-4)])
@pytest.mark.parametrize(("b", "d_s", "d_t"), [(2, 3, 3), (6, 4, 9), (17, 8, 2)])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("kernel", "gamma", "order"),
    [("bilinear", 0.4, None), ("gaussian", 0.4, None), ("gaussian", 2.0, None), ("gaussian", 0.4, 2)],
)
def test_the_kernel_form_equals_a_loop(b, d_s, d_t, kernel, gamma, order, normalise, dtype, tolerance):
    s, t = torch.randn(b, d_s, dtype=dtype), 2 * torch.randn(b, d_t, dtype=dtype)
    expected = slow_kernel(s, t, kernel, gamma, order, normalise)
    how = {"kernel": kernel, "gamma": gamma, "order": order, "normalise": normalise}
    assert kernel_congruence(s, t, **how).item() == pytest.approx(expected, rel=tolerance)
    assert CorrelationCongruence("kernel", **how)(s, t).item() == pytest.approx(expected, rel=tolerance)


def test_the_series_of_the_gaussian_kernel_comes_to_it():
    x = torch.randn(6, 4, dtype=DOUBLE)
    exact = correlations(x, kernel="gaussian", normalise=True)
    apart = [
        (correlations(x, kernel="gaussian", order=order, normalise=True) - exact).abs().max() for order in (1, 2, 4, 30)
    ]
    assert apart[0] > apart[1] > apart[2] > 1e-4
    assert apart[3] < 1e-14


@pytest.mark.parametrize(("b", "w"), [(2, 3), (7, 4)])
def test_the_difference_form_equals_a_loop(b, w):
    e_s, e_t = torch.randn(b, w, dtype=DOUBLE), torch.randn(b, w, dtype=DOUBLE)
    expected = slow_difference(e_s, e_t)
    assert difference_congruence(e_s, e_t).item() == pytest.approx(expected, rel=1e-12)
    assert CorrelationCongruence()(e_s, e_t).item() == pytest.approx(expected, rel=1e-12)  # the default
    rows = [F.normalize(e, dim=1) for e in (e_s, e_t)]
    assert CorrelationCongruence(normalise=True)(e_s, e_t).item() == pytest.approx(slow_difference(*rows), rel=1e-12)
    assert difference_congruence(e_s[:1], e_t[:1]) == 0
    s, t = torch.randn(b, 5, dtype=DOUBLE), torch.randn(b, 6, dtype=DOUBLE)
    objective = CorrelationCongruence(width=w)
    objective.prepare(s, t, pairs=b)
    with torch.no_grad():
        expected = slow_difference(objective.embed_s(s), objective.embed_t(t))
    assert objective(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_equal_widths_are_needed_where_features_are_compared_as_they_are():
    assert CorrelationCongruence().needs == {"pairs", "equal_widths"}
    assert CorrelationCongruence(width=8).needs == CorrelationCongruence("kernel").needs == {"pairs"}
    with pytest.raises(ObjectiveError, match="cc: student and teacher widths must be equal; received 3 and 4"):
        CorrelationCongruence()(torch.randn(5, 3), torch.randn(5, 4))


def test_the_kernel_form_does_not_see_turning_scaling_and_order_and_the_difference_form_sees_order():
    s, t = torch.randn(10, 5, dtype=DOUBLE), torch.randn(10, 5, dtype=DOUBLE)
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    for kernel in ("bilinear", "gaussian"):
        how = {"kernel": kernel, "normalise": True}
        value = kernel_congruence(s, t, **how).item()
        assert value > 1e-3
        assert kernel_congruence(2 * s @ rotation(5), 3 * t, **how).item() == pytest.approx(value, rel=1e-12)
        assert kernel_congruence(s[order], t[order], **how).item() == pytest.approx(value, rel=1e-12)
        plain = kernel_congruence(s, t, kernel=kernel).item()
        assert kernel_congruence(s @ rotation(5), t, kernel=kernel).item() == pytest.approx(plain, rel=1e-12)
        assert kernel_congruence(2 * s, t, kernel=kernel).item() != pytest.approx(plain, rel=1e-3)
    changed = difference_congruence(s[order], t[order]) - difference_congruence(s, t)
    assert abs(changed.item()) > 1e-3


def test_equal_kernels_have_no_loss_and_no_gradient():
    s = torch.randn(5, 3, dtype=DOUBLE, requires_grad=True)
    value = kernel_congruence(s, s.detach())
    value.backward()
    assert value == 0
    assert not s.grad.any()


def test_kernels_of_known_rows():
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], dtype=DOUBLE)
    expected = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], dtype=DOUBLE)
    torch.testing.assert_close(correlations(z, normalise=True), expected)
    torch.testing.assert_close(correlations(z), expected * torch.tensor([[4.0, 6, 2], [6, 9, 3], [2, 3, 1]]).double())
    near = torch.tensor([[0.0, 2.0, 4.0], [2.0, 0.0, 2.0], [4.0, 2.0, 0.0]], dtype=DOUBLE)  # squared distances
    found = correlations(z, kernel="gaussian", gamma=0.7, normalise=True)
    torch.testing.assert_close(found, (-0.7 * near).exp())


def test_the_teachers_embedding_is_fixed_unless_told_otherwise():
    s, t = torch.randn(6, 4), torch.randn(6, 5)
    for train_teacher in (False, True):
        objective = CorrelationCongruence(width=3, train_teacher=train_teacher)
        objective.prepare(s, t, pairs=6)
        weights = objective.embed_s.weight, objective.embed_t.weight
        objective(s, t).backward()
        assert weights[0].grad.any()
        assert (weights[1].grad is not None) == weights[1].requires_grad == train_teacher
        objective.prepare(t[:, :4], t, pairs=6)
        assert objective.embed_s.weight is weights[0]
        assert objective.embed_t.weight is weights[1]
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.zero_()
        assert objective(s, t) == 0  # the solution that a trained embedding of the teacher runs into
    assert not list(CorrelationCongruence().parameters())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"form": "matrix"}, "form must be 'difference' or 'kernel'; received 'matrix'"),
        ({"kernel": "gaussian", "order": 0}, "order is of the gaussian kernel's series, at least 1; received 0"),
        ({"order": 2}, "order is of the gaussian kernel's series, at least 1; received 2 and 'bilinear'"),
        ({"kernel": "cubic"}, "kernel must be 'bilinear' or 'gaussian'"),
        ({"gamma": 0.0}, "gamma must be finite and above 0"),
        ({"width": 0}, "width must be at least 1"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        CorrelationCongruence(**how)


def test_what_cannot_be_computed_is_refused():
    s, t = torch.randn(4, 3), torch.randn(4, 3)
    with pytest.raises(ObjectiveError, match="cc: its embeddings are not made yet; call prepare"):
        CorrelationCongruence(width=8)(s, t)
    with pytest.raises(ObjectiveError, match="cc: rows must be pairs"):
        CorrelationCongruence()(s, t[:3])
    for objective in (CorrelationCongruence(), CorrelationCongruence("kernel"), CorrelationCongruence(width=8)):
        objective.prepare(s, t, pairs=4)
        with pytest.raises(ObjectiveError, match=r"cc: the loss overflows torch.float32.* 3e\+38 of the student"):
            objective(torch.full((4, 3), 3e38), t)
