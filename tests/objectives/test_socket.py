"""SOCKET's terms against loops, the identities of the sheet, and two real processes."""

import math

import pytest
import torch
from torch import nn
from two_processes import averaged, check_world_size

from crossdistill.errors import ConfigError, Interrupted, ObjectiveError
from crossdistill.methods import Distillation
from crossdistill.networks import CNN, MLP
from crossdistill.objectives.socket import Socket, batch_norm_distance, diversity, paired_distance
from crossdistill.training import Settings, fit

DOUBLE = torch.float64


def slow_paired(s, t):
    return math.sqrt(
        sum((a - b) ** 2 for a, b in zip(s.double().flatten().tolist(), t.double().flatten().tolist(), strict=True))
    )


def slow_norms(inputs, means, variances, first):
    total = 0.0
    for level, (x, mean, variance) in enumerate(zip(inputs, means, variances, strict=True)):
        channels = [x[:, k].flatten().tolist() for k in range(x.shape[1])]
        centres = [sum(c) / len(c) for c in channels]
        spreads = [sum((v - m) ** 2 for v in c) / len(c) for c, m in zip(channels, centres, strict=True)]
        apart = math.dist(centres, mean.tolist()) + math.dist(spreads, variance.tolist())
        total += (first if level == 0 else 1) * apart
    return total


def slow_diversity(logits, epsilon):
    rows = []
    for row in logits.tolist():
        weights = [math.exp(v) for v in row]
        rows.append([w / sum(weights) for w in weights])

    def entropy(p):
        return -sum(v * math.log(v + epsilon) for v in p)

    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return sum(map(entropy, rows)) / len(rows) - entropy(mean)


# L_TI ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (9, 4)])
def test_the_paired_distance_equals_a_loop(shape, dtype, tolerance):
    s, t = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    value = paired_distance(s, t)
    assert value.item() == pytest.approx(slow_paired(s, t), rel=tolerance)
    assert torch.equal(paired_distance(s, t, scale="pair"), value / math.sqrt(len(s)))
    assert torch.equal(Socket()(s, t), value)
    assert torch.equal(Socket("pair")(s, t), paired_distance(s, t, scale="pair"))


def test_the_identities_of_the_sheet():
    s, t = torch.randn(6, 4, dtype=DOUBLE), torch.randn(6, 4, dtype=DOUBLE)
    value = paired_distance(s, t).item()
    assert paired_distance(t, t) == 0
    assert paired_distance(t + 2 * (s - t), t).item() == pytest.approx(2 * value, rel=1e-12)
    twice = (s.repeat(2, 1), t.repeat(2, 1))
    assert paired_distance(*twice).item() == pytest.approx(math.sqrt(2) * value, rel=1e-12)
    assert paired_distance(*twice, scale="pair").item() == pytest.approx(value / math.sqrt(6), rel=1e-12)


def test_gradients_have_length_one_are_those_of_finite_differences_and_vanish_at_the_goal():
    s, t = torch.randn(6, 4, dtype=DOUBLE, requires_grad=True), torch.randn(6, 4, dtype=DOUBLE)
    for scale in ("batch", "pair"):
        assert torch.autograd.gradcheck(lambda x, scale=scale: paired_distance(x, t, scale=scale), (s,))
    teacher = t.clone().requires_grad_()
    paired_distance(s, teacher).backward()
    assert teacher.grad is None
    assert s.grad.norm().item() == pytest.approx(1)
    for start in (t, torch.zeros_like(t)):
        near = start.clone().requires_grad_()
        paired_distance(near, start).backward()
        assert not near.grad.any()


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 1e18, 1e30])
def test_large_and_small_differences_are_measured(scale):
    s = (scale * torch.randn(5, 3).clamp(-1, 1)).requires_grad_()
    value = paired_distance(s, torch.zeros(5, 3))
    value.backward()
    assert value.item() == pytest.approx(slow_paired(s.detach(), torch.zeros(5, 3)), rel=1e-5)
    assert s.grad.norm().item() == pytest.approx(1, rel=1e-4)
    with pytest.raises(ObjectiveError, match=r"socket overflows torch.float32"):
        paired_distance(torch.full((2, 2), 3e38), torch.full((2, 2), -3e38))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ObjectiveError, match="socket: student and teacher widths must be equal; received 3 and 4"):
        paired_distance(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ObjectiveError, match="socket: the student's features must be"):
        paired_distance(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3))
    for build in (lambda: Socket("mean"), lambda: paired_distance(torch.zeros(2, 3), torch.zeros(2, 3), scale="mean")):
        with pytest.raises(ConfigError, match="socket: scale must be batch or pair; received 'mean'"):
            build()


