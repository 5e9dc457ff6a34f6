"""Neighbouring-similarity distillation against a loop written from its equation, its limits, and its queues."""

import math

import pytest
import torch
from torch.nn import functional as F
from two_processes import averaged, check_world_size

from crossdistill.errors import ConfigError, Interrupted, ObjectiveError
from crossdistill.methods import Distillation
from crossdistill.networks import MLP
from crossdistill.objectives import Context, unit
from crossdistill.objectives.neighbours import AlignedQueues, Neighbours, neighbour_kl, top_of
from crossdistill.training import Settings, fit

DOUBLE = torch.float64


def cosines(b, k, dtype=DOUBLE):
    return tuple((2 * torch.rand(b, k, dtype=DOUBLE) - 1).to(dtype) for _ in range(2))


def slow(s, t, tau_s, tau_t, top_k):
    s, t = s.double().tolist(), t.double().tolist()
    total = 0.0
    for row_s, row_t in zip(s, t, strict=True):
        chosen = sorted(range(len(row_t)), key=lambda j: -row_t[j])[:top_k]
        z_t = sum(math.exp(row_t[j] / tau_t) for j in chosen)
        z_s = sum(math.exp(row_s[j] / tau_s) for j in chosen)
        for j in chosen:
            p, r = math.exp(row_t[j] / tau_t) / z_t, math.exp(row_s[j] / tau_s) / z_s
            total += p * math.log(p / r)
    return total / len(s)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("top_k", [None, 1, 3, 99])
