"""CMCD's losses against loops written from their equations, and every identity that must hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import (
    Context,
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


def slow_contrastive(s, t, tau, group=None, symmetric=True):
    s, t = F.normalize(s.double(), dim=1), F.normalize(t.double(), dim=1)
    directions = ((s, t), (t, s)) if symmetric else ((s, t),)
    total = 0.0
    for a, b in directions:
        for i in range(len(s)):
            others = [j for j in range(len(s)) if j == i or group is None or group[i] != group[j]]
            total -= float(a[i] @ b[i]) / tau - math.log(sum(math.exp(float(a[i] @ b[j]) / tau) for j in others))
    return total / (len(directions) * len(s))


def slow_anchor(s, t, tau_s, tau_t, bank=None):
    s, t = F.normalize(s.double(), dim=1), F.normalize(t.double(), dim=1)
    bank = None if bank is None else F.normalize(bank.double(), dim=1)
    total = 0.0
    for i in range(len(s)):
        candidates = t.unbind() if bank is None else [t[i], *bank.unbind()]
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
    taus = {"tau_student": tau, "tau_teacher": 0.2}
    bank = torch.randn(6, 5, dtype=dtype)
    group = torch.arange(n) // 2
    for value, expected in (
        (similarity_distillation(s, t, **taus), slow_similarity(s, t, tau, 0.2)),
        (similarity_distillation(s, t, exclude_self=False, **taus), slow_similarity(s, t, tau, 0.2, False)),
        (anchored_distillation(s, t, **taus), slow_anchor(s, t, tau, 0.2)),
        (anchored_distillation(s, t, bank=bank, **taus), slow_anchor(s, t, tau, 0.2, bank)),
        (cross_modal_contrastive(s, t, tau=tau), slow_contrastive(s, t, tau)),
        (cross_modal_contrastive(s, t, tau=tau, symmetric=False), slow_contrastive(s, t, tau, symmetric=False)),
        (cross_modal_contrastive(s, t, tau=tau, group=group), slow_contrastive(s, t, tau, group.tolist())),
        (
            cross_modal_contrastive(s, t, tau=tau, group=group, symmetric=False),
            slow_contrastive(s, t, tau, group.tolist(), symmetric=False),
        ),
    ):
        assert value.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_one_direction_is_from_the_student_to_the_teacher():
    s = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
    t = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=DOUBLE)
    # Both students look like teacher 0: the second finds the wrong one, while each teacher is torn between equals.
    found, missed = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    one_way = cross_modal_contrastive(s, t, tau=1.0, symmetric=False).item()
    assert one_way == pytest.approx((found + missed) / 2, rel=1e-12)
    assert cross_modal_contrastive(t, s, tau=1.0, symmetric=False).item() == pytest.approx(math.log(2), rel=1e-12)
    assert cross_modal_contrastive(s, t, tau=1.0).item() == pytest.approx((one_way + math.log(2)) / 2, rel=1e-12)


def test_defaults_are_the_documented_ones():
    s, t = random_pair(9, 5, 5)
    assert similarity_distillation(s, t) == similarity_distillation(s, t, tau_student=0.1, tau_teacher=0.1)
    assert anchored_distillation(s, t) == anchored_distillation(s, t, tau_student=0.1, tau_teacher=0.1)
    assert cross_modal_contrastive(s, t) == cross_modal_contrastive(s, t, tau=0.2, symmetric=True)
    assert kernel_distances(s, t) == kernel_distances(s, t, tau=0.1)


GROUP = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5])
SAME = {
    "within": (SimilarityDistillation(), similarity_distillation),
    "within, taus": (
        SimilarityDistillation(0.3, tau_student=0.07),
        lambda s, t: similarity_distillation(s, t, tau_student=0.07, tau_teacher=0.3),
    ),
    "within, self": (
        SimilarityDistillation(0.3, exclude_self=False),
        lambda s, t: similarity_distillation(s, t, tau_teacher=0.3, exclude_self=False),
    ),
    "anchor": (SimilarityDistillation(target="anchor"), anchored_distillation),
    "anchor, taus": (
        SimilarityDistillation(0.3, tau_student=0.07, target="anchor"),
        lambda s, t: anchored_distillation(s, t, tau_student=0.07, tau_teacher=0.3),
    ),
    "contrastive": (CrossModalContrastive(), cross_modal_contrastive),
    "contrastive, tau": (CrossModalContrastive(0.07), lambda s, t: cross_modal_contrastive(s, t, tau=0.07)),
    "contrastive, one way": (
        CrossModalContrastive(0.3, symmetric=False),
        lambda s, t: cross_modal_contrastive(s, t, tau=0.3, symmetric=False),
    ),
    "contrastive, groups": (
        CrossModalContrastive(0.3, mask_groups=True),
        lambda s, t: cross_modal_contrastive(s, t, tau=0.3, group=GROUP),
    ),
    "contrastive, groups one way": (
        CrossModalContrastive(0.3, mask_groups=True, symmetric=False),
        lambda s, t: cross_modal_contrastive(s, t, tau=0.3, group=GROUP, symmetric=False),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_class_is_its_function(name):
    objective, function = SAME[name]
    s, t = random_pair(9, 5, 5)
    assert torch.equal(objective(s, t, group=GROUP), function(s, t))
    (value,) = objective.terms(s, t, Context(group=GROUP)).values()
    assert torch.equal(value, function(s, t))


@pytest.mark.parametrize("tau_student", [0.1, 0.07])
@pytest.mark.parametrize("tau_teacher", [0.1, 0.3])
def test_a_class_with_a_queue_is_its_function_with_a_bank(tau_teacher, tau_student):
    objective = SimilarityDistillation(tau_teacher, tau_student=tau_student, target="anchor", queue_size=20)
    taus = {"tau_student": tau_student, "tau_teacher": tau_teacher}
    (s, t), (s_next, t_next) = random_pair(9, 5, 5), random_pair(9, 5, 5)
    assert torch.equal(objective(s, t), anchored_distillation(s, t, **taus))
    assert torch.equal(objective(s_next, t_next), anchored_distillation(s_next, t_next, bank=unit(t), **taus))


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


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_a_likelihood_of_labels_drawn_by_the_teacher(seed):
    torch.manual_seed(seed)
    t = torch.randn(128, 64, dtype=DOUBLE)
    s = t @ rotation(64) + 0.5 * torch.randn(128, 64, dtype=DOUBLE)
    log_p = similarities(s, tau=0.3).log_softmax(1)
    drawn = torch.multinomial(similarities(t, tau=0.1).softmax(1), 20_000, replacement=True)
    sampled = -log_p.gather(1, drawn).mean().item()  # its standard error is 2e-4
    assert sampled == pytest.approx(similarity_distillation(s, t, tau_student=0.3).item(), abs=1e-3)


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
    assert kernel_distances(t, t) == {"kl": 0, "tv": 0}


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.7])
def test_kernel_distances_equal_loops_and_are_zero_between_equals(tau):
    s, t = random_pair(7, 4, 5)
    kl = slow_similarity(s, t, tau, tau) - slow_similarity(t, t, tau, tau)  # cross-entropy less entropy
    kernels = []
    for x in (F.normalize(s, dim=1), F.normalize(t, dim=1)):
        weights = [[math.exp(float(x[i] @ x[j]) / tau) * (i != j) for j in range(7)] for i in range(7)]
        kernels.append([[w / sum(row) for w in row] for row in weights])
    tv = sum(abs(kernels[0][i][j] - kernels[1][i][j]) for i in range(7) for j in range(7)) / 14
    measured = kernel_distances(s, t, tau=tau)
    assert measured["kl"].item() == pytest.approx(kl, rel=1e-10)
    assert measured["tv"].item() == pytest.approx(tv, rel=1e-12)
    for equal in (t, 3 * t @ rotation(5)):
        measured = kernel_distances(equal, t, tau=tau)
        assert measured["kl"].item() == pytest.approx(0, abs=1e-12)
        assert measured["tv"].item() == pytest.approx(0, abs=1e-12)


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


@pytest.mark.parametrize(("tau_s", "tau_t"), [(0.5, 2.0), (2.0, 0.5)])
def test_anchor_of_a_student_that_takes_the_next_row_for_its_own(tau_s, tau_t):
    t = torch.eye(6, dtype=DOUBLE)
    s = t.roll(1, dims=0)
    on_next = 1 / (math.exp(1 / tau_t) + 5)  # what the teacher gives to the row where the student's logit is 1 / tau_s
    expected = math.log(math.exp(1 / tau_s) + 5) - on_next / tau_s
    value = anchored_distillation(s, t, tau_student=tau_s, tau_teacher=tau_t).item()
    assert value == pytest.approx(expected, rel=1e-12)
    # Similarities within the student are the teacher's: only the teacher's own rows as candidates tell them apart.
    within = similarity_distillation(s, t, tau_student=tau_s, tau_teacher=tau_t, exclude_self=False).item()
    assert within < value - 0.01


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
        lambda s, t: similarity_distillation(s, t, tau_student=0.3, exclude_self=False),
        lambda s, t: anchored_distillation(s, t, tau_student=0.3),
        lambda s, t: anchored_distillation(s, t, bank=torch.ones(3, 4, dtype=DOUBLE).tril()),
        cross_modal_contrastive,
        lambda s, t: cross_modal_contrastive(s, t, symmetric=False),
        lambda s, t: cross_modal_contrastive(s, t, group=torch.tensor([0, 0, 1, 2, 2, 2])),
    ],
)
def test_gradients_equal_finite_differences_and_never_reach_the_teacher(loss):
    s, t = torch.randn(6, 4, dtype=DOUBLE, requires_grad=True), torch.randn(6, 4, dtype=DOUBLE)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s,))
    teacher = t.clone().requires_grad_()
    loss(s, teacher).backward()
    assert teacher.grad is None


def test_soft_cross_entropy_teaches_the_student_alone():
    student, teacher = (torch.randn(4, 3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    soft_cross_entropy(student, teacher).backward()
    expected = (student.softmax(1) - teacher.softmax(1)).detach() / 4
    torch.testing.assert_close(student.grad, expected, rtol=1e-12, atol=1e-14)
    assert teacher.grad is None


def test_a_temperatures_gradient_equals_finite_differences():
    s, t = random_pair(6, 4, 4)
    tau = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tau: cross_modal_contrastive(s, t, tau=tau), (tau,))


def test_groups_are_no_negatives_of_each_other():
    s, t = random_pair(8, 4, 4)
    group = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4])
    loss = cross_modal_contrastive(s, t, tau=0.3, group=group).item()
    assert loss == pytest.approx(slow_contrastive(s, t, 0.3, group.tolist()), rel=1e-12)
    assert CrossModalContrastive(0.3)(s, t, group=group).item() == pytest.approx(slow_contrastive(s, t, 0.3), rel=1e-12)
    with pytest.raises(ObjectiveError, match="mask_groups needs a group"):
        CrossModalContrastive(mask_groups=True)(s, t)


def test_a_learned_temperature_gets_a_gradient_and_is_clamped():
    s, t = random_pair(8, 4, 4)
    objective = CrossModalContrastive(0.2, learnable_tau=True)
    objective(s, t).backward()
    tau = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)
    cross_modal_contrastive(s, t, tau=tau).backward()
    assert objective.log_scale.grad.item() == pytest.approx(-0.2 * tau.grad.item(), rel=1e-5)
    assert objective(s, t).item() == pytest.approx(cross_modal_contrastive(s, t, tau=0.2).item(), rel=1e-5)
    with torch.no_grad():
        objective.log_scale.fill_(50.0)
    assert objective(s, t).item() == pytest.approx(cross_modal_contrastive(s, t, tau=0.01).item(), rel=1e-5)
    assert CrossModalContrastive().state_dict() == {}


def test_a_learned_temperature_comes_back_from_the_clamp():
    s, t = random_pair(32, 4, 4)  # nothing to find: the warmer, the better
    objective = CrossModalContrastive(0.01, learnable_tau=True)
    at_the_clamp = torch.autograd.grad(objective(s, t), objective.log_scale)[0]
    with torch.no_grad():
        objective.log_scale.add_(0.5)
    beyond = torch.autograd.grad(objective(s, t), objective.log_scale)[0]
    assert beyond.item() == pytest.approx(at_the_clamp.item(), rel=1e-4)
    assert beyond > 0
    z = torch.eye(4)  # all is found: the colder, the better, but no further than it is
    assert torch.autograd.grad(objective(z, z), objective.log_scale)[0] == 0
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.02)
    for _ in range(100):
        optimiser.zero_grad()
        objective(s, t).backward()
        optimiser.step()
    assert math.exp(-objective.log_scale.item()) > 0.02


def test_needs_follow_the_parameters():
    assert SimilarityDistillation().needs == {"pairs"}
    assert SimilarityDistillation(target="anchor").needs == {"pairs", "equal_widths"}
    assert CrossModalContrastive().needs == {"pairs", "equal_widths"}
    assert CrossModalContrastive(mask_groups=True).needs == {"pairs", "equal_widths", "group"}


def test_the_queue_wraps_around_and_holds_the_latest_teachers():
    objective = SimilarityDistillation(0.1, target="anchor", queue_size=5)
    objective.prepare(torch.zeros(2, 3), torch.zeros(2, 3), pairs=100)
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


def test_a_batch_larger_than_the_queue_leaves_its_last_rows():
    objective = SimilarityDistillation(target="anchor", queue_size=4)
    s, t = random_pair(7, 3, 3)
    objective(s, t)
    assert torch.equal(objective.queue, unit(t)[-4:])


def test_a_queue_of_the_right_shape_is_kept_and_one_of_another_width_is_not():
    objective = SimilarityDistillation(target="anchor", queue_size=5)
    examples = torch.zeros(2, 3), torch.zeros(2, 3)
    objective.prepare(*examples, pairs=100)
    s, t = torch.randn(4, 3), torch.randn(4, 3)
    objective(s, t)
    objective.prepare(*examples, pairs=100)
    assert objective.filled == 4
    assert torch.equal(objective.queue[:4], unit(t))
    assert objective(s, t).item() == pytest.approx(anchored_distillation(s, t, bank=unit(t)).item(), rel=1e-6)
    saved = {name: value.clone() for name, value in objective.state_dict().items()}
    other = SimilarityDistillation(target="anchor", queue_size=5)
    other.prepare(*examples, pairs=100)
    other.load_state_dict(saved)
    assert torch.equal(other(t, s), objective(t, s))
    with pytest.raises(ObjectiveError, match="widths must be equal; received 3 and 4"):
        objective(s, torch.randn(4, 4))
    assert objective.queue.shape == (5, 3)
    objective.prepare(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.bfloat16), pairs=100)
    assert objective.queue.shape == (5, 4)
    assert objective.queue.dtype == torch.float32
    assert objective.filled == 0


def test_without_a_queue_nothing_is_prepared():
    for objective in (SimilarityDistillation(), SimilarityDistillation(target="anchor")):
        objective.prepare(torch.zeros(2, 3), torch.zeros(2, 3), pairs=100)
        objective(torch.randn(4, 3), torch.randn(4, 3))
        assert objective.queue.numel() == 0
        assert objective.filled == 0


def test_a_bank_of_another_width_is_refused():
    s, t = random_pair(4, 3, 3)
    with pytest.raises(
        ObjectiveError, match=r"the bank must be \(k, 3\), as wide as the teacher, floating point; received \(5, 2\)"
    ):
        anchored_distillation(s, t, bank=torch.zeros(5, 2))


@settings(max_examples=40, deadline=None)
@given(
    scale=st.sampled_from([0.0, 1e-38, 1e-30, 1.0, 1e20, 3e38]),
    kind=st.sampled_from(["random", "constant", "one zero row"]),
    n=st.sampled_from([1, 2, 5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, DOUBLE]),
    tau=st.sampled_from([1e-4, 0.01, 0.07, 1.0, 20.0]),
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
        lambda: anchored_distillation(s, t, tau_student=tau, tau_teacher=1e-4, bank=t.flip(1)),
        lambda: cross_modal_contrastive(s, t, tau=tau),
        lambda: nt_xent(s, t, tau=tau),
        lambda: kernel_distances(s, t, tau=tau)["kl"],
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
        (
            lambda: SimilarityDistillation(0.0),
            "tau_teacher must be a temperature such as 0.1, finite and at least 0.0001",
        ),
        (lambda: SimilarityDistillation(9e-5), "tau_teacher must be a temperature .* received 9e-05"),
        (lambda: SimilarityDistillation(tau_student=1e-40), "tau_student must be a temperature"),
        (lambda: SimilarityDistillation(tau_student=float("nan")), "tau_student must be a temperature"),
        (lambda: SimilarityDistillation(tau_student=float("inf")), "tau_student must be a temperature"),
        (lambda: SimilarityDistillation(target="near"), "'within' or 'anchor'"),
        (lambda: SimilarityDistillation(queue_size=4), "queue_size must be 0"),
        (lambda: SimilarityDistillation(target="anchor", queue_size=-1), "queue_size must be 0"),
        (
            lambda: SimilarityDistillation(target="anchor", exclude_self=False),
            "exclude_self=False belongs to .*'within'",
        ),
        (lambda: CrossModalContrastive(-1.0), "tau must be a temperature"),
        (lambda: CrossModalContrastive(0.005, learnable_tau=True), "at 0.01 or above, so tau must start there.* 0.005"),
        (lambda: similarities(torch.eye(3), tau=1e-40), "tau must be a temperature"),
        (lambda: similarity_distillation(torch.eye(3), torch.eye(3), tau_student=0.0), "tau_student must be"),
        (lambda: anchored_distillation(torch.eye(3), torch.eye(3), tau_teacher=1e-5), "tau_teacher must be"),
        (lambda: cross_modal_contrastive(torch.eye(3), torch.eye(3), tau=1e-5), "tau must be a temperature"),
        (lambda: kernel_distances(torch.eye(3), torch.eye(3), tau=-1.0), "tau must be a temperature"),
    ],
)
def test_wrong_parameters_are_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_least_temperatures_are_allowed():
    s, t = random_pair(6, 3, 3, torch.float32)
    assert SimilarityDistillation(1e-4, tau_student=0.2, target="anchor")(s, t).isfinite()  # SEED's released defaults
    assert CrossModalContrastive(0.01, learnable_tau=True)(s, t).isfinite()
