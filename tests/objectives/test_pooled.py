"""What all objectives of the literature that read pooled features must hold, one by one."""

import pytest
import torch

from crossdistill.errors import Interrupted, ObjectiveError
from crossdistill.methods import Distillation
from crossdistill.networks import MLP
from crossdistill.objectives.cc import CorrelationCongruence
from crossdistill.objectives.crd import ContrastiveRepresentation
from crossdistill.objectives.pkt import ProbabilisticTransfer
from crossdistill.objectives.rkd import RelationalDistillation
from crossdistill.objectives.seed import Seed
from crossdistill.objectives.sp import SimilarityPreserving
from crossdistill.objectives.vid import VariationalInformation
from crossdistill.training import Settings, fit

DOUBLE = torch.float64
MAKE = {
    "pkt": ProbabilisticTransfer,
    "sp": SimilarityPreserving,
    "rkd": RelationalDistillation,
    "rkd of two corners": lambda: RelationalDistillation(vertices=2),
    "cc": CorrelationCongruence,
    "cc unit": lambda: CorrelationCongruence(normalise=True),
    "cc embedded": lambda: CorrelationCongruence(width=3),
    "cc bilinear": lambda: CorrelationCongruence("kernel"),
    "cc gaussian": lambda: CorrelationCongruence("kernel", kernel="gaussian"),
    "cc gaussian unit": lambda: CorrelationCongruence("kernel", kernel="gaussian", normalise=True),
    "cc series": lambda: CorrelationCongruence("kernel", kernel="gaussian", order=2),
    "vid": VariationalInformation,
    "seed in batch": lambda: Seed(0.1, queue_size=0),
    "seed": lambda: Seed(queue_size=9),
    "crd memory": lambda: ContrastiveRepresentation(dim=3, count=8, tau=0.3),
    "crd batch": lambda: ContrastiveRepresentation("batch", dim=3, tau=0.3),
    "crd queue": lambda: ContrastiveRepresentation("queue", dim=3, count=9, tau=0.3),
}
UNEQUAL = [name for name in MAKE if not name.startswith("seed") and name not in ("cc", "cc unit")]
PROJECTED = ("vid", "crd memory", "crd batch", "crd queue", "cc embedded")
OF_SIZE = (*PROJECTED, "cc", "cc bilinear", "cc series")
"""Losses that depend on the features' scale, and overflow."""


def prepared(name, s, t, pairs=12):
    torch.manual_seed(1)
    objective = MAKE[name]()
    with torch.no_grad():
        objective.prepare(s, t, pairs=pairs)
    return objective


def value_and_gradient(name, s, t):
    objective = prepared(name, s, t)
    s = s.clone().requires_grad_()
    value = objective(s, t, index=torch.arange(len(s)))
    value.backward()
    return value.detach(), s.grad


@pytest.mark.parametrize("name", MAKE)
def test_gradients_equal_finite_differences(name):
    torch.manual_seed(0)
    s, t = torch.randn(5, 4, dtype=DOUBLE, requires_grad=True), torch.randn(5, 4, dtype=DOUBLE)
    objective = prepared(name, s.detach(), t)
    index = torch.arange(5)
    objective(t, s.detach(), index=index)  # memories and queues hold something
    objective.eval()  # and keep it
    assert torch.autograd.gradcheck(lambda x: objective(x, t, index=index), (s,))
    objective(s, t, index=index).backward()
    assert s.grad.abs().max() > 1e-7


@pytest.mark.parametrize("name", MAKE)
def test_the_teacher_gets_no_gradient(name):
    s, t = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    prepared(name, s, t)(s, t, index=torch.arange(5)).backward()
    assert s.grad.any()
    assert t.grad is None


@pytest.mark.parametrize("name", MAKE)
def test_half_precision_is_computed_in_single_and_double_in_double(name):
    s, t = torch.randn(6, 4).bfloat16(), torch.randn(6, 4).bfloat16()
    value, gradient = value_and_gradient(name, s, t)
    expected, theirs = value_and_gradient(name, s.float(), t.float())
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(gradient, theirs.bfloat16())
    double, _ = value_and_gradient(name, s.double(), t.double())
    assert double.dtype == DOUBLE
    # what is drawn at random is the same numbers, rounded
    assert double.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", UNEQUAL)
def test_widths_may_differ(name):
    s, t = torch.randn(6, 3), torch.randn(6, 7)
    value, gradient = value_and_gradient(name, s, t)
    assert value.isfinite()
    assert gradient.any()


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.float32, kind) for kind in ("random", "constant", "one zero row", "two equal rows", "opposite rows")]
    + [(torch.bfloat16, "random"), (DOUBLE, "constant")],
)
@pytest.mark.parametrize("name", MAKE)
def test_everything_is_finite_for_any_finite_input(name, kind, dtype):
    torch.manual_seed(0)
    for b in (1, 5):
        for scale in (0.0, 1e-38, 1e-15, 1.0, 1e20, 3e38):
            values = torch.ones(b, 4) if kind == "constant" else torch.rand(b, 4) * 2 - 1
            if kind == "one zero row":
                values[0] = 0
            if kind == "two equal rows":
                values[-1] = values[0]
            if kind == "opposite rows":
                values[-1] = -values[0]
            for s, t in ((values * scale, torch.rand(b, 4)), (torch.rand(b, 4), values * scale)):
                try:
                    value, gradient = value_and_gradient(name, s.to(dtype), t.to(dtype))
                except ObjectiveError as error:
                    assert name in OF_SIZE, (name, b, scale)
                    assert scale >= 1e15, (b, scale)
                    assert "Scale the features" in str(error)
                    continue
                assert value.isfinite(), (b, scale)
                assert gradient.isfinite().all(), (b, scale)


def distillation(name):
    torch.manual_seed(1)
    student, teacher = MLP((8,), hidden=(8,), dim=6), MLP((12,), hidden=(8,), dim=6)
    objectives = {"loss": MAKE[name]()}
    return Distillation(student, teacher=teacher, objectives=objectives, source="rich", target="poor")


@pytest.mark.parametrize("name", MAKE)
def test_trained_in_one_go_or_stopped_and_resumed_it_ends_with_the_same_bits(name, toy, tmp_path):
    settings = Settings(epochs=2, batch_size=40, lr=0.01, checkpoint_every=1)
    how = {"seed": 5, "held_out": toy.split("validation"), "accelerator": "cpu"}
    data = toy.split("train")
    start = distillation(name).network.state_dict()
    whole = fit(distillation(name), data, settings, **how)
    assert any(not torch.equal(value, start[key]) for key, value in whole.network.state_dict().items())
    calls = []

    def stop():
        calls.append(None)
        return len(calls) == 3

    with pytest.raises(Interrupted):
        fit(distillation(name), data, settings, folder=tmp_path, stop=stop, **how)
    again = fit(distillation(name), data, settings, folder=tmp_path, **how)
    ours, theirs = again.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[key], value), key
    own = [key for key in theirs if key.startswith("objectives.loss.")]
    assert bool(own) == (name in (*PROJECTED, "seed", "seed in batch"))
    before = {key: theirs[key].clone() for key in own}
    unseen = fit(distillation(name), data, settings, seed=5, accelerator="cpu").state_dict()  # without held-out samples
    assert all(torch.equal(unseen[key], value) for key, value in before.items())