@pytest.mark.parametrize(("b", "k"), [(1, 4), (6, 9), (5, 1)])
def test_the_loss_equals_a_loop_written_from_the_equation(b, k, top_k, dtype, tolerance):
    s, t = cosines(b, k)
    order = torch.stack([torch.randperm(k) for _ in range(b)])
    t = torch.linspace(-0.9, 0.9, k, dtype=DOUBLE)[order].to(dtype)  # no two alike, whatever the precision
    s = s.to(dtype)
    for tau_s, tau_t in ((0.1, 0.05), (0.5, 1.0)):
        value = neighbour_kl(s, t, top_k=top_k, tau_student=tau_s, tau_teacher=tau_t).item()
        assert value == pytest.approx(slow(s, t, tau_s, tau_t, top_k or (k + 1) // 2), rel=tolerance, abs=tolerance)


def test_defaults_are_the_released_ones():
    s, t = cosines(4, 9)
    assert neighbour_kl(s, t) == neighbour_kl(s, t, top_k=5, tau_student=0.1, tau_teacher=0.05)  # half of the columns
    assert top_of(None, 16384) == 8192
    assert (top_of(None, 1), top_of(None, 7), top_of(3, 7)) == (1, 4, 3)


def test_equal_similarities_and_single_columns_cost_nothing():
    s, t = cosines(4, 9)
    assert neighbour_kl(t, t, tau_student=0.2, tau_teacher=0.2).item() == pytest.approx(0, abs=1e-14)
    assert neighbour_kl(s, t, top_k=1).item() == 0
    assert neighbour_kl(s, t).item() > 0.1


def test_a_cold_teacher_mines_its_nearest_neighbour():
    s, t = cosines(5, 8)
    mined = F.cross_entropy(s / 0.1, t.argmax(dim=1))
    assert neighbour_kl(s, t, top_k=8, tau_teacher=1e-4).item() == pytest.approx(mined.item(), rel=1e-6)


def test_kl_is_cross_entropy_less_entropy_and_its_gradient_the_difference_of_kernels():
    s, t = cosines(5, 8)
    s.requires_grad_()
    t.requires_grad_()
    loss = neighbour_kl(s, t, top_k=8)
    p, log_r = (t / 0.05).softmax(1), (s / 0.1).log_softmax(1)
    assert loss.item() == pytest.approx((-(p * log_r).sum(1) + (p * p.log()).sum(1)).mean().item(), rel=1e-12)
    loss.backward()
    assert t.grad is None
    torch.testing.assert_close(s.grad, ((log_r.exp() - p) / (0.1 * 5)).detach(), rtol=1e-10, atol=1e-12)


def test_columns_in_another_order_change_nothing_if_it_is_the_same_in_both():
    s, t = cosines(5, 8)
    order = torch.randperm(8)
    assert neighbour_kl(s[:, order], t[:, order], top_k=3).item() == pytest.approx(neighbour_kl(s, t, top_k=3).item())
    assert abs(neighbour_kl(s.roll(1, 1), t, top_k=3) - neighbour_kl(s, t, top_k=3)) > 1e-3


@pytest.mark.parametrize("top_k", [None, 3])
def test_gradients_are_those_of_finite_differences(top_k):
    s, t = cosines(3, 6)
    assert torch.autograd.gradcheck(lambda x: neighbour_kl(x, t, top_k=top_k, tau_student=0.5), s.requires_grad_())
    objective = Neighbours(8, top_k=top_k, tau_student=0.5)
    objective(torch.randn(6, 3, dtype=DOUBLE), torch.randn(6, 4, dtype=DOUBLE))
    objective.eval()
    t = torch.randn(4, 4, dtype=DOUBLE)
    x = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: objective(x, t), x)


# Queues --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[3, 3, 3], [2, 5, 1, 4], [8], [20, 3], [5, 5]])
def test_queues_wrap_around_together_and_hold_the_latest(counts):
    queues = AlignedQueues(("a.b", "image"), 7)
    queues.make({"a.b": 3, "image": 2}, torch.zeros(1))
    everything, given = 0, {"a.b": [], "image": []}
    for count in counts:
        keys = {"a.b": torch.randn(count, 3), "image": torch.randn(count, 2)}
        queues.enqueue(keys)
        everything += count
        for name in keys:
            given[name] += unit(keys[name]).tolist()
    assert (int(queues.filled), queues.held) == (everything, min(7, everything))
    for name, rows in given.items():
        slots = {n % 7: row for n, row in enumerate(rows)}  # the n-th that ever came stands at n mod size
        assert queues.rows(name)[: queues.held].tolist() == [slots[j] for j in range(queues.held)]


def test_similarities_are_cosines_with_what_is_held():
    queues = AlignedQueues(("a", "b"), 5)
    queues.make({"a": 3, "b": 3}, torch.zeros(1), random=True)
    rows = queues.rows("a").clone()
    assert torch.allclose(rows.norm(dim=1), torch.ones(5))
    z = torch.randn(4, 3)
    assert queues.similarities("a", z).shape == (4, 0)
    assert torch.allclose(queues.similarities("a", z, unfilled=True), F.normalize(z) @ rows.T)
    queues.enqueue({"a": 7 * z[:2], "b": z[:2]})
    found = queues.similarities("a", z)
    assert found.shape == (4, 2)
    assert torch.allclose(found, F.normalize(z) @ F.normalize(z[:2]).T, atol=1e-6)
    assert torch.equal(queues.rows("a")[2:], rows[2:])


def test_queues_keep_what_they_hold_unless_shapes_change():
    queues = AlignedQueues(("a",), 5)
    queues.make({"a": 3}, torch.zeros(1))
    queues.enqueue({"a": torch.randn(2, 3)})
    before = queues.rows("a").clone()
    queues.make({"a": 3}, torch.zeros(1))
    assert torch.equal(queues.rows("a"), before)
    queues.make({"a": 3}, torch.zeros(1), at_most=4)
    assert (queues.size, queues.held) == (4, 0)


def test_queues_refuse_rows_that_are_not_aligned():
    queues = AlignedQueues(("a", "b"), 5)
    queues.make({"a": 3, "b": 3}, torch.zeros(1))
    with pytest.raises(ObjectiveError, match=r"as many rows of each of a, b; got {'a': 2, 'b': 3}"):
        queues.enqueue({"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)})
    with pytest.raises(ObjectiveError, match=r"got {'a': 2}"):
        queues.enqueue({"a": torch.zeros(2, 3)})
    with pytest.raises(ConfigError, match="queue_size must be"):
        AlignedQueues(("a",), 0)


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"tau_teacher": 0.3, "tau_student": 0.7}])
def test_a_class_is_its_function_on_what_came_before(options):
    objective = Neighbours(10, **options)
    batches = [(torch.randn(4, 5, dtype=DOUBLE), torch.randn(4, 7, dtype=DOUBLE)) for _ in range(5)]
    for step, (s, t) in enumerate(batches):
        (value,) = objective.terms(s, t, Context()).values()
        if not step:
            near = [torch.stack([(F.normalize(x) @ F.normalize(x)[i])[torch.arange(4) != i] for i in range(4)])
                    for x in (s, t)]  # fmt: skip
            expected = neighbour_kl(*near, **{"top_k": 2, **options})
            assert value.item() == pytest.approx(expected.item(), rel=1e-12)
            continue
        old = [torch.cat([batch[side] for batch in batches[:step]])[-10:] for side in (0, 1)]
        near = [F.normalize(x) @ F.normalize(q).T for x, q in zip((s, t), old, strict=True)]
        expected = neighbour_kl(*near, **{"top_k": (len(old[0]) + 1) // 2, **options})
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_scaled_and_rotated_student_is_the_optimum_and_eval_mode_remembers_nothing():
    objective = Neighbours(20, tau_student=0.1, tau_teacher=0.1)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=DOUBLE)).Q
    t = torch.randn(6, 4, dtype=DOUBLE)
    objective(3 * t @ turn, t)
    objective.eval()
    other = torch.randn(6, 4, dtype=DOUBLE)
    assert objective(0.1 * other @ turn, other).item() == pytest.approx(0, abs=1e-12)
    assert objective(other.roll(1, 0), other).item() > 0.01
    assert int(objective.queues.filled) == 6