# L_d -----------------------------------------------------------------------------------------------------------------


def layers(dtype=DOUBLE):
    shapes = [(4, 3, 5, 5), (4, 6, 2, 3), (4, 2, 1, 1)]
    inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]
    means = [torch.randn(shape[1], dtype=dtype) for shape in shapes]
    return inputs, means, [torch.rand(shape[1], dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("first", [10.0, 1.0, 0.0])
def test_the_batch_norm_distance_equals_a_loop(first, dtype, tolerance):
    given = layers(dtype)
    expected = slow_norms(*([x.double() for x in side] for side in given), first)
    assert batch_norm_distance(*given, first=first).item() == pytest.approx(expected, rel=tolerance)
    if first == 10.0:
        assert torch.equal(batch_norm_distance(*given), batch_norm_distance(*given, first=10.0))


def test_gradients_of_the_batch_norm_distance_equal_finite_differences():
    inputs, means, variances = layers()
    leaves = tuple(x.requires_grad_() for x in inputs)
    running = [x.requires_grad_() for x in means]
    assert torch.autograd.gradcheck(lambda *x: batch_norm_distance(x, means, variances), leaves)
    batch_norm_distance(inputs, running, variances).backward()
    assert all(x.grad is None for x in running)


def norm_inputs(network, x):
    found, norms = [], [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(lambda _, given: found.append(given[0])) for norm in norms]
    network(x)
    for handle in handles:
        handle.remove()
    return found, norms


def test_batch_statistics_written_into_the_running_buffers_leave_nothing():
    network = CNN((1, 8, 8), width=4, blocks=(1, 1), stem_stride=1, dim=6).double()
    x = torch.randn(7, 1, 8, 8, dtype=DOUBLE)
    inputs, norms = norm_inputs(network, x)

    def distance():
        return batch_norm_distance(inputs, [n.running_mean for n in norms], [n.running_var for n in norms])

    far = distance()
    far.backward()
    assert far > 1
    assert network.stem[0].weight.grad.abs().sum() > 0
    for norm, given in zip(norms, inputs, strict=True):
        variance, mean = torch.var_mean(given.detach(), dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    assert distance().item() == pytest.approx(0, abs=1e-14)


def test_statistics_of_another_architecture_are_refused():
    inputs, means, variances = layers()
    with pytest.raises(ObjectiveError, match=r"received 2, 3 and 3. Student and teacher must be of one architecture"):
        batch_norm_distance(inputs[:2], means, variances)
    with pytest.raises(ObjectiveError, match="received 0, 0 and 0"):
        batch_norm_distance([], [], [])
    with pytest.raises(ObjectiveError, match=r"layer 1 needs .* received \(4, 6, 2, 3\), \(2,\) and \(6,\)"):
        batch_norm_distance(inputs, [means[0], means[2], means[1]], variances)
    with pytest.raises(ObjectiveError, match=r"layer 0 needs"):
        batch_norm_distance([x.flatten(1) for x in inputs], means, variances)
    with pytest.raises(ConfigError, match="first must be finite and at least 0; received -1"):
        batch_norm_distance(inputs, means, variances, first=-1)
    with pytest.raises(ObjectiveError, match="batch_norm_distance overflows"):
        batch_norm_distance(
            [1e30 * x.float() for x in inputs], [x.float() for x in means], [x.float() for x in variances]
        )


# Diversity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-5, 0.1, 0.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (7, 3)])
def test_diversity_equals_a_loop(shape, epsilon):
    logits = 3 * torch.randn(shape, dtype=DOUBLE)
    expected = slow_diversity(logits, epsilon)
    assert diversity(logits, epsilon=epsilon).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    if epsilon == 1e-5:
        assert torch.equal(diversity(logits), diversity(logits, epsilon=1e-5))
    assert torch.autograd.gradcheck(lambda x: diversity(x, epsilon=epsilon), (logits.requires_grad_(),))


@pytest.mark.parametrize("epsilon", [1e-5, 0.0])
def test_diversity_of_uniform_balanced_and_collapsed_predictions(epsilon):
    sure = 1000 * torch.eye(5, dtype=DOUBLE).repeat(4, 1)
    assert diversity(torch.zeros(20, 5, dtype=DOUBLE), epsilon=epsilon).item() == pytest.approx(0, abs=1e-12)
    assert diversity(sure, epsilon=epsilon).item() == pytest.approx(-math.log(5), abs=1e-4)
    assert diversity(sure, epsilon=0.0).item() == pytest.approx(-1.6094, abs=5e-5)
    assert diversity(sure[:1].repeat(20, 1), epsilon=epsilon).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("epsilon", [1e-5, 0.0])
@pytest.mark.parametrize("logits", [torch.zeros(1, 1), torch.tensor([[3e38, -3e38, 0.0]]), 1e30 * torch.eye(3)])
def test_diversity_is_finite_for_extreme_logits(logits, epsilon):
    logits = logits.clone().requires_grad_()
    value = diversity(logits, epsilon=epsilon)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_diversity_refuses_what_are_no_logits():
    with pytest.raises(ObjectiveError, match=r"diversity: logits must be \(b, c\) floating point; received \(3,\)"):
        diversity(torch.zeros(3))
    for epsilon in (-1e-5, float("nan")):
        with pytest.raises(ConfigError, match="epsilon must be finite and at least 0"):
            diversity(torch.zeros(3, 2), epsilon=epsilon)


# In a method, and in two processes -----------------------------------------------------------------------------------


def test_training_falls_and_resumes_bit_for_bit(toy, tmp_path):
    def build():
        torch.manual_seed(1)
        student, teacher = MLP((8,), hidden=(8,), dim=6), MLP((12,), hidden=(8,), dim=9)
        return Distillation(student, teacher=teacher, objectives={"socket": Socket()}, source="rich", target="poor")

    def run(folder, stop=None):
        how = Settings(epochs=4, batch_size=32, lr=0.01, checkpoint_every=1)
        return fit(build(), toy.split("train"), how, seed=0, folder=folder, stop=stop, accelerator="cpu")

    rows = {m: torch.cat(list(toy.split("train").samples(m))) for m in ("rich", "poor")}
    whole = run(tmp_path / "whole")
    before, after = (m.train().training_step(rows).total.item() for m in (build(), whole))
    assert after < 0.9 * before
    calls = []
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stop=lambda: calls.append(0) or len(calls) == 7)
    whole, resumed = run(tmp_path / "whole"), run(tmp_path / "cut")
    for one, other in ((whole.network, resumed.network), (whole.projector, resumed.projector)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


LOSSES = {
    "batch": lambda s, t: Socket()(s, t),
    "pair": lambda s, t: Socket("pair")(s, t),
    "diversity": lambda s, t: diversity(s),
}


def losses(mine):
    generator = torch.Generator().manual_seed(5)
    x, t, weight = (torch.randn(n, 6, generator=generator, dtype=DOUBLE) for n in (8, 8, 6))
    found = {}
    for name, loss in LOSSES.items():
        w = weight.clone().requires_grad_()
        value = loss(x[mine] @ w, t[mine])
        value.backward()
        assert w.grad.any()
        found[name] = value.detach(), averaged(w.grad)
    return found


@pytest.mark.slow
def test_world_size_does_not_change_the_mathematics():
    check_world_size(losses)
