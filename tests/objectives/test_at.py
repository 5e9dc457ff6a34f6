"""Attention transfer against a loop over places."""

import math

import pytest
import torch

from crossdistill.objectives.at import Attention, attention_distance

DOUBLE = torch.float64


def maps(b=3, c=5, h=3, w=4, dtype=DOUBLE):
    return torch.randn(b, c, h, w, dtype=dtype)


def slow(s, t):
    def attention(x):
        c, h, w = x.shape
        q = [sum(float(x[k, i, j]) ** 2 for k in range(c)) / c for i in range(h) for j in range(w)]
        return [v / math.sqrt(sum(u * u for u in q)) for v in q]

    found = []
    for one, other in zip(s, t, strict=True):
        found += [(a - b) ** 2 for a, b in zip(attention(one), attention(other), strict=True)]
    return sum(found) / len(found)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (3, 7, 3, 4), (2, 9, 2, 2)])
def test_the_loss_equals_a_loop_written_from_the_equation(shape, dtype, tolerance):
    b, c, h, w = shape
    s, t = maps(b, c, h, w, dtype), maps(b, 5, h, w, dtype)
    assert attention_distance(s, t).item() == pytest.approx(slow(s, t), rel=tolerance, abs=tolerance)
    assert torch.equal(Attention()([s], [t]), attention_distance(s, t))


def test_the_order_of_channels_signs_and_each_samples_scale_do_not_count():
    t = maps()
    assert attention_distance(t, t) == 0
    scales = torch.tensor([1e-3, 1.0, 500.0], dtype=DOUBLE)[:, None, None, None]
    assert attention_distance(-scales * t[:, torch.randperm(5)], t).item() < 1e-30
    assert attention_distance(t.repeat(1, 2, 1, 1), t).item() < 1e-30
    assert attention_distance(t.flip(3), t) > 1e-3


def test_attention_at_two_different_places_is_the_largest_distance():
    s, t = torch.zeros(1, 2, 2, 3, dtype=DOUBLE), torch.zeros(1, 4, 2, 3, dtype=DOUBLE)
    s[0, :, 0, 0], t[0, 1, 1, 2] = 3.0, 5.0
    assert attention_distance(s, t).item() == pytest.approx(2 / 6)


def test_a_sample_without_any_activity_has_no_attention_and_no_gradient():
    s, t = maps(), maps()
    s[1] = 0
    s.requires_grad_()
    value = attention_distance(s, t)
    value.backward()
    others = slow(s.detach()[[0, 2]], t[[0, 2]])
    assert value.item() == pytest.approx((2 * others + 1 / 12) / 3, rel=1e-12)  # ||0 - Q_t||^2 = 1 over 12 places
    assert not s.grad[1].any()
    assert s.grad[[0, 2]].abs().sum() > 0
