"""FD-CMKD: splits that add up, scales that keep their promises, and the loss against a loop from its equation."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.base import Context
from crossdistill.objectives.fdcmkd import (
    FeatureDisentanglement,
    basis_split,
    frequency_split,
    log_scale,
    standardise,
)

DOUBLE = torch.float64
SPLITS = ["dft", "random", "pca"]


def prepared(s, t, *args, **parameters):
    objective = FeatureDisentanglement(*args, **parameters)
    objective.prepare(s, t, pairs=len(s))
    objective.study([(part, Context()) for part in t.split(4)])
    return objective


def slow_split(row, kept):
    """Low frequencies of one row by the sums of a discrete Fourier transform, kept of the d // 2 + 1."""
    d = len(row)
    low = [0.0] * d
    for k in range(d):
        if min(k, d - k) >= kept:
            continue
        a = sum(v * math.cos(2 * math.pi * k * j / d) for j, v in enumerate(row))
        b = sum(-v * math.sin(2 * math.pi * k * j / d) for j, v in enumerate(row))
        for j in range(d):
            low[j] += (a * math.cos(2 * math.pi * k * j / d) - b * math.sin(2 * math.pi * k * j / d)) / d
    return low


def slow_loss(s, t, share, scale_high):
    low, high, (n, d) = 0.0, 0.0, s.shape

    def std(row):
        row = row - row.mean()
        return row / row.norm()

    for a, b in zip(s, t, strict=True):
        kept = math.ceil(share * (d // 2 + 1))
        a_low, b_low = (torch.tensor(slow_split(row.tolist(), kept), dtype=DOUBLE) for row in (a, b))
        low += float((std(a_low) - std(b_low)).square().sum()) / (n * d)
        a_high, b_high = a - a_low, b - b_low
        if scale_high:
            a_high, b_high = std(a_high), std(b_high)
        a_high, b_high = (row.sign() * (1 + row.abs()).log() for row in (a_high, b_high))
        high += float((a_high - b_high).square().sum()) / (n * d)
    return low, high


@pytest.mark.parametrize("scale_high", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("shape", [(1, 6), (4, 9), (5, 16)])
def test_it_equals_its_loop(shape, share, scale_high):
    s, t = torch.randn(shape, dtype=DOUBLE), torch.randn(shape, dtype=DOUBLE)
    parts = FeatureDisentanglement(share=share, low_weight=2.0, high_weight=3.0, scale_high=scale_high).terms(
        s, t, Context()
    )
    low, high = slow_loss(s, t, share, scale_high)
    assert float(parts["low"]) == pytest.approx(2 * low, abs=1e-12)
    assert float(parts["high"]) == pytest.approx(3 * high, abs=1e-12)


@pytest.mark.parametrize("d", [1, 2, 7, 16])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_frequencies_and_energies_add_up(d, share):
    x = torch.randn(5, d, dtype=DOUBLE)
    low, high = frequency_split(x, share=share)
    torch.testing.assert_close(low + high, x)
    torch.testing.assert_close(low.square().sum(1) + high.square().sum(1), x.square().sum(1))
    torch.testing.assert_close(frequency_split(low, share=share)[0], low)  # a projection
    constant = torch.full((2, d), 3.0, dtype=DOUBLE)
    assert frequency_split(constant, share=share)[1].abs().max() < 1e-14
    if share == 1:
        assert high.abs().max() < 1e-14


@pytest.mark.parametrize("split", ["random", "pca"])
def test_other_splits_add_up_too(split):
    s, t = torch.randn(20, 7, dtype=DOUBLE), torch.randn(20, 7, dtype=DOUBLE)
    basis = prepared(s, t, split, share=0.5).basis
    assert basis.shape == (7, 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=DOUBLE))
    low, high = basis_split(s, basis)
    torch.testing.assert_close(low + high, s)
    torch.testing.assert_close(low.square().sum(1) + high.square().sum(1), s.square().sum(1))


def test_pca_finds_the_teachers_leading_axes():
    axes = torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE)).Q
    t = torch.randn(500, 6, dtype=DOUBLE) * torch.tensor([9.0, 5, 3, 0.1, 0.1, 0.1]) @ axes.T + 4
    s = torch.randn(500, 6, dtype=DOUBLE)
    basis = prepared(s, t, "pca").basis
    _, _, v = torch.linalg.svd(t - t.mean(0), full_matrices=False)
    torch.testing.assert_close((basis.T @ v[:3].T).abs(), torch.eye(3, dtype=DOUBLE), atol=1e-9, rtol=0)