def test_a_first_row_alone_costs_nothing_and_keeps_the_graph():
    s = torch.randn(1, 4, requires_grad=True)
    loss = Neighbours()(s, torch.randn(1, 4))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(s.grad, torch.zeros(1, 4))


def test_a_first_batch_learns_with_its_own_rows_as_constants():
    x, t = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    s, fixed, objective = x.clone().requires_grad_(), F.normalize(x), Neighbours(tau_student=0.5)
    objective(s, t).backward()
    live = x.clone().requires_grad_()
    apart = [torch.arange(5) != i for i in range(5)]
    near = torch.stack([(fixed @ F.normalize(live, dim=1)[i])[apart[i]] for i in range(5)])
    taught = torch.stack([(F.normalize(t) @ F.normalize(t)[i])[apart[i]] for i in range(5)])
    neighbour_kl(near, taught, top_k=2, tau_student=0.5).backward()
    torch.testing.assert_close(s.grad, live.grad, rtol=1e-10, atol=1e-12)


def test_a_step_between_loss_and_backward_does_no_harm():
    objective, s = Neighbours(4), torch.randn(3, 4, requires_grad=True)
    objective(s, torch.randn(3, 4))
    loss = objective(s, torch.randn(3, 4))  # it has already put its own rows into the queues
    loss.backward()
    assert s.grad.norm() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tau", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize(
    "s", [torch.zeros(3, 4), torch.ones(3, 4), torch.randn(1, 4), 1e30 * torch.randn(3, 4), 1e-30 * torch.ones(3, 4)]
)
def test_value_and_gradient_are_finite(s, tau, dtype):
    objective = Neighbours(6, tau_student=tau, tau_teacher=tau)
    s = s.to(dtype).clone().detach().requires_grad_()
    for teacher in (torch.randn(len(s), 5), torch.zeros(len(s), 5), torch.full((len(s), 5), 1e30)):
        loss = objective(s, teacher.to(dtype))
        assert loss.dtype == torch.float32
        s.grad = None
        loss.backward()
        assert loss.isfinite()
        assert s.grad.isfinite().all()


