"""MFH's mixture: its two terms by their own losses, and the ends of rho."""

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.base import Context
from crossdistill.objectives.mfh import CrossmodalKD, crossmodal_kd

DOUBLE = torch.float64


def rows(b=6, c=4, dtype=DOUBLE):
    return torch.randn(b, c, dtype=dtype) * 2, torch.randn(b, c, dtype=dtype) * 2, torch.randint(c, (b,))


@pytest.mark.parametrize("reduction", ["batch", "elementwise"])
@pytest.mark.parametrize("rho", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_it_equals_torchs_losses(tau, rho, reduction):
    s, t, y = rows()
    kl = F.kl_div((s / tau).log_softmax(1), (t / tau).softmax(1), reduction="batchmean")
    kl = kl / (4 if reduction == "elementwise" else 1)
    parts = CrossmodalKD(rho, tau=tau, reduction=reduction).terms(s, t, Context(label=y))
    torch.testing.assert_close(parts["task"], rho * F.cross_entropy(s, y))
    torch.testing.assert_close(parts["kd"], (1 - rho) * tau**2 * kl)
    bare = crossmodal_kd(s, t, y, rho=rho, tau=tau, squared=False, reduction=reduction)
    torch.testing.assert_close(bare["kd"] * tau**2, parts["kd"])


def test_rho_of_one_is_training_without_a_teacher_bit_for_bit():
    s, t, y = rows(dtype=torch.float32)
    s.requires_grad_()
    loss = CrossmodalKD(1.0)
    alone = F.cross_entropy(s, y, reduction="none").sum() / 6
    assert torch.equal(loss(s, t, label=y), alone)
    assert torch.equal(torch.autograd.grad(loss(s, None, label=y), s)[0], torch.autograd.grad(alone, s)[0])
    assert loss.needs == {"pairs", "labels"}


def test_rho_of_zero_needs_no_labels():
    s, t, y = rows()
    loss = CrossmodalKD(0.0)
    assert loss(s, t) == loss(s, t, label=y)
    assert loss.needs == {"pairs", "teacher_logits"}


def test_rows_of_unknown_class_are_distilled_and_not_supervised():
    s, t, y = rows()
    y[2:] = -1
    parts = CrossmodalKD().terms(s, t, Context(label=y))
    torch.testing.assert_close(parts["task"], F.cross_entropy(s[:2], y[:2]) / 2)
    torch.testing.assert_close(parts["kd"], F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean") / 2)


def test_the_gradient_equals_finite_differences_and_is_not_the_teachers():
    s, t, y = rows()
    loss = CrossmodalKD(tau=2.0)
    assert torch.autograd.gradcheck(lambda s: loss(s, t, label=y), (s.requires_grad_(),))
    loss(s, t.requires_grad_(), label=y).backward()
    assert t.grad is None


def test_other_precisions_and_sizes():
    s, t, y = rows(dtype=torch.float32)
    loss = CrossmodalKD()
    assert float(loss(s, t, label=y)) == pytest.approx(float(loss(s.double(), t.double(), label=y)), rel=1e-5)
    assert loss(s.bfloat16(), t.bfloat16(), label=y) == loss(s.bfloat16().float(), t.bfloat16().float(), label=y)
    assert loss(s[:1] * 1e30, torch.zeros(1, 4), label=y[:1]).isfinite()


def test_what_does_not_fit_is_refused():
    s, t, y = rows()
    for make in (lambda: CrossmodalKD(1.1), lambda: crossmodal_kd(s, t, y, rho=-0.1)):
        with pytest.raises(ConfigError, match=r"rho, the weight of the labels, must be in \[0, 1\]"):
            make()
    with pytest.raises(ConfigError, match="'batch' or 'elementwise'"):
        CrossmodalKD(reduction="mean")
    with pytest.raises(ConfigError, match="tau must be"):
        CrossmodalKD(tau=-1.0)
    with pytest.raises(ObjectiveError, match="mfh reads the teacher's logits, and it gives none"):
        CrossmodalKD()(s, None, label=y)
    with pytest.raises(ObjectiveError, match="needs labels"):
        CrossmodalKD()(s, t)