def test_the_random_half_is_a_function_of_the_seed():
    s, t = torch.randn(4, 6), torch.randn(4, 6)

    def seeded(seed):
        torch.manual_seed(seed)
        return prepared(s, t, "random").basis

    assert torch.equal(seeded(1), seeded(1))
    assert not torch.equal(seeded(1), seeded(2))


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_standardised_rows_have_no_mean_and_unit_length_and_constant_ones_vanish(dtype):
    x = torch.randn(6, 9, dtype=dtype) * 5 + 3
    z = standardise(x)
    assert z.mean(1).abs().max() < 1e-6
    torch.testing.assert_close(z.norm(dim=1), torch.ones(6, dtype=dtype))
    torch.testing.assert_close(standardise(7 * x + 2), z, rtol=1e-4, atol=1e-5)
    for value in (0.0, 0.1, 1e3 / 3, 1e30):
        flat = frequency_split(torch.full((1, 9), value, dtype=dtype))[0].requires_grad_()
        standardise(flat).sum().backward()
        assert not standardise(flat).any()
        assert not flat.grad.any()


def test_log_scale_equals_its_formula_and_never_steepens():
    x = torch.tensor([-1e3, -2.0, -0.1, 0.0, 1e-9, 0.5, 7.0], dtype=DOUBLE, requires_grad=True)
    y = log_scale(x)
    torch.testing.assert_close(y, x.sign() * x.abs().log1p())
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, 1 / (1 + x.abs()))
    assert slope[3] == 1  # sign() would give 0


def test_the_log_scaled_distance_pulls_no_harder_than_the_plain_one():
    a, b = torch.randn(50, dtype=DOUBLE, requires_grad=True), torch.randn(50, dtype=DOUBLE)
    (logged,) = torch.autograd.grad((log_scale(a) - log_scale(b)).square().sum(), a)
    assert (logged.abs() <= (2 * (a - b)).abs() + 1e-12).all()
    near, at = torch.full((1,), 1e-6, dtype=DOUBLE, requires_grad=True), torch.zeros(1, dtype=DOUBLE)
    (close,) = torch.autograd.grad((log_scale(near) - log_scale(at)).square().sum(), near)
    assert float(close) == pytest.approx(2e-6, rel=1e-5)


@pytest.mark.parametrize("split", SPLITS)
def test_equal_features_give_zero_and_the_low_part_knows_neither_scale_nor_level(split):
    s, t = torch.randn(5, 8, dtype=DOUBLE), torch.randn(5, 8, dtype=DOUBLE)
    objective = prepared(s, t, split)
    assert objective(t, t) == 0
    parts, other = objective.terms(s, t, Context()), objective.terms(3 * s, t, Context())
    torch.testing.assert_close(other["low"], parts["low"])
    assert abs(other["high"] - parts["high"]) > 1e-3
    assert parts["low"] <= 4 / 8


@pytest.mark.parametrize("split", SPLITS)
def test_the_gradient_equals_finite_differences_and_is_not_the_teachers(split):
    s, t = torch.randn(4, 6, dtype=DOUBLE), torch.randn(4, 6, dtype=DOUBLE)
    objective = prepared(s, t, split, classes=3).double()
    y = torch.tensor([0, 2, -1, 1])
    assert torch.autograd.gradcheck(lambda s: objective(s, t, label=y), (s.requires_grad_(),))
    objective(s, t.requires_grad_(), label=y).backward()
    assert t.grad is None


