"""Modalities in turn: recursive least squares against its closed form, steps by hand, fusion row by row."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from stages import check_resumes, learn
from stages import labelled_batch as batch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError, ObjectiveError
from crossdistill.methods.mla import AlternatingUnimodal, HeadProjector, entropy, entropy_weights, fuse
from crossdistill.networks import MLP
from crossdistill.training import Settings

SETTINGS = Settings(epochs=2, batch_size=40, lr=0.05, checkpoint_every=1)  # 4 batches an epoch, 8 in all
train = partial(learn, settings=SETTINGS, labels=True)
SGD = Settings(epochs=2, batch_size=40, optimizer="sgd", lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


def method_of(*, dropout=0.0, norm=True, **how):
    torch.manual_seed(1)
    encoders = {
        "rich": MLP((12,), hidden=(10,), dim=5, dropout=dropout, norm=norm),
        "poor": MLP((8,), hidden=(10,), dim=5, dropout=dropout, norm=norm),
    }
    return AlternatingUnimodal(encoders, classes=4, **how)


# The projector --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n"), [(1, 1), (4, 2), (6, 6), (5, 40)])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 3.0])
def test_recursive_least_squares_has_its_closed_form(d, n, alpha):
    projector = HeadProjector(d, alpha=alpha, dtype=torch.float64)
    rows = torch.randn(n, d, dtype=torch.float64)
    for k, h in enumerate(rows):
        before = projector.matrix.clone()
        projector.observe(h)
        p = projector.matrix
        seen = rows[: k + 1]
        closed = torch.linalg.inv(torch.eye(d, dtype=torch.float64) + seen.T @ seen / alpha)
        torch.testing.assert_close(p, closed, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(p @ h, alpha / (alpha + h @ before @ h) * (before @ h), rtol=1e-9, atol=1e-12)
    assert torch.equal(p, p.T)
    values = torch.linalg.eigvalsh(p)
    assert values.min() > 0
    assert values.max() <= 1 + 1e-12


def test_alpha_decides_how_much_is_left():
    h = torch.tensor([3.0, 4.0], dtype=torch.float64)
    for alpha, left in ((1e-12, 0.0), (0.1, 0.1 / 25.1), (1e12, 1.0)):
        projector = HeadProjector(2, dtype=torch.float64)
        projector.observe(h, alpha=alpha)
        torch.testing.assert_close(projector.matrix @ h, left * h, rtol=1e-9, atol=1e-9)


def test_single_precision_stays_positive_for_ever():
    projector, g = HeadProjector(16), torch.Generator().manual_seed(0)
    base = 30 * torch.randn(16, generator=g)  # features that hardly change, and a small alpha
    for _ in range(5000):
        projector.observe(base + 0.1 * torch.randn(16, generator=g), alpha=0.01)
    values = torch.linalg.eigvalsh(projector.matrix.double())
    assert values.min() > -1e-7
    assert values.max() <= 1 + 1e-6
    projector.reset()
    assert torch.equal(projector.matrix, torch.eye(16))


@pytest.mark.parametrize("h", [torch.zeros(3), torch.full((3,), 1e15)])
def test_extreme_features_leave_it_finite(h):
    projector = HeadProjector(3)
    projector.observe(h)
    assert projector.matrix.isfinite().all()
    assert h.any() or torch.equal(projector.matrix, torch.eye(3))


def test_a_projected_step_hardly_moves_what_was_observed():
    projector = HeadProjector(6, alpha=0.01, dtype=torch.float64)
    h, other = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    projector.observe(other)
    before = projector.matrix.clone()
    projector.observe(h)
    gradient = torch.randn(4, 6, dtype=torch.float64)
    step = projector.project_(gradient.clone())
    bound = 0.01 / (0.01 + h @ before @ h) * (gradient @ before @ h).norm()
    torch.testing.assert_close((step @ h).norm(), bound)
    assert (step @ h).norm() < 0.1 * (gradient @ h).norm()


def test_normalised_it_shrinks_the_step_instead():
    projector = HeadProjector(64, normalise=True)
    projector.observe(torch.randn(64))
    torch.testing.assert_close(projector.matrix.norm(), torch.tensor(1.0))


# Fusion ---------------------------------------------------------------------------------------------------------------


def test_weights_are_a_softmax_of_minus_the_entropy():
    logits = [torch.randn(7, 4, dtype=torch.float64) * 3 for _ in range(3)]
    weights = entropy_weights(logits, temperature=0.5)
    for i in range(7):
        certain = []
        for z in logits:
            p = [math.exp(v) for v in z[i].tolist()]
            p = [v / sum(p) for v in p]
            certain.append(math.exp(sum(v * math.log(v) for v in p) / 0.5))
        slow = torch.tensor(certain, dtype=torch.float64) / sum(certain)
        torch.testing.assert_close(weights[i], slow)
        torch.testing.assert_close(fuse(logits, weights)[i], sum(w * z[i] for w, z in zip(slow, logits, strict=True)))
        one = [z[i : i + 1] for z in logits]  # nobody else in the batch matters
        torch.testing.assert_close(entropy_weights(one, temperature=0.5)[0], weights[i])


def test_certain_against_uniform():
    sure, unsure = torch.tensor([[1e4, -1e4, -1e4, -1e4, -1e4]]), torch.zeros(1, 5)
    torch.testing.assert_close(entropy_weights([sure, unsure]), torch.tensor([[5 / 6, 1 / 6]]))
    assert torch.equal(entropy_weights([unsure, unsure, unsure]), torch.full((1, 3), 1 / 3))
    assert torch.equal(fuse([sure], entropy_weights([sure])), sure)
    shifted = entropy_weights([sure + 7, unsure - 3])
    torch.testing.assert_close(shifted, entropy_weights([sure, unsure]))
    assert entropy_weights([sure, unsure], temperature=1e6)[0, 0] == pytest.approx(0.5, abs=1e-5)


def test_absent_modalities_are_left_out():
    logits = [torch.randn(3, 4) for _ in range(3)]
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    holed = [torch.where(present[:, k, None], z, torch.nan) for k, z in enumerate(logits)]
    weights = entropy_weights(holed, present)
    fused = fuse(holed, weights)
    assert (weights[~present] == 0).all()
    both = [logits[0][1:2], logits[2][1:2]]
    torch.testing.assert_close(fused[1:2], fuse(both, entropy_weights(both)))
    torch.testing.assert_close(fused[2], logits[1][2])
    with pytest.raises(ObjectiveError, match="a modality in every row"):
        entropy_weights(logits, torch.zeros(3, 3).bool())


def test_multilabel_entropy_is_a_sum_of_binary_ones():
    z = torch.tensor([[0.0, 1.0, -200.0]], dtype=torch.float64)
    p = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
    expected = math.log(2) - p * p.log() - (1 - p) * (1 - p).log()
    torch.testing.assert_close(entropy(z, multilabel=True)[0], expected)


def test_fusion_of_unequal_shapes_is_refused():
    with pytest.raises(ObjectiveError, match="one shape"):
        entropy_weights([torch.zeros(2, 3), torch.zeros(2, 4)])


# The method -----------------------------------------------------------------------------------------------------------


def by_hand(method, data, settings, protect, order=("rich", "poor")):
    """Plain SGD, one modality after the other, the head's gradient times P; returns what the weights become."""
    names, p, means, last, step = list(method.encoders), torch.eye(5), {}, None, 0
    loader = data.loader(dict.fromkeys(names, 1), batch_size=settings.batch_size, seed=5, labels=True)
    for epoch in range(settings.epochs):
        if protect == "dataset_mean":
            with torch.no_grad():
                whole = {m: next(data.samples(m, 1000)) for m in names}
                means = {m: method.encoders[m](whole[m]).mean(dim=0) for m in names}
        for i, rows in enumerate(loader.epoch(epoch)):
            alpha = 0.1 ** (1 + i / len(loader))
            for m in order:
                parameters = [*method.encoders[m].parameters(), *method.head.parameters()]
                features = method.encoders[m](rows[m])
                loss = F.cross_entropy(method.head(features), rows["label"])
                gradients = list(torch.autograd.grad(loss, parameters))
                if step and protect != "none":
                    h = features.detach().mean(dim=0) if protect == "current" else means[last]
                    k = p @ h / (alpha + h @ p @ h)
                    p = p - torch.outer(k, h @ p)
                    gradients[-2] = gradients[-2] @ p
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter -= settings.lr * gradient
                if protect != "dataset_mean":
                    means[m] = features.detach().mean(dim=0)
                last, step = m, step + 1
    return method


