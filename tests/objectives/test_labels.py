"""Cross-entropy with the labels that are known, and what all losses between logits share."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._logits import js_rows, kl_rows, mean_where, non_target, target_split
from crossdistill.objectives.labels import CrossEntropy, labelled_cross_entropy

DOUBLE = torch.float64


def slow_cross_entropy(s, y, smoothing=0.0):
    found = []
    for row, label in zip(s.tolist(), y.tolist(), strict=True):
        if label >= 0:
            log = [v - math.log(sum(map(math.exp, row))) for v in row]
            found.append(-(1 - smoothing) * log[label] - smoothing * sum(log) / len(log))
    return sum(found) / len(found)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(1, 2), (1, 1), (9, 4), (6, 30)])
def test_it_equals_its_loop_over_the_labelled_rows(shape, smoothing):
    s, y = torch.randn(shape, dtype=DOUBLE), torch.randint(shape[1], shape[:1])
    y[1::2] = -1
    assert float(CrossEntropy(smoothing)(s, None, label=y)) == pytest.approx(slow_cross_entropy(s, y, smoothing))


def test_unlabelled_rows_change_neither_value_nor_gradient():
    s, y = torch.randn(8, 3, requires_grad=True), torch.randint(3, (8,))
    y[4:] = -1
    value = labelled_cross_entropy(s, y)
    (gradient,) = torch.autograd.grad(value, s)
    assert value == F.cross_entropy(s[:4], y[:4])
    assert not gradient[4:].any()
    assert gradient[:4].any()


def test_a_batch_without_any_label_gives_zero_and_keeps_the_graph():
    s = torch.randn(4, 3, requires_grad=True)
    value = labelled_cross_entropy(s, torch.full((4,), -1))
    value.backward()
    assert value == 0
    assert not s.grad.any()


def test_the_teacher_is_not_looked_at():
    s, y = torch.randn(4, 3), torch.randint(3, (4,))
    assert CrossEntropy()(s, torch.randn(7, 9), label=y) == CrossEntropy()(s, None, label=y)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(half):
    s, y = torch.randn(6, 3).to(half), torch.randint(3, (6,))
    value = labelled_cross_entropy(s, y)
    assert value.dtype == torch.float32
    assert value == labelled_cross_entropy(s.float(), y)


def test_large_constant_and_zero_logits_are_borne():
    y = torch.tensor([0, 2])
    for s in (torch.zeros(2, 3), torch.full((2, 3), 7.0), torch.tensor([[-1e30, 0, 1e30], [0, 1e4, -1e4]])):
        s.requires_grad_()
        value = labelled_cross_entropy(s, y)
        value.backward()
        assert value.isfinite()
        assert s.grad.isfinite().all()
    assert float(labelled_cross_entropy(torch.zeros(2, 3), y)) == pytest.approx(math.log(3))


def test_what_does_not_fit_is_refused():
    s = torch.randn(4, 3)
    with pytest.raises(ConfigError, match=r"smoothing must be in \[0, 1\); received 1"):
        CrossEntropy(1.0)
    with pytest.raises(ObjectiveError, match="cross_entropy: it needs labels, and the batch has none"):
        CrossEntropy()(s, None)
    with pytest.raises(ObjectiveError, match="label 3 is out of range; the logits are over 3"):
        CrossEntropy()(s, None, label=torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ObjectiveError, match=r"labels must be integers \(4,\), one a row; received \(3,\)"):
        CrossEntropy()(s, None, label=torch.tensor([0, 1, 2]))
    with pytest.raises(ObjectiveError, match=r"logits must be \(b, c\) floating point.*\(0, 3\)"):
        CrossEntropy()(s[:0], None, label=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ObjectiveError, match=r"overflows torch\.float32; the largest entries are 3e\+38"):
        CrossEntropy()(torch.tensor([[3e38, -3e38]]), None, label=torch.tensor([1]))


def test_rows_of_kl_equal_torchs():
    s, t = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 4, dtype=DOUBLE)
    expected = F.kl_div((s / 3).log_softmax(1), (t / 3).log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(kl_rows(s, t, tau=3.0), expected)


def test_the_own_class_is_taken_out_in_place():
    s = torch.arange(12.0).view(3, 4)
    assert non_target(s, torch.tensor([0, 2, 3])).tolist() == [[1, 2, 3], [4, 5, 7], [8, 9, 10]]


def test_target_split_holds_both_probabilities():
    s, y = torch.randn(6, 4, dtype=DOUBLE), torch.randint(4, (6,))
    p = s.softmax(1)[torch.arange(6), y]
    torch.testing.assert_close(target_split(s, y).exp(), torch.stack([p, 1 - p], dim=1))
    sure = torch.tensor([[80.0, 0.0, 0.0], [-80.0, 0.0, 0.0]])
    assert target_split(sure, torch.tensor([0, 0])).tolist() == [
        [0.0, pytest.approx(math.log(2) - 80)],
        [pytest.approx(-80 - math.log(2)), 0.0],
    ]


def test_jensen_shannon_is_symmetric_and_at_most_ln_2():
    p, q = (torch.randn(50, 5, dtype=DOUBLE).mul(9).log_softmax(1) for _ in range(2))
    value = js_rows(p, q)
    torch.testing.assert_close(value, js_rows(q, p))
    assert (value > 0).all()
    assert (value <= math.log(2) + 1e-12).all()
    far = (
        torch.tensor([[1e3, 0.0]], dtype=DOUBLE).log_softmax(1),
        torch.tensor([[0.0, 1e3]], dtype=DOUBLE).log_softmax(1),
    )
    assert float(js_rows(*far)) == pytest.approx(math.log(2))


def test_the_mean_over_no_rows_is_zero():
    values = torch.randn(3, requires_grad=True)
    mean_where(values, torch.zeros(3, dtype=torch.bool)).backward()
    assert values.grad.tolist() == [0, 0, 0]