def test_the_shared_classifiers_read_both_modalities():
    s, t, y = torch.randn(6, 8), torch.randn(6, 8), torch.tensor([0, 1, 2, 0, -1, 2])
    objective = prepared(s, t, classes=3, shared_weight=0.7)
    parts = objective.terms(s, t, Context(label=y))
    (s_low, s_high), (t_low, t_high), known = frequency_split(s), frequency_split(t), y >= 0
    low, high = objective.classifiers["low"], objective.classifiers["high"]
    logits = (low(s_low), low(t_low), high(s_high), high(t_high))
    expected = 0.7 * sum(F.cross_entropy(one[known], y[known]) for one in logits)
    torch.testing.assert_close(parts["shared"], expected)
    assert objective.needs == {"pairs", "equal_widths", "labels"}
    assert FeatureDisentanglement().needs == {"pairs", "equal_widths"}
    assert objective.terms(s, t, Context(label=torch.full((6,), -1)))["shared"] == 0


def test_preparing_again_keeps_what_was_made():
    s, t = torch.randn(6, 8), torch.randn(6, 8)
    objective = prepared(s, t, "pca", classes=3)
    basis, classifiers = objective.basis.clone(), objective.classifiers
    objective.prepare(2 * s, 2 * t, pairs=6)
    assert torch.equal(objective.basis, basis)
    assert objective.classifiers is classifiers
    assert {"basis", "classifiers.low.weight", "classifiers.high.bias"} < set(objective.state_dict())


@pytest.mark.parametrize("split", SPLITS)
def test_precisions_sizes_constants_and_a_batch_of_one(split):
    s, t = torch.randn(6, 8), torch.randn(6, 8)
    objective = prepared(s, t, split)
    assert float(objective(s, t)) == pytest.approx(float(objective(s.double(), t.double())), rel=1e-4)
    assert objective(s.bfloat16(), t.bfloat16()) == objective(s.bfloat16().float(), t.bfloat16().float())
    for one in (torch.zeros(2, 8), torch.ones(1, 8) / 3, torch.randn(1, 8) * 1e30, torch.randn(3, 8) * 1e-30):
        for other in (torch.randn_like(one), torch.ones_like(one), torch.randn_like(one) * 1e30):
            leaf = one.clone().requires_grad_()
            value = objective(leaf, other)
            value.backward()
            assert value.isfinite()
            assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"split": "fft"}, "split must be one of dft, random, pca; received 'fft'"),
        ({"share": 0.0}, r"share must be in \(0, 1\]; received 0"),
        ({"classes": -1}, "classes must be at least 0"),
        ({"low_weight": -1.0}, "low_weight must be finite and at least 0"),
        ({"shared_weight": math.inf}, "shared_weight must be finite"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ConfigError, match=message):
        FeatureDisentanglement(**parameters)


def test_what_does_not_fit_is_refused():
    s, t = torch.randn(4, 6), torch.randn(4, 5)
    with pytest.raises(ObjectiveError, match="fdcmkd: student and teacher widths must be equal; received 6 and 5"):
        FeatureDisentanglement()(s, t)
    with pytest.raises(ObjectiveError, match="call prepare before the loss, to make the split"):
        FeatureDisentanglement("random")(s, s)
    with pytest.raises(ObjectiveError, match="to make the shared classifiers"):
        FeatureDisentanglement(classes=3)(s, s, label=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ObjectiveError, match="fdcmkd: pca needs `prepare` first, and features that are finite"):
        FeatureDisentanglement("pca").study([(t, Context())])
    with pytest.raises(ObjectiveError, match="finite"):
        prepared(s, s * float("nan"), "pca")
    with pytest.raises(ObjectiveError, match="fdcmkd: the shared classifiers need labels, and the batch has none"):
        prepared(s, s, classes=3)(s, s)
    with pytest.raises(ObjectiveError, match=r"fdcmkd: the loss overflows torch\.float32"):
        FeatureDisentanglement()(torch.full((1, 6), 3e38), torch.zeros(1, 6))
