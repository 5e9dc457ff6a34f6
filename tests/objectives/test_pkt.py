"""PKT against a loop written from its equation, and what must leave it alone."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.pkt import ProbabilisticTransfer, probabilistic_transfer, shifted_cosine_kernel

DOUBLE = torch.float64


def pair(b=9, d_s=5, d_t=7, dtype=DOUBLE):
    return torch.randn(b, d_s, dtype=dtype), torch.randn(b, d_t, dtype=dtype)


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, dtype=DOUBLE)).Q


def slow(s, t, eps=1e-7):
    s, t = (F.normalize(x.double(), dim=1).tolist() for x in (s, t))
    b, total = len(s), 0.0
    for i in range(b):
        k_s, k_t = ([(sum(p * q for p, q in zip(x[i], x[j], strict=True)) + 1) / 2 for j in range(b)] for x in (s, t))
        for a, c in zip(k_t, k_s, strict=True):
            p_t, p_s = a / sum(k_t), c / sum(k_s)
            total += p_t * math.log((p_t + eps) / (p_s + eps))
    return total / b


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 1e-4)])
@pytest.mark.parametrize(("b", "d_s", "d_t"), [(2, 3, 3), (6, 4, 9), (17, 8, 2)])
@pytest.mark.parametrize("eps", [1e-7, 1e-2])
def test_it_equals_a_loop_written_from_the_equation(b, d_s, d_t, eps, dtype, tolerance):
    s, t = pair(b, d_s, d_t, dtype)
    expected = slow(s, t, eps)
    assert probabilistic_transfer(s, t, eps=eps).item() == pytest.approx(expected, rel=tolerance, abs=1e-7)
    assert ProbabilisticTransfer(eps=eps)(s, t).item() == pytest.approx(expected, rel=tolerance, abs=1e-7)
    entries = ProbabilisticTransfer("entries", eps=eps)(s, t).item()
    assert entries == pytest.approx(expected / b, rel=tolerance, abs=1e-7)


def test_rows_of_the_kernel_are_probabilities_and_each_sample_is_its_own_nearest():
    kernel = shifted_cosine_kernel(torch.randn(8, 5, dtype=DOUBLE))
    torch.testing.assert_close(kernel.sum(dim=1), torch.ones(8, dtype=DOUBLE))
    assert (kernel >= 0).all()
    assert torch.equal(kernel.argmax(dim=1), torch.arange(8))
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=DOUBLE)
    assert torch.equal(shifted_cosine_kernel(opposite), torch.eye(2, dtype=DOUBLE))


def test_turning_and_scaling_change_nothing_and_shifting_does():
    s, t = pair(32)
    value = probabilistic_transfer(s, t).item()
    for other in ((3 * s @ rotation(5), t), (s, 0.01 * t @ rotation(7))):
        assert probabilistic_transfer(*other).item() == pytest.approx(value, abs=1e-14)
    assert abs(probabilistic_transfer(s + 1, t).item() - value) > 1e-3
    assert probabilistic_transfer(2 * t @ rotation(7), t).item() == pytest.approx(0, abs=1e-15)
    assert value > 0.01


def test_a_constant_student_gives_the_logarithm_of_b_less_the_teachers_entropy():
    t = torch.randn(32, 4, dtype=DOUBLE)
    p = shifted_cosine_kernel(t)
    expected = math.log(32) + (p * p.log()).sum(dim=1).mean().item()
    value = probabilistic_transfer(torch.ones(32, 3, dtype=DOUBLE), t, eps=1e-16).item()
    assert value == pytest.approx(expected, abs=1e-12)
    assert 0.01 < value < 0.2  # small by construction


def test_the_released_mean_over_entries_is_b_times_smaller():
    s, t = pair(64)
    rows, entries = probabilistic_transfer(s, t), probabilistic_transfer(s, t, average="entries")
    assert (rows / entries).item() == pytest.approx(64, rel=1e-12)
    assert (30_000 * entries / rows).item() == pytest.approx(468.75, rel=1e-12)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"average": "all"}, "average must be 'rows' or 'entries'; received 'all'"),
        ({"eps": 0.0}, "eps must be finite and above 0.* received 0"),
        ({"eps": float("nan")}, "eps must be finite"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        ProbabilisticTransfer(**how)
    with pytest.raises(ConfigError, match=message):
        probabilistic_transfer(*pair(), **how)


def test_what_is_no_pair_is_refused():
    s, t = pair()
    with pytest.raises(ObjectiveError, match="pkt: rows must be pairs; received 9 student, 8 teacher"):
        ProbabilisticTransfer()(s, t[:8])
    with pytest.raises(ObjectiveError, match=r"pkt: the teacher's features must be \(b, d\)"):
        ProbabilisticTransfer()(s, t[:, :, None])
