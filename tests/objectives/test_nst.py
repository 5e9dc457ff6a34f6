"""Neuron selectivity against a loop over channels, and the identities of sets of patterns."""

import math

import pytest
import torch

from crossdistill.errors import ConfigError
from crossdistill.objectives.nst import NeuronSelectivity, selectivity_distance

DOUBLE = torch.float64


def maps(b=3, c=5, h=3, w=4, dtype=DOUBLE):
    return torch.randn(b, c, h, w, dtype=dtype)


def slow(s, t, offset=0.0):
    """The three means of the kernel, pattern by pattern."""

    def patterns(x):
        rows = [channel.flatten().tolist() for channel in x.double()]
        return [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in rows]

    def mean(one, other):
        values = [(sum(a * b for a, b in zip(x, y, strict=True)) + offset) ** 2 for x in one for y in other]
        return sum(values) / len(values)

    total = 0.0
    for one, other in zip(s, t, strict=True):
        p, q = patterns(one), patterns(other)
        total += mean(q, q) + mean(p, p) - 2 * mean(p, q)
    return total / len(s)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("form", ["auto", "channels", "places"])
@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (3, 7, 3, 4), (2, 9, 2, 2)])
def test_the_loss_equals_a_loop_written_from_the_equation(shape, form, offset, dtype, tolerance):
    b, c, h, w = shape
    s, t = maps(b, c, h, w, dtype), maps(b, 5, h, w, dtype)
    value = selectivity_distance(s, t, offset=offset, form=form).item()
    assert value == pytest.approx(slow(s, t, offset), rel=tolerance, abs=tolerance)


def test_a_class_is_its_function():
    s, t = maps(), maps(c=7)
    assert torch.equal(NeuronSelectivity()([s], [t]), selectivity_distance(s, t))
    assert torch.equal(NeuronSelectivity(offset=0.4)([s], [t]), selectivity_distance(s, t, offset=0.4))


@pytest.mark.parametrize("form", ["channels", "places"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_order_and_scale_of_channels_do_not_count(form, offset):
    how = {"form": form, "offset": offset}
    t = maps(c=6)
    assert selectivity_distance(t, t, **how) == 0
    assert selectivity_distance(t[:, torch.randperm(6)], t, **how).item() == pytest.approx(0, abs=1e-15)
    scales = torch.rand(3, 6, 1, 1, dtype=DOUBLE) + 0.1
    assert selectivity_distance(scales * t, t, **how).item() == pytest.approx(0, abs=1e-15)
    assert selectivity_distance(t.repeat(1, 3, 1, 1), t, **how).item() == pytest.approx(0, abs=1e-15)
    s = maps(c=4)
    assert selectivity_distance(s, 7 * t, **how).item() == pytest.approx(selectivity_distance(s, t, **how).item())


def test_the_offset_tells_a_pattern_from_its_negative():
    t = maps(c=6)
    assert selectivity_distance(-t, t).item() == pytest.approx(0, abs=1e-15)
    assert selectivity_distance(-t, t, offset=1.0) > 0.01


def test_it_is_never_negative_and_bounded():
    for seed in range(20):
        torch.manual_seed(seed)
        for offset in (0.0, 2.0):
            value = selectivity_distance(maps(c=2), maps(c=3), offset=offset).item()
            assert 0 <= value <= 2 * (1 + offset) ** 2
    one = torch.zeros(1, 1, 1, 2, dtype=DOUBLE)
    other = one.clone()
    one[..., 0], other[..., 1] = 1, 1
    assert selectivity_distance(one, other).item() == pytest.approx(2)  # 1 + 1 - 0


def test_places_count():
    s = maps(c=6)
    assert selectivity_distance(s.flip(3), s) > 0.01


def test_a_channel_that_is_off_counts_as_a_zero_pattern():
    t = maps(c=2)
    s = torch.cat([t, torch.zeros(3, 2, 3, 4, dtype=DOUBLE)], dim=1).requires_grad_()
    x = t.flatten(2) / t.flatten(2).norm(dim=2, keepdim=True)
    kernel = (x @ x.transpose(1, 2)).square().mean(dim=(1, 2))
    expected = (kernel * (1 + 1 / 4 - 2 / 2)).mean()  # half of the student's patterns are 0
    value = selectivity_distance(s, t)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not s.grad[:, 2:].any()


def test_auto_takes_the_form_that_holds_less(monkeypatch):
    seen = []
    einsum = torch.einsum
    monkeypatch.setattr(torch, "einsum", lambda *a: seen.append(a[0]) or einsum(*a))
    selectivity_distance(maps(c=2, h=6, w=6), maps(c=3, h=6, w=6))
    assert set(seen) == {"bcp,bdp->bcd"}
    seen.clear()
    selectivity_distance(maps(c=20, h=2, w=2), maps(c=30, h=2, w=2))
    assert set(seen) == {"bcp,bcq->bpq"}


@pytest.mark.parametrize("offset", [-0.1, float("nan"), float("inf")])
def test_an_offset_that_makes_no_kernel_is_refused(offset):
    with pytest.raises(ConfigError, match=f"nst: offset must be finite and at least 0; received {offset}"):
        NeuronSelectivity(offset=offset)
    with pytest.raises(ConfigError, match="form must be auto, channels or places; received 'fast'"):
        selectivity_distance(maps(), maps(), form="fast")
