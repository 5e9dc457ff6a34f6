"""Non-target divergence in three forms, what it does not look at, and PSSM's weights."""

import math

import pytest
import torch

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.dkd import decoupled_rows
from crossdistill.objectives.ntdh import NonTargetDivergence, nontarget_divergence, pssm_weight

DOUBLE = torch.float64
KINDS = ["js", "ntdh", "kl"]


def rows(b=6, c=5, dtype=DOUBLE):
    return torch.randn(b, c, dtype=dtype) * 2, torch.randn(b, c, dtype=dtype) * 2, torch.randint(c, (b,))


def slow(s, t, y, kind, of):
    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    total = 0.0
    for a, b, k in zip(s.tolist(), t.tolist(), y.tolist(), strict=True):
        p, q = ([math.exp(v) for v in row] for row in (a, b))
        if of == "target":
            p, q = ([x[k], sum(x) - x[k]] for x in (p, q))
        else:
            p, q = (x[:k] + x[k + 1 :] for x in (p, q))
        p, q = ([v / sum(x) for v in x] for x in (p, q))
        m = [(u + v) / 2 for u, v in zip(p, q, strict=True)]
        total += {"js": (kl(p, m) + kl(q, m)) / 2, "ntdh": (kl(m, p) + kl(m, q)) / 2, "kl": kl(q, p)}[kind]
    return total / len(s)


@pytest.mark.parametrize("of", ["target", "non_target"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 3), (6, 5), (4, 20)])
def test_it_equals_its_loop(shape, kind, of):
    s, t, y = rows(*shape)
    assert float(nontarget_divergence(s, t, y, kind=kind, of=of)) == pytest.approx(slow(s, t, y, kind, of), abs=1e-12)
    if of == "non_target":
        assert NonTargetDivergence(kind)(s, t, label=y) == nontarget_divergence(s, t, y, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_logit_and_constants_do_not_matter(kind):
    s, t, y = rows()
    own = torch.zeros_like(s).scatter(1, y[:, None], 7.0)
    value = nontarget_divergence(s, t, y, kind=kind)
    assert torch.equal(nontarget_divergence(s + own, t - own, y, kind=kind), value)
    assert value > 0
    assert nontarget_divergence(t + 3 + own, t, y, kind=kind).abs() < 1e-14  # equal up to a constant


def test_two_classes_give_zero_and_are_refused_as_a_loss():
    s, t, y = rows(4, 2)
    assert nontarget_divergence(s, t, y) == 0
    with pytest.raises(
        ObjectiveError, match=r"needs 3 classes or more, as with two it is always 0; received 2\. Use kd"
    ):
        NonTargetDivergence()(s, t, label=y)


def test_js_is_symmetric_and_bounded_and_the_published_form_is_symmetric_alone():
    s, t, y = rows(40, 5)
    s, t = s * 5, t * 5
    for kind in ("js", "ntdh"):
        one, other = nontarget_divergence(s, t, y, kind=kind), nontarget_divergence(t, s, y, kind=kind)
        torch.testing.assert_close(one, other)
    assert nontarget_divergence(s, t, y) <= math.log(2)
    assert nontarget_divergence(s, t, y, kind="ntdh") > math.log(2)


def test_the_kl_is_dkds_non_target_part():
    s, t, y = rows()
    torch.testing.assert_close(nontarget_divergence(s, t, y, kind="kl"), decoupled_rows(s, t, y, tau=1.0)[1].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_equals_finite_differences_and_is_not_the_teachers(kind):
    s, t, y = rows()
    loss = NonTargetDivergence(kind)
    assert torch.autograd.gradcheck(lambda s: loss(s, t, label=y), (s.requires_grad_(),))
    loss(s, t.requires_grad_(), label=y).backward()
    assert t.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_unknown_class_are_left_out(kind):
    s, t, y = rows()
    mixed = y.clone()
    mixed[4:] = -1
    loss = NonTargetDivergence(kind)
    torch.testing.assert_close(loss(s, t, label=mixed), loss(s[:4], t[:4], label=y[:4]))
    s.requires_grad_()
    nothing = loss(s, t, label=torch.full((6,), -1))
    nothing.backward()
    assert nothing == 0
    assert not s.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_precisions_and_sizes(kind):
    s, t, y = rows(dtype=torch.float32)
    loss = NonTargetDivergence(kind)
    assert float(loss(s, t, label=y)) == pytest.approx(float(loss(s.double(), t.double(), label=y)), rel=1e-4)
    assert loss(s.bfloat16(), t.bfloat16(), label=y) == loss(s.bfloat16().float(), t.bfloat16().float(), label=y)
    for one in (torch.zeros(6, 5), torch.ones(6, 5), s * 1e30):
        one = one.clone().requires_grad_()
        value = loss(one, t * 1e30, label=y)
        value.backward()
        assert value.isfinite()
        assert one.grad.isfinite().all()


def test_pssm_weight():
    t = torch.tensor([[3.0, 1.0, 0.0]]).expand(5, 3)
    s = torch.tensor([[0.0, 1.0, 5.0], [0.0, 1.0, 5.0], [3.0, 1.0, 0.1], [-3.0, -1.0, 0.0], [3.0, 1.0, 0.0]])
    omega = pssm_weight(s.requires_grad_(), t, torch.tensor([0, 1, 1, 2, -1]))
    cosine = float(torch.cosine_similarity(s[2].detach(), t[2], dim=0))
    assert omega.tolist() == pytest.approx([1, 0, (1 + cosine) / 2, 0, 0])
    assert cosine > 0.996
    assert not omega.requires_grad
    assert pssm_weight(s, t, torch.ones(5, dtype=torch.int64), threshold=-1.0)[3] == 0  # cos = -1


def test_what_does_not_fit_is_refused():
    s, t, y = rows()
    for make in (lambda: NonTargetDivergence("jsd"), lambda: nontarget_divergence(s, t, y, kind="jsd")):
        with pytest.raises(ConfigError, match="kind must be one of js, ntdh, kl; received 'jsd'"):
            make()
    with pytest.raises(ConfigError, match="of must be one of"):
        nontarget_divergence(s, t, y, of="all")
    with pytest.raises(ObjectiveError, match="ntdh: it needs labels"):
        NonTargetDivergence()(s, t)
