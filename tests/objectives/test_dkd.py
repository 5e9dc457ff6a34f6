"""DKD: the decomposition of the divergence, its weights, and what rows of unknown class do."""

import math

import pytest
import torch

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import Context
from crossdistill.objectives._logits import kl_rows
from crossdistill.objectives.dkd import DKD, decoupled_rows
from crossdistill.objectives.ntdh import pssm_weight

DOUBLE = torch.float64


def rows(b=6, c=5, dtype=DOUBLE):
    return torch.randn(b, c, dtype=dtype) * 2, torch.randn(b, c, dtype=dtype) * 2, torch.randint(c, (b,))


def slow_parts(s, t, y, tau):
    target, rest = 0.0, 0.0
    for a, b, k in zip(s.tolist(), t.tolist(), y.tolist(), strict=True):
        a, b = ([math.exp(v / tau) for v in row] for row in (a, b))
        p, q = a[k] / sum(a), b[k] / sum(b)
        target += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        a, b = (a[:k] + a[k + 1 :], b[:k] + b[k + 1 :])
        rest += sum(v / sum(b) * math.log((v / sum(b)) / (u / sum(a))) for u, v in zip(a, b, strict=True))
    return target / len(s), rest / len(s)


@pytest.mark.parametrize("tau", [0.7, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (1, 6), (6, 3), (4, 20)])
def test_it_equals_its_loop(shape, tau):
    s, t, y = rows(*shape)
    parts = DKD(tau, alpha=3.0, beta=0.5).terms(s, t, Context(label=y))
    target, rest = slow_parts(s, t, y, tau)
    assert float(parts["target"]) == pytest.approx(3 * tau**2 * target, abs=1e-12)
    assert float(parts["non_target"]) == pytest.approx(0.5 * tau**2 * rest, abs=1e-12)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_divergence_is_the_sum_of_its_parts(tau):
    s, t, y = rows()
    target, rest = decoupled_rows(s, t, y, tau=tau)
    others = 1 - (t / tau).softmax(1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(target + others * rest, kl_rows(s, t, tau=tau))


def test_two_classes_have_a_target_part_alone():
    s, t, y = rows(5, 2)
    target, rest = decoupled_rows(s, t, y, tau=1.0)
    assert not rest.any()
    torch.testing.assert_close(target, kl_rows(s, t))


def test_the_gradient_equals_finite_differences_and_is_not_the_teachers():
    s, t, y = rows()
    assert torch.autograd.gradcheck(lambda s: sum(decoupled_rows(s, t, y)).sum(), (s.requires_grad_(),))
    DKD()(s, t.requires_grad_(), label=y).backward()
    assert t.grad is None


def test_the_warm_up_is_linear_in_progress():
    s, t, y = rows()
    whole = DKD()(s, t, label=y, progress=0.0)
    warm = DKD(warm_up=0.2)
    for progress, share in ((0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.7, 1.0)):
        torch.testing.assert_close(warm(s, t, label=y, progress=progress), share * whole)


def test_rows_of_unknown_class_are_left_out_or_take_the_teachers_choice():
    s, t, y = rows()
    mixed = y.clone()
    mixed[3:] = -1
    assert DKD()(s, t, label=mixed) == DKD()(s[:3], t[:3], label=y[:3])
    choice = torch.cat([y[:3], t[3:].argmax(dim=1)])
    asked = DKD(unknown="argmax")
    torch.testing.assert_close(asked(s, t, label=mixed), DKD()(s, t, label=choice))
    torch.testing.assert_close(asked(s, t), DKD()(s, t, label=t.argmax(dim=1)))
    assert asked.needs == {"pairs", "teacher_logits"}
    assert DKD().needs == {"pairs", "teacher_logits", "labels"}
    s.requires_grad_()
    nothing = DKD()(s, t, label=torch.full((6,), -1))
    nothing.backward()
    assert nothing == 0
    assert not s.grad.any()


def test_pssm_weighs_rows():
    s, t, y = rows()
    omega = pssm_weight(s, t, y)
    target, rest = decoupled_rows(s, t, y)
    torch.testing.assert_close(DKD(pssm=True)(s, t, label=y), 16 * (omega * (target + 8 * rest)).mean())
    assert 0 < omega.sum() < 6 or not omega.any()


@pytest.mark.parametrize("unknown", ["skip", "argmax"])
def test_other_precisions(unknown):
    s, t, y = rows(dtype=torch.float32)
    loss = DKD(unknown=unknown)
    assert float(loss(s, t, label=y)) == pytest.approx(float(loss(s.double(), t.double(), label=y)), rel=1e-4)
    assert loss(s.bfloat16(), t.bfloat16(), label=y) == loss(s.bfloat16().float(), t.bfloat16().float(), label=y)


def test_large_constant_and_zero_logits_are_borne():
    t, y = torch.randn(3, 4), torch.tensor([0, 1, 3])
    for s in (torch.zeros(3, 4), torch.full((3, 4), 5.0), torch.randn(3, 4) * 1e30, torch.randn(3, 4) * 100):
        for teacher in (t, t * 1e30, torch.zeros(3, 4), t * 100):
            s = s.detach().clone().requires_grad_()
            value = DKD()(s, teacher, label=y)
            value.backward()
            assert value.isfinite()
            assert s.grad.isfinite().all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tau": 0.0}, "tau must be a temperature"),
        ({"alpha": -1.0}, "alpha must be finite and at least 0; received -1"),
        ({"beta": math.inf}, "beta must be finite"),
        ({"warm_up": 1.5}, r"warm_up must be a share of the stage in \[0, 1\]; received 1.5"),
        ({"unknown": "guess"}, "'skip' or 'argmax'; received 'guess'"),
        ({"unknown": "argmax", "pssm": True}, "pssm asks whether the teacher is right"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ConfigError, match=message):
        DKD(**parameters)


def test_what_does_not_fit_is_refused():
    s, t, y = rows()
    with pytest.raises(ObjectiveError, match="dkd: it needs labels"):
        DKD()(s, t)
    with pytest.raises(ObjectiveError, match="one class against the others"):
        DKD()(s[:, :1], t[:, :1], label=y * 0)
    with pytest.raises(ObjectiveError, match="dkd: student and teacher must give logits over the same classes"):
        DKD()(s, t[:, :3], label=y)
