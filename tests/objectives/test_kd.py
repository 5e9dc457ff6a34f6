"""KD against a loop written from its equation, its limits, and PSSM's masking as an option."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.kd import KD, distillation_kl
from crossdistill.objectives.ntdh import pssm_weight

DOUBLE = torch.float64


def pair(b=6, c=4, dtype=DOUBLE):
    return torch.randn(b, c, dtype=dtype) * 2, torch.randn(b, c, dtype=dtype) * 2


def slow_kd(s, t, tau, squared, elementwise):
    total = 0.0
    for a, b in zip(s.tolist(), t.tolist(), strict=True):
        z_a, z_b = (sum(math.exp(v / tau) for v in row) for row in (a, b))
        for u, v in zip(a, b, strict=True):
            total += math.exp(v / tau) / z_b * (v / tau - math.log(z_b) - u / tau + math.log(z_a))
    return total * (tau**2 if squared else 1) / len(s) / (s.shape[1] if elementwise else 1)


@pytest.mark.parametrize("reduction", ["batch", "elementwise"])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("tau", [0.7, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (1, 1), (6, 4), (3, 20)])
def test_it_equals_its_loop(shape, tau, squared, reduction):
    s, t = pair(*shape)
    value = KD(tau, squared=squared, reduction=reduction)(s, t)
    assert float(value) == pytest.approx(slow_kd(s, t, tau, squared, reduction == "elementwise"), abs=1e-12)


def test_the_true_divergence_is_c_times_the_elementwise_mean():
    s, t = pair()
    torch.testing.assert_close(distillation_kl(s, t), 4 * distillation_kl(s, t, reduction="elementwise"))


def test_the_gradient_is_the_difference_of_probabilities():
    s, t = pair()
    (gradient,) = torch.autograd.grad(distillation_kl(s.requires_grad_(), t, tau=1.0), s)
    torch.testing.assert_close(gradient, (s.softmax(1) - t.softmax(1)).detach() / len(s))


def test_equal_logits_give_zero_and_no_gradient():
    s, _ = pair()
    value = distillation_kl(s.requires_grad_(), s.detach())
    (gradient,) = torch.autograd.grad(value, s)
    assert value.abs() < 1e-15
    assert gradient.abs().max() < 1e-15


def test_a_high_temperature_regresses_centred_logits():
    s, t = pair()
    (gradient,) = torch.autograd.grad(distillation_kl(s.requires_grad_(), t, tau=1e3), s)
    centred = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    torch.testing.assert_close(gradient, centred.detach() / s.numel(), rtol=1e-2, atol=1e-4)


def test_the_gradient_equals_finite_differences_and_is_not_the_teachers():
    s, t = pair()
    assert torch.autograd.gradcheck(lambda s: distillation_kl(s, t), (s.requires_grad_(),))
    KD()(s, t.requires_grad_()).backward()
    assert t.grad is None


@pytest.mark.parametrize("pssm", [True, False])
def test_other_precisions(pssm):
    s, t = pair(dtype=torch.float32)
    y, loss = torch.arange(6) % 4, KD(pssm=pssm)
    assert float(loss(s, t, label=y)) == pytest.approx(float(loss(s.double(), t.double(), label=y)), rel=1e-4)
    half = loss(s.bfloat16(), t.bfloat16(), label=y)
    assert half == loss(s.bfloat16().float(), t.bfloat16().float(), label=y)


@pytest.mark.parametrize("pssm", [True, False])
def test_large_constant_and_zero_logits_are_borne(pssm):
    t = torch.randn(3, 4)
    for s in (torch.zeros(3, 4), torch.full((3, 4), 5.0), torch.randn(3, 4) * 1e30):
        for teacher in (t, t * 1e30, torch.zeros(3, 4)):
            s = s.detach().clone().requires_grad_()
            value = KD(pssm=pssm)(s, teacher, label=torch.tensor([0, 1, -1]))
            value.backward()
            assert value.isfinite()
            assert s.grad.isfinite().all()


def test_pssm_makes_wrong_rows_uniform_and_leaves_unknown_ones_out():
    s, t = pair(4, 3)
    y = t.argmax(dim=1)
    y[1] = (y[1] + 1) % 3  # the teacher is wrong
    y[3] = -1
    loss = KD(1.0, pssm=True)
    assert loss.needs == {"pairs", "teacher_logits", "labels"}
    assert KD().needs == {"pairs", "teacher_logits"}
    expected = distillation_kl(s[[0, 2]], t[[0, 2]], tau=1.0) * 2 / 3  # of three known rows one is 0
    torch.testing.assert_close(loss(s, t, label=y), expected)
    near = t.clone()
    near[1] += 0.01 * torch.randn(3, dtype=DOUBLE)
    omega = pssm_weight(near, t, y)
    weighted = F.kl_div((omega[1] * near[1]).log_softmax(0), (omega[1] * t[1]).softmax(0), reduction="sum")
    assert 0.998 < omega[1] < 1
    torch.testing.assert_close(loss(near, t, label=y), weighted / 3)
    assert loss(s.requires_grad_(), t, label=torch.full((4,), -1)) == 0


def test_what_does_not_fit_is_refused():
    s, t = pair()
    with pytest.raises(ConfigError, match="tau must be a temperature"):
        KD(0.0)
    with pytest.raises(ConfigError, match="'batch' or 'elementwise'; received 'mean'"):
        KD(reduction="mean")
    with pytest.raises(ConfigError, match="'batch' or 'elementwise'"):
        distillation_kl(s, t, reduction="sum")
    with pytest.raises(ObjectiveError, match=r"kd: student and teacher must give logits over the same classes"):
        KD()(s, t[:, :3])
    with pytest.raises(ObjectiveError, match="pssm: it needs labels"):
        KD(pssm=True)(s, t)
    with pytest.raises(ObjectiveError, match=r"kd: the loss overflows torch\.float32"):
        KD(1.0)(torch.tensor([[3e38, -3e38]]), torch.tensor([[-3e38, 3e38]]))
