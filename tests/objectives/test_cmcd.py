"""CMCD's losses against loops written from their equations, and every identity that must hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import (
    CrossModalContrastive,
    SimilarityDistillation,
    anchored_distillation,
    cross_modal_contrastive,
    kernel_distances,
    nt_xent,
    similarity_distillation,
    unit,
)
from crossdistill.objectives.cmcd import similarities, soft_cross_entropy

DOUBLE = torch.float64


def random_pair(n=12, d_s=5, d_t=7, dtype=DOUBLE):
    return torch.randn(n, d_s, dtype=dtype), torch.randn(n, d_t, dtype=dtype)


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, dtype=DOUBLE)).Q


def slow_similarity(s, t, tau_s, tau_t, exclude_self=True):
    s, t = F.normalize(s.double(), dim=1), F.normalize(t.double(), dim=1)
    total = 0.0
    for i in range(len(s)):
        candidates = [j for j in range(len(s)) if j != i or not exclude_self]
        z_t = sum(math.exp(float(t[i] @ t[j]) / tau_t) for j in candidates)
        z_s = sum(math.exp(float(s[i] @ s[j]) / tau_s) for j in candidates)
        for j in candidates:
            total -= math.exp(float(t[i] @ t[j]) / tau_t) / z_t * (float(s[i] @ s[j]) / tau_s - math.log(z_s))
    return total / len(s)


def slow_contrastive(s, t, tau, group=None):
    s, t = F.normalize(s.double(), dim=1), F.normalize(t.double(), dim=1)
    total = 0.0
    for a, b in ((s, t), (t, s)):
        for i in range(len(s)):
            others = [j for j in range(len(s)) if j == i or group is None or group[i] != group[j]]
            total -= float(a[i] @ b[i]) / tau - math.log(sum(math.exp(float(a[i] @ b[j]) / tau) for j in others))
    return total / (2 * len(s))


def slow_anchor(s, t, bank, tau_s, tau_t):
    s, t, bank = (F.normalize(x.double(), dim=1) for x in (s, t, bank))
    total = 0.0
    for i in range(len(s)):
        candidates = [t[i], *bank.unbind()]
        z_t = sum(math.exp(float(t[i] @ c) / tau_t) for c in candidates)
        z_s = sum(math.exp(float(s[i] @ c) / tau_s) for c in candidates)
        for c in candidates:
            total -= math.exp(float(t[i] @ c) / tau_t) / z_t * (float(s[i] @ c) / tau_s - math.log(z_s))
    return total / len(s)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("tau", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("n", [2, 9])
def test_losses_equal_loops_written_from_the_equations(n, tau, dtype, tolerance):
    s, t = random_pair(n, 5, 5, dtype)
    assert similarity_distillation(s, t, tau_student=tau, tau_teacher=0.2).item() == pytest.approx(
        slow_similarity(s, t, tau, 0.2), rel=tolerance
    )
    assert cross_modal_contrastive(s, t, tau=tau).item() == pytest.approx(slow_contrastive(s, t, tau), rel=tolerance)
    bank = torch.randn(6, 5, dtype=dtype)
    assert anchored_distillation(s, t, tau_student=tau, tau_teacher=0.1, bank=bank).item() == pytest.approx(
        slow_anchor(s, t, bank, tau, 0.1), rel=tolerance
    )


def test_nt_xent_equals_the_double_sum_over_views():
    a, b = random_pair(7, 4, 4)
    u = F.normalize(torch.cat([a, b]), dim=1)
    total = 0.0
    for i in range(14):
        positive = math.exp(float(u[i] @ u[(i + 7) % 14]) / 0.2)
        total -= math.log(positive / sum(math.exp(float(u[i] @ u[k]) / 0.2) for k in range(14) if k != i))
    assert nt_xent(a, b, tau=0.2).item() == pytest.approx(total / 14, rel=1e-12)
    assert nt_xent(torch.ones(5, 3), torch.ones(5, 3)).item() == pytest.approx(math.log(9), rel=1e-6)


def test_a_rotated_and_scaled_teacher_is_the_optimum():
    _, t = random_pair(10, 6, 6)
    s = (3.7 * t @ rotation(6)).requires_grad_()
    loss = similarity_distillation(s, t)
    entropy = soft_cross_entropy(similarities(t, tau=0.1), similarities(t, tau=0.1))
    loss.backward()
    assert loss.item() == pytest.approx(entropy.item(), abs=1e-12)
    assert s.grad.norm() < 1e-13
    other = torch.randn(10, 7, dtype=DOUBLE, requires_grad=True)
    similarity_distillation(other, t).backward()
    assert other.grad.norm() > 1e-3


def test_constant_students_give_the_logarithm_of_the_candidates():
    t, constant = torch.randn(9, 4, dtype=DOUBLE), torch.ones(9, 3, dtype=DOUBLE)
    assert similarity_distillation(constant, t).item() == pytest.approx(math.log(8), abs=1e-12)
    assert similarity_distillation(constant, t, exclude_self=False).item() == pytest.approx(math.log(9), abs=1e-12)
    assert cross_modal_contrastive(
        torch.ones(9, 4, dtype=DOUBLE), torch.ones(9, 4, dtype=DOUBLE)
    ).item() == pytest.approx(math.log(9), abs=1e-12)


@pytest.mark.parametrize(("tau", "expected"), [(0.1, 0.000317749), (0.5, 0.666467925)])
def test_contrastive_of_orthonormal_rows(tau, expected):
    eye = torch.eye(8, dtype=DOUBLE)
    value = cross_modal_contrastive(eye, eye, tau=tau).item()
    assert value == pytest.approx(math.log(1 + 7 * math.exp(-1 / tau)), rel=1e-12)
    assert value == pytest.approx(expected, abs=5e-10)


def test_one_pair_and_infinite_temperature():
    s, t = random_pair(1, 4, 4)
    assert cross_modal_contrastive(s, t).item() == pytest.approx(0, abs=1e-15)
    s, t = random_pair(11, 4, 4)
    assert cross_modal_contrastive(s, t, tau=1e9).item() == pytest.approx(math.log(11), abs=1e-8)
    assert similarity_distillation(s, t, tau_student=1e9).item() == pytest.approx(math.log(10), abs=1e-8)


def test_permuting_pairs_changes_nothing_and_breaking_pairs_does():
    s = torch.randn(16, 8, dtype=DOUBLE)
    t = s + 0.1 * torch.randn(16, 8, dtype=DOUBLE)
    order = torch.randperm(16)
    for loss in (similarity_distillation, cross_modal_contrastive):
        assert loss(s[order], t[order]).item() == pytest.approx(loss(s, t).item(), abs=1e-12)
        assert loss(5 * s, 0.01 * t).item() == pytest.approx(loss(s, t).item(), abs=1e-12)
        assert loss(s.roll(1, 0), t).item() > loss(s, t).item() + 0.1


def test_the_loss_is_a_likelihood_of_labels_drawn_by_the_teacher():
    s, t = random_pair(24, 6, 8)
    log_p = similarities(s, tau=0.1).log_softmax(1)
    drawn = torch.multinomial(similarities(t, tau=0.1).softmax(1), 20_000, replacement=True)
    sampled = -log_p.gather(1, drawn).mean().item()
    assert sampled == pytest.approx(similarity_distillation(s, t).item(), rel=5e-3)


def test_pinsker_and_bretagnolle_huber_hold_row_by_row():
    for seed in range(20):
        torch.manual_seed(seed)
        s, t = random_pair(8, 3, 3)
        log_s, log_t = (similarities(x, tau=0.1).log_softmax(1) for x in (s, t))
        kl = (log_t.exp() * (log_t - log_s)).sum(1)
        tv = (log_t.exp() - log_s.exp()).abs().sum(1) / 2
        assert bool((tv <= (kl / 2).sqrt() + 1e-12).all())
        assert bool((tv <= (1 - (-kl).exp()).clamp(min=0).sqrt() + 1e-12).all())
        measured = kernel_distances(s, t)
        assert measured["kl"].item() == pytest.approx(kl.mean().item(), abs=1e-12)
        assert measured["tv"].item() == pytest.approx(tv.mean().item(), abs=1e-12)
        assert 0 <= measured["tv"] <= 1
    assert kernel_distances(t, t)["tv"] == 0


def test_vote_errors_differ_by_at_most_the_total_variation():
    for seed in range(50):
        torch.manual_seed(seed)
        s, t = random_pair(10, 3, 3)
        label = torch.randint(0, 3, (10,))
        wrong = (label[:, None] != label[None, :]).double()
        error_s, error_t = ((similarities(x, tau=0.1).softmax(1) * wrong).sum(1).mean().item() for x in (s, t))
        assert abs(error_s - error_t) <= kernel_distances(s, t)["tv"].item()


def test_anchor_with_an_equal_student_is_the_teachers_entropy_with_itself_inside():
    t = torch.randn(9, 5, dtype=DOUBLE)
    log_p = similarities(t, tau=0.1, exclude_self=False).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1).mean().item()
    assert SimilarityDistillation(0.1, target="anchor")(t, t).item() == pytest.approx(entropy, abs=1e-12)


def test_excluding_self_keeps_the_gradient_alive_at_small_temperature():
    norms = {}
    for exclude_self in (True, False):
        torch.manual_seed(3)
        centres = torch.randn(8, 64, dtype=DOUBLE)
        t = centres.repeat(16, 1) + torch.randn(128, 64, dtype=DOUBLE)
        s = torch.randn(128, 64, dtype=DOUBLE, requires_grad=True)
        similarity_distillation(s, t, tau_student=0.02, tau_teacher=0.02, exclude_self=exclude_self).backward()
        norms[exclude_self] = s.grad.norm().item()
    assert norms[True] > 20 * norms[False]


@pytest.mark.parametrize(
    "loss",
    [
        similarity_distillation,
        lambda s, t: similarity_distillation(s, t, exclude_self=False),
        lambda s, t: anchored_distillation(s, t, bank=torch.ones(3, 4, dtype=DOUBLE).tril()),
        cross_modal_contrastive,
        lambda s, t: cross_modal_contrastive(s, t, symmetric=False),
        lambda s, t: nt_xent(s, t),
    ],
)
def test_gradients_equal_finite_differences_and_never_reach_the_teacher(loss):
    s, t = torch.randn(6, 4, dtype=DOUBLE, requires_grad=True), torch.randn(6, 4, dtype=DOUBLE)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s,))
    teacher = t.clone().requires_grad_()
    value = loss(s, teacher)
    value.backward()
    if "nt_xent" not in loss.__code__.co_names:
        assert teacher.grad is None


def test_groups_are_no_negatives_of_each_other():
    s, t = random_pair(8, 4, 4)
    group = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4])
    loss = cross_modal_contrastive(s, t, tau=0.3, group=group).item()
    assert loss == pytest.approx(slow_contrastive(s, t, 0.3, group.tolist()), rel=1e-12)
    assert CrossModalContrastive(0.3, mask_groups=True)(s, t, group=group).item() == pytest.approx(loss, rel=1e-6)
    with pytest.raises(ObjectiveError, match="mask_groups needs a group"):
        CrossModalContrastive(mask_groups=True)(s, t)


def test_a_learned_temperature_gets_a_gradient_and_is_clamped():
    s, t = random_pair(8, 4, 4)
    objective = CrossModalContrastive(0.2, learnable_tau=True)
    objective(s, t).backward()
    assert objective.log_scale.grad.abs() > 0
    assert objective(s, t).item() == pytest.approx(cross_modal_contrastive(s, t, tau=0.2).item(), rel=1e-5)
    with torch.no_grad():
        objective.log_scale.fill_(50.0)
    assert objective(s, t).item() == pytest.approx(cross_modal_contrastive(s, t, tau=0.01).item(), rel=1e-5)
    assert [name for name, _ in CrossModalContrastive().named_parameters()] == []


def test_the_queue_wraps_around_and_holds_the_latest_teachers():
    objective = SimilarityDistillation(0.1, target="anchor", queue_size=5)
    objective.prepare(student_width=3, teacher_width=3, pairs=100)
    seen = []
    for _ in range(4):
        s, t = torch.randn(2, 3), torch.randn(2, 3)
        held = torch.cat(seen)[-5:] if seen else None
        expected = anchored_distillation(s, t, bank=held)
        assert objective(s, t).item() == pytest.approx(expected.item(), rel=1e-5)
        seen.append(unit(t))
    stored = {tuple(row) for row in objective.queue.tolist()}
    assert stored == {tuple(row) for row in torch.cat(seen)[-5:].tolist()}
    objective.eval()
    before = objective.queue.clone()
    objective(s, t)
    assert torch.equal(before, objective.queue)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.sampled_from([0.0, 1e-38, 1e-30, 1.0, 1e20, 3e38]),
    kind=st.sampled_from(["random", "constant", "one zero row"]),
    n=st.sampled_from([1, 2, 5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, DOUBLE]),
    tau=st.sampled_from([0.01, 0.07, 1.0, 20.0]),
)
def test_everything_is_finite_for_any_finite_input(scale, kind, n, dtype, tau):
    values = torch.ones(n, 6) if kind == "constant" else torch.rand(n, 6) * 2 - 1
    if kind == "one zero row":
        values[0] = 0
    s = (values * scale).to(dtype).requires_grad_()
    t = torch.rand(n, 6).to(dtype)
    for loss in (
        lambda: similarity_distillation(s, t, tau_student=tau, tau_teacher=tau),
        lambda: anchored_distillation(s, t, tau_student=tau, tau_teacher=tau),
        lambda: cross_modal_contrastive(s, t, tau=tau),
        lambda: nt_xent(s, t, tau=tau),
    ):
        s.grad = None
        try:
            value = loss()
        except ObjectiveError as error:
            assert n == 1, error
            continue
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(s.grad).all()


def test_widths_may_differ_within_but_not_across():
    s, t = random_pair(6, 32, 64)
    assert torch.isfinite(SimilarityDistillation()(s, t))
    with pytest.raises(ObjectiveError, match="widths must be equal; received 32 and 64"):
        CrossModalContrastive()(s, t)
    with pytest.raises(ObjectiveError, match="rows must be pairs; received 6 student, 5 teacher"):
        SimilarityDistillation()(s, t[:5])
    with pytest.raises(ObjectiveError, match="at least 2 pairs"):
        SimilarityDistillation()(s[:1], t[:1])
    with pytest.raises(ObjectiveError, match=r"\(b, d\) floating point; received \(2, 3, 4\)"):
        SimilarityDistillation()(torch.randn(2, 3, 4), t)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimilarityDistillation(0.0), "tau_teacher must be a positive"),
        (lambda: SimilarityDistillation(tau_student=float("nan")), "tau_student must be a positive"),
        (lambda: SimilarityDistillation(target="near"), "'within' or 'anchor'"),
        (lambda: SimilarityDistillation(queue_size=4), "queue_size must be 0"),
        (lambda: CrossModalContrastive(-1.0), "tau must be a positive"),
    ],
)
def test_wrong_parameters_are_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
