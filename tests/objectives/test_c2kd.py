"""C2KD's pieces: non-target divergence against a loop and its invariances, the ranks' agreement against scipy."""

import math

import pytest
import torch
from scipy.stats import kendalltau

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import c2kd
from crossdistill.objectives.c2kd import kendall_tau, nontarget_kl

DOUBLE = torch.float64
FORMS = ["published", "removed"]


def rows(b=6, c=5, dtype=DOUBLE):
    s, t = torch.randn(b, c, dtype=dtype) * 2, torch.randn(b, c, dtype=dtype) * 2
    return s, t, torch.randint(c, (b,))


def slow_nontarget(s, t, y, form):
    found = []
    for i in range(len(s)):
        if form == "removed":
            a, b = ([float(v) for j, v in enumerate(row[i]) if j != y[i]] for row in (s, t))
        else:
            a, b = ([0.0 if j == y[i] else float(v) for j, v in enumerate(row[i])] for row in (s, t))
        z_a, z_b = sum(map(math.exp, a)), sum(map(math.exp, b))
        found.append(
            sum(math.exp(v) / z_b * (v - math.log(z_b) - u + math.log(z_a)) for u, v in zip(a, b, strict=True))
        )
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 2), (1, 7), (6, 3), (5, 20)])
def test_nontarget_kl_equals_its_loop(form, shape):
    s, t, y = rows(*shape)
    assert nontarget_kl(s, t, y, form=form).tolist() == pytest.approx(slow_nontarget(s, t, y, form), abs=1e-12)


def test_a_constant_added_to_all_logits_matters_to_the_published_form_alone():
    s, t, y = rows()
    torch.testing.assert_close(nontarget_kl(s + 3, t, y, form="removed"), nontarget_kl(s, t, y, form="removed"))
    change = nontarget_kl(s + 3, t, y, form="published") - nontarget_kl(s, t, y, form="published")
    assert (change.abs() > 1e-3).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_own_classes_logit_is_not_looked_at(form):
    s, t, y = rows()
    own = torch.zeros_like(s).scatter(1, y[:, None], 50.0)
    assert torch.equal(nontarget_kl(s + own, t - own, y, form=form), nontarget_kl(s, t, y, form=form))


def test_two_classes_have_nothing_to_compare_once_one_is_removed():
    s, t, y = rows(6, 2)
    assert not nontarget_kl(s, t, y, form="removed").any()
    assert (nontarget_kl(s, t, y, form="published") > 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_equal_logits_give_zero_and_no_gradient(form):
    s, _, y = rows()
    s.requires_grad_()
    value = nontarget_kl(s, s.detach(), y, form=form)
    (gradient,) = torch.autograd.grad(value.sum(), s)
    assert value.abs().max() < 1e-15
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_the_students_and_equals_finite_differences(form):
    s, t, y = rows()
    assert torch.autograd.gradcheck(lambda s: nontarget_kl(s, t, y, form=form), (s.requires_grad_(),))
    t.requires_grad_()
    nontarget_kl(s, t, y, form=form).sum().backward()
    assert t.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_unknown_class_give_zero(form):
    s, t, y = rows()
    mixed = y.clone()
    mixed[1::2] = -1
    s.requires_grad_()
    value = nontarget_kl(s, t, mixed, form=form)
    assert torch.equal(value[::2], nontarget_kl(s, t, y, form=form)[::2])
    assert not value[1::2].any()
    (gradient,) = torch.autograd.grad(value.sum(), s)
    assert not gradient[1::2].any()


@pytest.mark.parametrize("form", FORMS)
def test_other_precisions(form):
    s, t, y = rows(dtype=torch.float32)
    exact = nontarget_kl(s.double(), t.double(), y, form=form)
    torch.testing.assert_close(nontarget_kl(s, t, y, form=form).double(), exact, rtol=1e-4, atol=1e-6)
    half = nontarget_kl(s.bfloat16(), t.bfloat16(), y, form=form)
    assert torch.equal(half, nontarget_kl(s.bfloat16().float(), t.bfloat16().float(), y, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_large_logits_are_computed_and_too_large_ones_are_refused(form):
    s, t, y = rows(dtype=torch.float32)
    s = (s * 1e30).requires_grad_()
    value = nontarget_kl(s, t * 1e30, y, form=form)
    value.sum().backward()
    assert value.isfinite().all()
    assert s.grad.isfinite().all()
    with pytest.raises(ObjectiveError, match=r"overflows torch\.float32; the largest entries are 3"):
        nontarget_kl(
            torch.tensor([[3e38, -3e38, 0.0]]), torch.tensor([[-3e38, 3e38, 0.0]]), torch.tensor([2]), form=form
        )


def test_what_does_not_fit_is_refused():
    s, t, y = rows()
    with pytest.raises(ConfigError, match="'published' or 'removed'; received 'gone'"):
        nontarget_kl(s, t, y, form="gone")
    with pytest.raises(ObjectiveError, match=r"the same classes .* \(6, 5\) and \(6, 4\)"):
        nontarget_kl(s, t[:, :4], y)
    with pytest.raises(ObjectiveError, match=r"must be \(b, c\) floating point.* \(6, 5, 1\)"):
        nontarget_kl(s[..., None], t, y)
    with pytest.raises(ObjectiveError, match="label 9 is out of range; the logits are over 5"):
        nontarget_kl(s, t, y.clamp(min=9))
    with pytest.raises(ObjectiveError, match=r"labels must be integers \(6,\)"):
        nontarget_kl(s, t, y[:2])
    with pytest.raises(ObjectiveError, match="the batch has none"):
        nontarget_kl(s, t, None)


@pytest.mark.parametrize("shape", [(3, 2), (20, 5), (8, 40)])
@pytest.mark.parametrize("tied", [False, True])
def test_kendall_equals_scipy(shape, tied):
    s, t = torch.randn(shape, dtype=DOUBLE), torch.randn(shape, dtype=DOUBLE)
    if tied and shape[1] > 2:
        s, t = s.round(), t.round()
    expected = [kendalltau(a, b).statistic for a, b in zip(s.numpy(), t.numpy(), strict=True)]
    assert kendall_tau(s, t).tolist() == pytest.approx([0.0 if math.isnan(v) else v for v in expected], abs=1e-12)


def test_kendall_is_1_for_equal_order_minus_1_for_reversed_and_0_for_constant_rows():
    s = torch.randn(4, 6)
    assert kendall_tau(s, s.exp()).tolist() == [1.0] * 4
    assert kendall_tau(s, -s).tolist() == [-1.0] * 4
    assert kendall_tau(s, torch.ones_like(s)).tolist() == [0.0] * 4
    assert kendall_tau(s[:, :1], s[:, :1]).tolist() == [0.0] * 4  # a single class is in no order


def test_kendall_in_chunks_is_the_same(monkeypatch):
    s, t = torch.randn(11, 6), torch.randn(11, 6)
    whole = kendall_tau(s, t)
    monkeypatch.setattr(c2kd, "PAIRS_AT_ONCE", 2 * 36)
    assert torch.equal(kendall_tau(s, t), whole)


def test_kendall_carries_no_gradient_and_bears_any_finite_number():
    s = torch.tensor([[3e38, -3e38, 0.0]], requires_grad=True)
    tau = kendall_tau(s, s.detach())
    assert tau.tolist() == [1.0]
    assert not tau.requires_grad


def test_a_threshold_of_1_shuts_the_gate_for_every_row():
    s, t, y = rows()
    gate = kendall_tau(s, s) > 1
    assert not (gate * nontarget_kl(s, t, y)).any()
