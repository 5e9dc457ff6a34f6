"""What all objectives share: rows of unit length for any input, and full precision whatever surrounds them."""

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ObjectiveError
from crossdistill.objectives import (
    Context,
    anchored_distillation,
    cross_modal_contrastive,
    kernel_distances,
    nt_xent,
    similarity_distillation,
    unit,
)
from crossdistill.objectives.cmcd import similarities, soft_cross_entropy
from crossdistill.registry import discover

OBJECTIVES = {
    name: cls for name, cls in discover("crossdistill.objectives").items() if getattr(cls, "reads", "") == "features"
}
FUNCTIONS = {
    "similarities": lambda s, t: similarities(s, tau=0.05).softmax(dim=1).square().sum(),
    "soft_cross_entropy": lambda s, t: soft_cross_entropy(s, t),
    "similarity_distillation": lambda s, t: similarity_distillation(s, t, tau_student=0.05),
    "anchored_distillation": lambda s, t: anchored_distillation(s, t, tau_student=0.05),
    "anchored_distillation with a bank": lambda s, t: anchored_distillation(s, t, tau_student=0.05, bank=t[:5]),
    "cross_modal_contrastive": lambda s, t: cross_modal_contrastive(s, t, tau=0.05),
    "kernel_distances": lambda s, t: sum(kernel_distances(s, t, tau=0.05).values()),
    "nt_xent": lambda s, t: nt_xent(s, t, tau=0.05),
}


def with_gradient(loss, s, t):
    """Compute the loss now and its gradient when called: torch advises against backward within an autocast block."""
    s = s.clone().requires_grad_()
    value = loss(s, t)
    return lambda: (value.detach(), *torch.autograd.grad(value, s))


def seeded(name, s, t):
    torch.manual_seed(3)
    objective = OBJECTIVES[name]()
    with torch.no_grad():
        objective.prepare(s, t, pairs=len(s))
    rows = torch.arange(len(s))
    objective.study([(t, Context(index=rows, inputs=s))])
    return lambda s, t: objective(s, t, label=rows % 3, index=rows, group=rows)


def check_autocast(make_loss, half):
    s, t = torch.randn(16, 8), torch.randn(16, 8)
    expected = with_gradient(make_loss(s, t), s, t)()
    with torch.autocast("cpu", half):
        assert (s @ t.T).dtype == half
        finish = with_gradient(make_loss(s, t), s, t)
    for ours, theirs in zip(finish(), expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    assert expected[1].abs().max() > 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_autocast_changes_no_bit_of_an_objective(name, half):
    check_autocast(lambda s, t: seeded(name, s, t), half)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_changes_no_bit_of_a_function(name, half):
    check_autocast(lambda s, t: FUNCTIONS[name], half)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_is_computed_in_single(name, half):
    s, t = torch.randn(16, 8).to(half), torch.randn(16, 8).to(half)
    value, gradient = with_gradient(FUNCTIONS[name], s, t)()
    expected, theirs = with_gradient(FUNCTIONS[name], s.float(), t.float())()
    assert torch.equal(value, expected)
    assert torch.equal(gradient, theirs.to(half))


def slow_unit(x, along):
    """Rows of unit length, and the gradient of (result * along).sum(): along, without its part along the row."""
    x, along = x.double(), along.double()
    z = F.normalize(x, dim=1, eps=0)
    return z, (along - (along * z).sum(dim=1, keepdim=True) * z) / x.norm(dim=1, keepdim=True)


SCALES = [1e-30, 1e-20, 1e-15, 1e-4, 1.0, 3e4, 1e15, 1e20, 1e30]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 2), (4, 64), (0, 3)])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(dtype, scale) for dtype in (torch.float64, torch.float32, torch.bfloat16) for scale in SCALES]
    + [(torch.float16, scale) for scale in (1e-4, 1.0, 3e4)],  # it holds no smaller and no larger numbers
)
def test_rows_of_unit_length_at_any_scale(dtype, scale, shape):
    x = (torch.randn(shape).clamp(-2, 2) * scale).to(dtype).requires_grad_()
    along = torch.randn(shape).to(torch.float64 if dtype == torch.float64 else torch.float32)
    z = unit(x)
    assert z.dtype == along.dtype
    z.backward(along)
    assert z.isfinite().all()
    assert x.grad.isfinite().all()
    if dtype != torch.float64 and scale <= 1e-20:  # the true gradient may be larger than the largest number
        assert not z.any()
        assert not x.grad.any()
        return
    expected, gradient = slow_unit(x.detach(), along)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}[dtype]
    torch.testing.assert_close(z.double(), expected, rtol=tolerance, atol=tolerance)
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(x.grad.double() * scale, gradient * scale, rtol=rounding, atol=10 * rounding)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_row_stays_zero_and_disturbs_no_other(dtype):
    x = torch.randn(4, 3).to(dtype)
    x[[0, 2]] = 0
    x.requires_grad_()
    z = unit(x)
    z.backward(torch.ones_like(z))
    assert not z[[0, 2]].any()
    assert not x.grad[[0, 2]].any()
    assert torch.equal(z[[1, 3]], unit(x.detach()[[1, 3]]))
    assert x.grad[[1, 3]].any(dim=1).all()


def test_the_gradient_of_unit_rows_equals_finite_differences():
    assert torch.autograd.gradcheck(unit, (torch.randn(4, 3, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("name", discover("crossdistill.objectives"))
def test_a_teacher_that_gives_nothing_is_told(name):
    objective = discover("crossdistill.objectives")[name]()
    if objective.reads == "logits" and "teacher_logits" not in objective.needs:
        return
    student = [torch.randn(4, 3, 2, 2)] if objective.reads == "maps" else torch.randn(4, 3)
    with pytest.raises(ObjectiveError, match=f"{name} reads the teacher's {objective.reads}, and it gives none"):
        objective(student, None)
