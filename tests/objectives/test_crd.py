"""CRD against loops written from its equations: memories, what is drawn from them, queues, and who learns from whom."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import Context, cross_modal_contrastive
from crossdistill.objectives.crd import ContrastiveRepresentation, noise_contrast, symmetric_info_nce

DOUBLE = torch.float64


def pair(b=6, d_s=4, d_t=5, dtype=DOUBLE):
    return torch.randn(b, d_s, dtype=dtype), torch.randn(b, d_t, dtype=dtype)


def prepared(negatives="memory", *, pairs=20, dtype=DOUBLE, **how):
    torch.manual_seed(2)
    objective = ContrastiveRepresentation(negatives, **{"dim": 3, "tau": 0.3, "count": 7, **how})
    objective.prepare(torch.zeros(2, 4, dtype=dtype), torch.zeros(2, 5, dtype=dtype), pairs=pairs)
    return objective


def projected(objective, s, t):
    with torch.no_grad():
        return F.normalize(objective.project_s(s), dim=1), F.normalize(objective.project_t(t), dim=1)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def slow_noise(p, n, eps):
    """One side of CRD from P (rows of the partner's and k others'), as the equation stands."""
    k = len(p[0]) - 1
    total = 0.0
    for row in p:
        total += math.log(row[0] / (row[0] + k / n + eps))
        total += sum(math.log(k / n / (x + k / n + eps)) for x in row[1:])
    return -total / len(p)


def slow_info(u, w, tau, more_u=(), more_w=(), skip=()):
    """Symmetric InfoNCE; further negatives, without the pairs (row, entry) in `skip`."""
    total, b = 0.0, len(u)
    for a, c, more in ((u, w, more_w), (w, u, more_u)):
        for i in range(b):
            own = [more[j] for j in range(len(more)) if (i, j) not in skip]
            others = [math.exp(float(a[i] @ x) / tau) for x in (*c, *own)]
            total -= float(a[i] @ c[i]) / tau - math.log(sum(others))
    return total / (2 * b)


# The memory -----------------------------------------------------------------------------------------------------------


def test_equal_probabilities_give_the_known_value():
    logits = torch.full((4, 11), math.log(0.3), dtype=DOUBLE)
    value = noise_contrast(logits, torch.zeros((), dtype=DOUBLE), samples=50, eps=0.0).item()
    assert value == pytest.approx(9.673733, abs=5e-7)
    m = 10 / 50
    assert value == pytest.approx(-(math.log(0.3 / (0.3 + m)) + 10 * math.log(m / (0.3 + m))), rel=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-7, 1e-2])
@pytest.mark.parametrize(("b", "k", "n"), [(1, 1, 2), (5, 8, 30), (3, 40, 6)])
def test_noise_contrast_equals_a_loop(b, k, n, eps):
    logits, log_z = torch.randn(b, 1 + k, dtype=DOUBLE), torch.tensor(1.3, dtype=DOUBLE)
    expected = slow_noise((logits - log_z).exp().tolist(), n, eps)
    assert noise_contrast(logits, log_z, samples=n, eps=eps).item() == pytest.approx(expected, rel=1e-11)


def test_many_unlikely_negatives_are_counted_in_single_precision():
    logits = torch.randn(2, 16_385, dtype=DOUBLE)
    log_z = torch.tensor(math.log(50_000.0), dtype=DOUBLE)
    expected = noise_contrast(logits, log_z, samples=50_000).item()
    assert noise_contrast(logits.float(), log_z.float(), samples=50_000).item() == pytest.approx(expected, rel=1e-5)


def test_two_steps_with_a_memory_are_the_equations_done_by_hand():
    objective = prepared()
    n, k, tau, log_z = 20, 7, 0.3, None
    memory = objective.memory
    for step, index in enumerate((torch.tensor([3, 0, 19, 7, 8, 2]), torch.tensor([1, 19, 5, 0, 6, 4]))):
        s, t = pair()
        drawn = memory._draw(6, index)
        before = memory.student.clone(), memory.teacher.clone()
        u, w = projected(objective, s, t)
        sides = []
        for one, rows in ((u, before[1]), (w, before[0])):
            sides.append([[float(one[i] @ rows[c]) / tau for c in (index[i], *drawn[i])] for i in range(6)])
        if log_z is None:
            log_z = [math.log(sum(math.exp(x) for r in side for x in r) / (6 * (k + 1)) * n) for side in sides]
        expected = sum(
            slow_noise([[math.exp(x - z) for x in row] for row in side], n, 1e-7)
            for side, z in zip(sides, log_z, strict=True)
        )
        assert objective(s, t, index=index).item() == pytest.approx(expected, rel=1e-11), step
        assert memory.log_z.tolist() == pytest.approx(log_z, rel=1e-12)
        for rows, old, new in ((memory.student, before[0], u), (memory.teacher, before[1], w)):
            others = [i for i in range(n) if i not in index.tolist()]
            assert torch.equal(rows[others], old[others])
            torch.testing.assert_close(rows[index], F.normalize(0.5 * old[index] + 0.5 * new, dim=1))
    assert memory.steps == 2


def test_each_projection_learns_through_its_own_side_alone():
    objective = prepared()
    s, t = pair()
    index = torch.arange(6)
    drawn, rows = objective.memory._draw(6, index), torch.cat([index[:, None], objective.memory._draw(6, index)], dim=1)
    assert torch.equal(rows[:, 1:], drawn)
    students, teachers = objective.memory.student.clone(), objective.memory.teacher.clone()
    s.requires_grad_()
    objective(s, t, index=index).backward()
    for projection, one, bank, ours in (
        (objective.project_s, s.detach(), teachers, 0),
        (objective.project_t, t, students, 1),
    ):
        weight = projection.weight.detach().clone().requires_grad_()
        z = F.normalize(one @ weight.T + projection.bias.detach(), dim=1)
        logits = torch.einsum("bd,bkd->bk", z, bank[rows]) / 0.3
        noise_contrast(logits, objective.memory.log_z[ours], samples=20).backward()
        torch.testing.assert_close(projection.weight.grad, weight.grad)
    assert s.grad.any()


def test_negatives_are_drawn_evenly_from_all_but_the_own_one_and_anew_each_step():
    objective = prepared(pairs=5, count=4000)
    memory, index = objective.memory, torch.arange(5)
    drawn = memory._draw(5, index)
    for i in range(5):
        share = torch.bincount(drawn[i], minlength=5) / 4000
        assert share[i] == 0
        assert (share[index != i] - 0.25).abs().max() < 0.05
    assert torch.equal(memory._draw(5, index), drawn)
    objective(*pair(5), index=index)
    assert not torch.equal(memory._draw(5, index), drawn)
    everyone = torch.bincount(memory._draw(1, None)[0], minlength=5) / 4000
    assert (everyone - 0.2).abs().max() < 0.05


def test_draws_that_are_counted_give_what_looking_at_each_gives():
    one, other = (prepared(pairs=9, count=500) for _ in range(2))
    other.load_state_dict(one.state_dict())
    memory = other.memory
    memory._times = lambda rows, own: None  # each draw is looked at
    for step in range(3):
        s, t = (x.requires_grad_() for x in pair(4))
        index = torch.tensor([8, 0, 3, 5]) - step % 2
        losses = [objective(s, t, index=index.clamp(min=0)) for objective in (one, other)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in losses))
    torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_the_memory_starts_uniform_from_the_seed_and_is_kept_by_prepare():
    one, other = prepared(pairs=500, dim=8), prepared(pairs=500, dim=8)
    assert torch.equal(one.memory.student, other.memory.student)
    assert one.memory.seed == other.memory.seed
    bound = (3 / 8) ** 0.5
    for rows in (one.memory.student, one.memory.teacher):
        assert rows.shape == (500, 8)
        assert 0.98 * bound < rows.abs().max() <= bound
        assert abs(rows.mean().item()) < 0.02
    assert not torch.equal(one.memory.student, one.memory.teacher)
    one(*pair(), index=torch.arange(6))
    before = state(one)
    one.prepare(*pair(), pairs=500)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    one.prepare(*pair(), pairs=30)
    assert one.memory.student.shape == (30, 8)
    assert one.memory.steps == 0


def test_held_out_rows_change_nothing_and_are_compared_with_their_own_partners():
    objective = prepared()
    objective(*pair(), index=torch.arange(6))
    objective.eval()
    s, t = pair(3)
    before, random = state(objective), torch.get_rng_state()
    u, w = projected(objective, s, t)
    drawn, memory = objective.memory._draw(3, None), objective.memory
    expected = 0.0
    for one, own, rows, z in ((u, w, memory.teacher, memory.log_z[0]), (w, u, memory.student, memory.log_z[1])):
        p = [[math.exp(float(one[i] @ x) / 0.3 - z) for x in (own[i], *rows[drawn[i]])] for i in range(3)]
        expected += slow_noise(p, 20, 1e-7)
    for index in (None, torch.tensor([900, 901, 902])):  # of other data: not looked at
        assert objective(s, t, index=index).item() == pytest.approx(expected, rel=1e-11)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    fresh = prepared().eval()
    assert fresh(s, t).isfinite()  # before any step there is no Z yet
    assert not fresh.memory.log_z.any()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, r"needs the positions of the samples \(index\), and the batch has none; use negatives='batch' or"),
        (torch.arange(15, 21), r"positions \(index\) must be those of the 20 pairs .* received 15 to 20"),
        (torch.arange(-1, 5), "received -1 to 4"),
        (torch.arange(5), "6 pairs need as many positions"),
    ],
)
def test_positions_that_cannot_be_are_refused(index, message):
    with pytest.raises(ObjectiveError, match=message):
        prepared()(*pair(), index=index)


# In batch, and with a queue -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize("b", [1, 2, 7])
def test_in_batch_it_equals_a_loop_and_both_sides_learn(b, tau):
    objective = prepared("batch", tau=tau)
    s, t = pair(b)
    u, w = projected(objective, s, t)
    expected = slow_info(u, w, tau)
    assert objective(s, t).item() == pytest.approx(expected, rel=1e-11, abs=1e-14)
    assert symmetric_info_nce(2 * u, 3 * w, tau=tau).item() == pytest.approx(expected, rel=1e-11, abs=1e-14)
    assert cross_modal_contrastive(u, w, tau=tau).item() == pytest.approx(expected, rel=1e-11, abs=1e-14)
    objective(s, t).backward()
    if b > 1:
        assert objective.project_s.weight.grad.any()
        assert objective.project_t.weight.grad.any()
    assert objective.memory is objective.queue is None


def test_both_sides_of_the_function_get_their_gradients():
    u, w = (torch.randn(5, 3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda u, w: symmetric_info_nce(u, w, tau=0.3), (u, w))
    constant = torch.ones(5, 3, dtype=DOUBLE)
    assert symmetric_info_nce(constant, constant).item() == pytest.approx(math.log(5), rel=1e-12)


def test_a_queue_adds_the_last_embeddings_but_those_of_the_own_sample():
    objective = prepared("queue", count=8)
    seen = []
    for k, index in enumerate((torch.arange(5), torch.arange(3, 8), torch.tensor([8, 0, 9, 1, 4]))):
        s, t = pair(5)
        u, w = projected(objective, s, t)
        held = seen[-8:]
        skip = {(i, j) for i in range(5) for j, (_, _, owner) in enumerate(held) if owner == int(index[i])}
        assert bool(skip) == (k > 0)
        more_u, more_w = [a for a, _, _ in held], [c for _, c, _ in held]
        expected = slow_info(u, w, 0.3, more_u, more_w, skip)
        assert objective(s, t, index=index).item() == pytest.approx(expected, rel=1e-11), k
        seen += [(u[i], w[i], int(index[i])) for i in range(5)]
    assert sorted(objective.queue.owner.tolist()) == sorted(owner for _, _, owner in seen[-8:])
    before = state(objective)
    objective.prepare(*pair(), pairs=20)
    s, t = pair(2)
    u, w = projected(objective, s, t)
    held = seen[-8:]
    expected = slow_info(u, w, 0.3, [a for a, _, _ in held], [c for _, c, _ in held])
    held_out = objective.eval()(s, t, index=torch.tensor([8, 9]))  # of other data: nothing is its own
    assert held_out.item() == pytest.approx(expected, rel=1e-11)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_without_positions_a_queue_takes_all_for_others():
    objective = prepared("queue", count=8)
    s, t = pair()
    u, w = projected(objective, s, t)
    assert objective(s, t).item() == pytest.approx(slow_info(u, w, 0.3), rel=1e-11)
    assert objective(s, t, index=torch.arange(6)).item() == pytest.approx(slow_info(u, w, 0.3, u, w), rel=1e-11)
    assert (objective.queue.owner == -1).sum() == 2
    large = prepared("queue", count=4)
    large(s, t)
    torch.testing.assert_close(large.queue.student, u[-4:])  # a batch larger than the queue leaves its last rows


# What is refused ------------------------------------------------------------------------------------------------------


def test_needs_follow_the_negatives():
    assert ContrastiveRepresentation().needs == {"pairs", "index"}
    assert ContrastiveRepresentation("batch").needs == ContrastiveRepresentation("queue").needs == {"pairs"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"negatives": "labels"}, "negatives must be 'memory', 'batch' or 'queue'; received 'labels'"),
        ({"tau": 0.0}, "tau must be a temperature"),
        ({"dim": 0}, "dim and count must be at least 1; received 0 and 16384"),
        ({"count": 0}, "dim and count must be at least 1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\); received 1.0"),
        ({"momentum": float("nan")}, "momentum must be"),
        ({"eps": -1e-9}, "eps must be finite and at least 0"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        ContrastiveRepresentation(**how)


def test_what_cannot_be_computed_is_refused():
    s, t = pair(dtype=torch.float32)
    with pytest.raises(ObjectiveError, match="crd: its projections are not made yet"):
        ContrastiveRepresentation("batch")(s, t)
    with pytest.raises(ObjectiveError, match="a memory needs at least 2 pairs to draw negatives from; received 1"):
        prepared(pairs=1)
    objective = prepared("batch", dtype=torch.float32)
    torch.nn.init.ones_(objective.project_s.weight)
    with pytest.raises(ObjectiveError, match=r"crd: the loss overflows torch.float32.* 3e\+38 of the student"):
        objective(torch.full((6, 4), 3e38), t)
    with pytest.raises(ObjectiveError, match="crd: rows must be pairs"):
        objective(s, t[:3])


def test_the_class_says_what_it_gives():
    objective = prepared("batch")
    s, t = pair()
    assert set(objective.terms(s, t, Context())) == {"crd"}
    assert ContrastiveRepresentation().dim == 128