def test_half_precision_is_converted():
    s, t = cosines(4, 6, torch.bfloat16)
    assert torch.equal(neighbour_kl(s, t), neighbour_kl(s.float(), t.float()))


def test_wrong_input_is_refused():
    s, t = cosines(4, 6)
    with pytest.raises(ObjectiveError, match="rows must be pairs"):
        neighbour_kl(s[:3], t)
    with pytest.raises(ObjectiveError, match="widths must be equal"):
        neighbour_kl(s[:, :3], t)
    with pytest.raises(ObjectiveError, match="no columns"):
        neighbour_kl(s[:, :0], t[:, :0])
    with pytest.raises(ObjectiveError, match=r"overflow at temperatures 0\.1 and 0\.05"):
        neighbour_kl(1e308 * s, t)
    with pytest.raises(ObjectiveError, match="must be"):
        Neighbours()(torch.zeros(2, 3, 4), torch.zeros(2, 3))
    for wrong, message in (({"top_k": 0}, "top_k must be"), ({"tau_teacher": 0.0}, "tau_teacher must be")):
        with pytest.raises(ConfigError, match=message):
            Neighbours(**wrong)
        with pytest.raises(ConfigError, match=message):
            neighbour_kl(s, t, **wrong)


def test_state_comes_back_into_a_fresh_objective():
    from crossdistill.methods.base import fit_buffers

    objective, fresh = Neighbours(5), Neighbours(5)
    objective(torch.randn(3, 4), torch.randn(3, 2))
    fit_buffers(fresh, objective.state_dict())
    fresh.load_state_dict(objective.state_dict())
    s, t = torch.randn(3, 4), torch.randn(3, 2)
    assert torch.equal(objective(s, t), fresh(s, t))


def distillation():
    torch.manual_seed(0)
    teacher, student = (MLP((width,), hidden=(10,), dim=dim) for width, dim in ((12, 6), (8, 5)))
    given = {"neighbours": Neighbours(50)}
    return Distillation(student, teacher=teacher, objectives=given, source="rich", target="poor")


def test_it_distils_and_resumes_with_the_same_bits_and_the_teacher_stays(toy, tmp_path):
    rows, settings = toy.split("train"), Settings(epochs=3, batch_size=32, lr=0.01)
    how = {"seed": 5, "held_out": toy.split("validation"), "accelerator": "cpu"}
    whole, calls = fit(distillation(), rows, settings, **how), []
    with pytest.raises(Interrupted):
        stop = {"stop": lambda: calls.append(1) or len(calls) == 7}
        fit(distillation(), rows, settings, folder=tmp_path, **stop, **how)
    resumed = fit(distillation(), rows, settings, folder=tmp_path, **how)
    state, other = whole.state_dict(), resumed.state_dict()
    assert int(state["objectives.neighbours.queues.filled"]) == 480
    for name, value in state.items():
        assert value == other[name] if isinstance(value, dict) else torch.equal(value, other[name]), name
    for name, value in distillation().teacher.state_dict().items():
        assert torch.equal(value, whole.teacher.state_dict()[name])
    assert whole.projector is None  # widths may differ


# Two processes -------------------------------------------------------------------------------------------------------


def two_steps(mine):
    generator = torch.Generator().manual_seed(5)
    x, t = (torch.randn(8, 6, generator=generator, dtype=DOUBLE) for _ in range(2))
    w = torch.randn(6, 6, generator=generator, dtype=DOUBLE).requires_grad_()
    objective = Neighbours(12)
    objective(x[mine] @ w.detach(), t.roll(1, 1)[mine])
    loss = objective(x[mine] @ w, t[mine])
    loss.backward()
    assert w.grad.any()
    return loss.detach(), averaged(w.grad), [objective.queues.rows(name) for name in ("student", "teacher")]


@pytest.mark.slow
def test_world_size_does_not_change_the_mathematics():
    check_world_size(two_steps)
