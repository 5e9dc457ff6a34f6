import math

import pytest
import torch
from torch import nn

from crossdistill.objectives.msd import WeightNetwork, divergence, meta_gradient, saliency, shared_out


def slow_divergence(s, t, tau):
    rows = []
    for i in range(len(s)):
        p = [math.exp(v / tau) for v in t[i].tolist()]
        q = [math.exp(v / tau) for v in s[i].tolist()]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        rows.append(tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (9, 10)])
def test_divergence_is_the_loop(shape, tau):
    s, t = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    found = divergence(s, t, tau=tau)
    torch.testing.assert_close(found, slow_divergence(s, t, tau), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(divergence(s + 3.0, t - 7.0, tau=tau), found, rtol=1e-9, atol=1e-10)
    assert (found >= 0).all()
    assert torch.autograd.gradcheck(lambda x: divergence(x, t, tau=tau), s.requires_grad_())
    torch.testing.assert_close(divergence(s.float(), t.float(), tau=tau), found.float(), rtol=1e-4, atol=1e-5)
    halves = s.detach().bfloat16(), t.bfloat16()
    assert torch.equal(divergence(*halves, tau=tau), divergence(halves[0].float(), halves[1].float(), tau=tau))


def test_equal_logits_have_no_divergence_and_no_gradient():
    z = torch.randn(6, 4, requires_grad=True)
    loss = divergence(z, z.detach().clone())
    loss.sum().backward()
    assert loss.abs().max() < 1e-6
    assert z.grad.abs().max() < 1e-6
    huge = torch.tensor([[1e30, -1e30, 0.0]], requires_grad=True)
    divergence(huge, -huge.detach()).sum().backward()
    assert torch.isfinite(huge.grad).all()


def test_saliency_is_nothing_where_the_modality_is_ignored_and_equal_where_views_are():
    full, one = torch.randn(5, 3), torch.randn(5, 3)
    found = saliency(full, [full.clone(), one, one.clone()])
    assert found.shape == (5, 3)
    assert found[:, 0].abs().max() < 1e-6
    assert (found[:, 1] > 0).all()
    assert torch.equal(found[:, 1], found[:, 2])


def test_weights_sum_to_their_total_over_what_is_there():
    scores = torch.tensor([[1.0, 3.0], [0.0, 0.0], [5.0, 0.0], [2.0, 2.0], [1e-40, 3e-40], [1.0, 1.0]])
    here = torch.tensor([[True, True], [True, True], [True, True], [False, True], [True, True], [False, False]])
    found = shared_out(scores, here, total=0.5)
    expected = torch.tensor([[0.125, 0.375], [0.25, 0.25], [0.5, 0.0], [0.0, 0.5], [0.125, 0.375], [0.0, 0.0]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(shared_out(scores.flip(1), here.flip(1), total=0.5), found.flip(1))


def test_the_weight_network_starts_near_even_weights():
    net = WeightNetwork(2, total=1.0)
    w = net(torch.rand(50, 2))
    assert ((w > 0) & (w < 1)).all()
    assert (w.mean(dim=0) - 0.5).abs().max() < 0.2


def test_the_meta_gradient_is_that_of_finite_differences():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x, views, meta_x = torch.randn(6, 3).double(), torch.randn(2, 6, 3).double(), torch.randn(5, 3).double()
    y, meta_y, target = torch.randint(4, (6,)), torch.randint(4, (5,)), torch.randn(2, 6, 4).double()
    call = torch.func.functional_call

    def terms(p):
        fixed = nn.functional.cross_entropy(call(net, p, (x,)), y, reduction="none")
        return fixed, torch.stack([divergence(call(net, p, (v,)), t) for v, t in zip(views, target, strict=True)], 1)

    def meta(p):
        return nn.functional.cross_entropy(call(net, p, (meta_x,)), meta_y)

    parameters, weights, rate = dict(net.named_parameters()), torch.rand(6, 2).double(), 0.3

    def after(w):
        theta = {n: p.detach().requires_grad_() for n, p in parameters.items()}
        fixed, aux = terms(theta)
        loss = (fixed + (w * aux).sum(1)).mean()
        gradients = torch.autograd.grad(loss, list(theta.values()))
        return meta({n: p - rate * g for (n, p), g in zip(theta.items(), gradients, strict=True)}).item()

    found = meta_gradient(terms, meta, parameters, weights, rate=rate)
    for i in range(6):
        for m in range(2):
            step = torch.zeros(6, 2).double()
            step[i, m] = 1e-5
            slow = (after(weights + step) - after(weights - step)) / 2e-5
            assert found[i, m].item() == pytest.approx(slow, rel=1e-4, abs=1e-9)
    assert found.abs().max() > 1e-5
    assert all(p.grad is None for p in net.parameters())