@pytest.mark.parametrize("protect", ["previous", "current", "dataset_mean", "none"])
@pytest.mark.parametrize("projects", ["gradient", "change"])
def test_plain_gradient_descent_by_hand(protect, projects, toy):
    data = toy.split("train")
    trained = train(method_of(norm=False, protect=protect, projects=projects), data, settings=SGD)
    expected = by_hand(method_of(norm=False), data, SGD, protect)
    for a, b in zip(
        [*trained.encoders.parameters(), *trained.head.parameters()],
        [*expected.encoders.parameters(), *expected.head.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_first_step_and_the_bias_are_left_alone():
    method, rows = method_of().train(), batch()
    gradients = []
    for losses in method.training_steps(rows):
        losses.total.backward()
        before = method.head.weight.grad.clone(), method.head.bias.grad.clone()
        method.after_backward()
        gradients.append((before, (method.head.weight.grad.clone(), method.head.bias.grad.clone())))
        method.zero_grad()
        method.after_step()
    (first, second) = gradients
    assert torch.equal(first[0][0], first[1][0])
    assert not torch.equal(second[0][0], second[1][0])
    assert torch.equal(first[0][1], first[1][1])
    assert torch.equal(second[0][1], second[1][1])
    torch.testing.assert_close(second[1][0], second[0][0] @ method.projector.matrix)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_modality_at_a_time(optimizer, toy, monkeypatch):
    """Momentum and decay notwithstanding, another modality's encoder is bit for bit where it was."""
    settings = Settings(epochs=2, batch_size=40, optimizer=optimizer, lr=0.05, weight_decay=0.1)
    method, now = method_of(), []

    def weights():
        return {m: [p.detach().clone() for p in e.parameters()] for m, e in method.encoders.items()}

    before = weights()
    inherited = AlternatingUnimodal.after_step

    def after_step(self):
        nonlocal before
        inherited(self)
        here = weights()
        now.append([m for m in here if not all(map(torch.equal, here[m], before[m]))])
        before = here

    monkeypatch.setattr(AlternatingUnimodal, "after_step", after_step)
    train(method, toy.split("train"), settings=settings)
    assert now == [["rich"], ["poor"]] * 8


def test_under_adam_the_change_is_what_can_be_projected(toy):
    """What the head says of the mean that is protected hardly moves, which the gradient's projection cannot promise."""
    moved = {}
    for projects in ("gradient", "change"):
        method, found = method_of(projects=projects, alpha=1e-4, alpha_end=1e-4), []
        inherited = method.projector.observe

        def observe(mean, alpha=None, *, inherited=inherited, method=method, found=found):
            inherited(mean, alpha)
            found.append((mean.clone(), method.head.weight.detach().clone()))

        method.projector.observe = observe
        train(method, toy.split("train"))
        pairs = itertools.pairwise(found)
        moved[projects] = max(float((after - before).mv(mean).abs().max()) for (mean, before), (_, after) in pairs)
    assert moved["change"] < 0.01 * moved["gradient"]


@pytest.mark.parametrize(
    "how", [{}, {"protect": "current", "order": "random", "projects": "change"}, {"protect": "dataset_mean"}]
)
def test_stopped_at_any_step_and_resumed_ends_with_the_same_bits(how, toy, tmp_path):
    run = {"settings": SETTINGS, "labels": True, "held_out": toy.split("validation")}
    check_resumes(partial(method_of, dropout=0.3, **how), toy.split("train"), tmp_path, (1, 3, 4, 5, 7), **run)


def test_orders():
    names = {"given": ["rich/ce", "poor/ce"], ("poor", "rich"): ["poor/ce", "rich/ce"]}
    for order, expected in names.items():
        method = method_of(order=order)
        assert [next(iter(losses.terms)) for losses in method.training_steps(batch())] == expected
    method = method_of(order="random").train()
    seen = {tuple(next(iter(losses.terms)) for losses in method.training_steps(batch())) for _ in range(30)}
    assert len(seen) == 2


def test_rows_that_lack_a_modality():
    method, rows = method_of().eval(), batch(8)
    has = {"rich": torch.tensor([1, 1, 1, 1, 1, 1, 0, 0]).bool(), "poor": torch.tensor([0, 1, 1, 1, 1, 1, 1, 1]).bool()}
    broken = {**rows, **{m: torch.where(has[m][:, None], rows[m], torch.nan) for m in has}, "present": has}
    for losses, m in zip(method.training_steps(broken), has, strict=True):
        logits = method.head(method.encoders[m](rows[m][has[m]]))
        torch.testing.assert_close(losses.terms[f"{m}/ce"], F.cross_entropy(logits, rows["label"][has[m]]))
    fused, whole = method.predict(broken), method.predict(rows)
    torch.testing.assert_close(fused[1:6], whole[1:6])
    torch.testing.assert_close(fused[0], method.head(method.encoders["rich"](rows["rich"][:1]))[0])
    torch.testing.assert_close(fused[6:], method.head(method.encoders["poor"](rows["poor"][6:])))
    torch.testing.assert_close(
        method.predict({"poor": rows["poor"]}), method.head(method.encoders["poor"](rows["poor"]))
    )
    absent = {**rows, "present": {"rich": torch.zeros(8).bool()}}
    assert [set(losses.terms) for losses in method.training_steps(absent)] == [{"poor/ce"}]
    assert "fused/ce" in method.held_out_step(absent)
    assert not method.held_out_step({**rows, "present": {m: torch.zeros(8).bool() for m in has}})
    holed = {m: torch.arange(8) > 0 for m in has}
    assert "fused/ce" not in method.held_out_step({**rows, "present": holed})
    assert [set(losses.terms) for losses in method.training_steps({k: rows[k] for k in ("poor", "label")})] == [
        {"poor/ce"}
    ]


def test_every_branch_learns(toy):
    method = train(method_of(), toy.split("train"), settings=Settings(epochs=30, batch_size=40, lr=0.01))
    rows = next(iter(toy.split("test").loader({"rich": 1, "poor": 1}, batch_size=100, seed=0, labels=True).epoch(0)))
    scores = method.held_out_step(rows)
    assert scores["rich/accuracy"] > 0.6
    assert scores["poor/accuracy"] > 0.6
    assert scores["fused/accuracy"] > 0.6


def test_half_precision_trains(toy):
    method = train(method_of(), toy.split("train"), settings=replace(SETTINGS, precision="bf16-mixed"))
    assert method.projector.matrix.dtype == torch.float32
    assert all(p.isfinite().all() for p in method.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.predict({**batch(), "present": {"rich": torch.arange(9) > 4}}).isfinite().all()


def test_students():
    method = method_of()
    assert method.student("poor") is method.encoders["poor"]
    assert method.as_teacher("rich").eval()(torch.randn(2, 12)).logits.shape == (2, 4)
    with pytest.raises(NetworkError, match="none of 'sound'"):
        method.student("sound")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"classes": 1}, r"classes >= 2 \(labels >= 1\)"),
        ({"alpha": 0.001}, "alpha_end <= alpha"),
        ({"protect": "next"}, "protect is 'next'"),
        ({"order": ("rich",)}, "name each of"),
        ({"temperature": 0.0}, "temperature must be"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    encoders = {"rich": MLP((12,), hidden=(), dim=5), "poor": MLP((8,), hidden=(), dim=5)}
    with pytest.raises(ConfigError, match=message):
        AlternatingUnimodal(encoders, **{"classes": 4, **how})
    with pytest.raises(ConfigError, match="alpha above 0"):
        HeadProjector(3, alpha=0.0)


def test_unequal_widths_are_refused():
    with pytest.raises(NetworkError, match=r"one width; received .*'rich': 5, 'poor': 6"):
        AlternatingUnimodal({"rich": MLP((12,), dim=5), "poor": MLP((8,), dim=6)}, classes=4)
