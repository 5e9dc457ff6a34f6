"""What CTSL-MKT is made of, each against a loop written from its equation: responses, distances, angles."""

import pytest
import torch
from slow_relations import slow_angle, slow_distance

from crossdistill.errors import ObjectiveError
from crossdistill.methods.ctsl_mkt import relational_angle, relational_distance, response_divergence


@pytest.mark.parametrize(("n", "d_s", "d_t"), [(2, 3, 3), (3, 1, 4), (5, 4, 2), (7, 6, 6)])
def test_relations_are_their_equations(n, d_s, d_t):
    e = torch.randn(n, d_s, dtype=torch.float64).pow(3)
    f = torch.randn(n, d_t, dtype=torch.float64)
    torch.testing.assert_close(relational_distance(e, f), slow_distance(e, f))
    if n > 2:
        torch.testing.assert_close(relational_angle(e, f), slow_angle(e, f))
    torch.testing.assert_close(relational_distance(e.float(), f.float()), relational_distance(e, f).float())
    half = relational_distance(e.bfloat16(), f.bfloat16())
    assert torch.equal(half, relational_distance(e.bfloat16().float(), f.bfloat16().float()))


def test_differences_above_one_count_linearly():
    e = torch.tensor([[0.0], [1.0], [2.0], [30.0]], dtype=torch.float64)
    f = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    gaps = (torch.cdist(e, e) / torch.cdist(e, e).sum() - torch.cdist(f, f) / torch.cdist(f, f).sum()).abs() * 12
    assert (gaps > 1).sum() == 4  # two pairs, each both ways
    torch.testing.assert_close(relational_distance(e, f), slow_distance(e, f))


def test_relations_do_not_see_similarities():
    e = torch.randn(12, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    moved = 3.7 * e @ turn + torch.randn(6, dtype=torch.float64)
    assert relational_distance(e, moved) < 1e-20
    assert relational_angle(e, moved) < 1e-20
    order = torch.randperm(12)
    other = torch.randn(12, 3, dtype=torch.float64)
    for loss in (relational_distance, relational_angle):
        torch.testing.assert_close(loss(e[order], other[order]), loss(e, other))
        assert loss(e[order], moved) > 1e-3


def test_gradients_of_relations():
    e = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    f = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    for loss in (relational_distance, relational_angle):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, f.detach()), e)
        loss(e, f).backward()
    assert f.grad is None


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "make", [torch.zeros, torch.ones, lambda *s: 1e18 * torch.randn(*s), lambda *s: 1e-30 * torch.randn(*s)]
)
def test_relations_are_finite(n, make):
    e = make(n, 4).requires_grad_()
    for loss in (relational_distance, relational_angle):
        for teacher in (torch.randn(n, 3), torch.zeros(n, 3)):
            e.grad = None
            value = loss(e, teacher)
            value.backward()
            assert value.isfinite()
            assert e.grad.isfinite().all()
            assert n > 1 or value == 0


def test_duplicates_have_no_angle_and_a_finite_gradient():
    e = torch.randn(3, 4).repeat(2, 1).requires_grad_()
    (relational_distance(e, torch.randn(6, 4)) + relational_angle(e, torch.randn(6, 4))).backward()
    assert e.grad.isfinite().all()


def test_some_vertices_are_an_unbiased_estimate_of_all():
    e, f = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    each = {round(float(relational_angle(e, f, vertices=1)), 12) for _ in range(200)}
    assert len(each) == 8  # every row was drawn
    torch.testing.assert_close(torch.tensor(list(each), dtype=torch.float64).mean(), relational_angle(e, f))
    assert torch.equal(relational_angle(e, f, vertices=8), relational_angle(e, f))


def test_responses():
    z, t = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    slow = 0.0
    for a, b in zip(z, t, strict=True):
        p, q = torch.exp(b / 3) / torch.exp(b / 3).sum(), torch.exp(a / 3) / torch.exp(a / 3).sum()
        slow += (p * (p / q).log()).sum() / 5
    torch.testing.assert_close(response_divergence(z, t, temperature=3.0), slow)
    torch.testing.assert_close(response_divergence(z, t, temperature=3.0, scale=True), 9 * slow)
    torch.testing.assert_close(response_divergence(z + 7, t - 2, temperature=3.0), slow)
    assert response_divergence(z, z) == 0
    x = z.clone().requires_grad_()
    response_divergence(x, t, temperature=3.0).backward()
    torch.testing.assert_close(x.grad, ((z / 3).softmax(1) - (t / 3).softmax(1)) / 3 / 5)
    big = (1e4 * torch.randn(5, 4)).requires_grad_()
    response_divergence(big, 1e4 * torch.randn(5, 4)).backward()
    assert big.grad.isfinite().all()


def test_relations_of_unequal_batches_are_refused():
    with pytest.raises(ObjectiveError, match="row by row"):
        relational_distance(torch.randn(3, 2), torch.randn(4, 2))
