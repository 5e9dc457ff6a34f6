"""The contract carries the awkward systems of the literature: alternation, momentum with a queue, gradient surgery.

Each is written here as a user would write it, run through the loop, and compared with its equations done by hand.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import DataError, NetworkError
from crossdistill.methods import Batch, Losses, Method, freeze, index_of, view
from crossdistill.networks import MLP
from crossdistill.registry import Facts
from crossdistill.training import Settings, fit, load_product

PLAIN = Settings(epochs=2, batch_size=32, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.1, schedule="constant")


def linear(width, dim=4, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(width, dim)


def batches_of(data, views, settings=PLAIN, labels=False):
    """The batches that the loop must have seen, in its order."""
    loader = data.loader(views, batch_size=settings.batch_size, seed=0, labels=labels)
    return [batch for epoch in range(settings.epochs) for batch in loader.epoch(epoch)]


class Alternation(Method):
    """MLA's: a shared head, the modalities in turn, the head's gradient kept off the directions of the one before."""

    facts: ClassVar[Facts] = Facts(name="alternation", title="in turn", paper="Zhang et al. 2024 (MLA)")

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"rich": linear(12, seed=1), "poor": linear(8, seed=2)})
        self.head = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4))
        self.register_buffer("direction", torch.zeros(4))  # mean feature of the modality that stepped last
        self.now, self.drift, self.order = "", [], []

    def inputs(self) -> Mapping[str, int]:
        return {"rich": 1, "poor": 1}

    def student(self, modality: str) -> nn.Module:
        if modality not in self.encoders:
            raise NetworkError(f"no encoder of {modality}")
        return self.encoders[modality]

    def training_steps(self, batch: Batch) -> Iterator[Losses]:
        for name in ("rich", "poor"):
            self.now = name
            self.order.append(name)
            features = self.encoders[name](batch[name])
            with torch.no_grad():
                before = self.head(self.direction)
            yield Losses({name: F.cross_entropy(self.head(features), batch["label"])})
            if self.training:
                with torch.no_grad():
                    self.drift.append((self.head(self.direction) - before).abs().max().item())
                    self.direction = features.mean(dim=0)

    def after_backward(self) -> None:
        assert all((p.grad is None) == (k != self.now) for k, e in self.encoders.items() for p in e.parameters())
        u = F.normalize(self.direction, dim=0)
        grad = self.head.weight.grad
        grad.sub_(grad @ u[:, None] @ u[None, :])


def test_alternation_steps_once_a_modality_and_the_head_keeps_what_the_other_needs(toy):
    method = fit(Alternation(), toy.split("train"), PLAIN, seed=0, labels=True, accelerator="cpu")
    assert method.order == ["rich", "poor"] * 10
    assert max(method.drift) < 1e-6
    assert not torch.allclose(method.head.weight, torch.eye(4), atol=1e-3)


def test_alternation_is_the_loop_written_by_hand(toy):
    data = toy.split("train")
    method = fit(Alternation(), data, PLAIN, seed=0, labels=True, accelerator="cpu")
    hand = Alternation()
    for batch in batches_of(data, hand.inputs(), labels=True):
        for losses in hand.training_steps(batch):
            hand.zero_grad()
            losses.total.backward()
            hand.after_backward()
            with torch.no_grad():
                for p in hand.parameters():
                    if p.grad is not None:
                        p -= 0.1 * p.grad
            hand.zero_grad()
    for (name, one), other in zip(method.named_parameters(), hand.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name


def test_alternation_is_described_on_held_out_samples_by_the_plural_alone(toy):
    """No `held_out_step` of its own: terms by name, their mean as the loss, and nothing is remembered of them."""
    data, held_out = toy.split("train"), toy.split("test")
    how = {"seed": 0, "labels": True, "accelerator": "cpu"}
    method = fit(Alternation(), data, PLAIN, held_out=held_out, **how)
    alone = fit(Alternation(), data, PLAIN, **how)
    assert all(
        torch.equal(a, b) for a, b in zip(method.state_dict().values(), alone.state_dict().values(), strict=True)
    )
    batch = next(held_out.loader({"rich": 1, "poor": 1}, batch_size=8, seed=0, labels=True).epoch(0))
    with torch.no_grad():
        scores = method.held_out_step(batch)
        parts = {
            k: F.cross_entropy(method.head(method.encoders[k](batch[k])), batch["label"]) for k in ("rich", "poor")
        }
    assert scores.keys() == {"rich", "poor", "loss"}
    assert all(torch.equal(scores[k], parts[k]) for k in parts)
    assert torch.allclose(scores["loss"], (parts["rich"] + parts["poor"]) / 2)


def test_held_out_terms_that_come_twice_are_averaged():
    class Twice(Continual):
        def training_steps(self, batch):
            yield Losses({"a": torch.tensor(1.0), "b": torch.tensor(4.0)}, {"note": torch.tensor(9.0)})
            yield Losses({"a": torch.tensor(2.0)})

    scores = Twice().eval().held_out_step({})
    assert {name: value.item() for name, value in scores.items()} == {"a": 1.5, "b": 4.0, "note": 9.0, "loss": 3.5}


def test_a_single_step_is_described_as_it_is():
    method, batch = Continual().eval(), {"rich": torch.randn(5, 12), "poor": torch.randn(5, 8)}
    expected = method.training_step(batch).total
    assert method.held_out_step(batch).keys() == {"square", "loss"}
    assert torch.equal(method.held_out_step(batch)["loss"], expected)


class MomentumQueue(Method):
    """The skeleton papers': a key encoder that follows slowly, its outputs in a queue as negatives."""

    facts: ClassVar[Facts] = Facts(name="moco", title="momentum", paper="He et al. 2020 (MoCo)")

    def __init__(self, size: int = 48) -> None:
        super().__init__()
        self.fast, self.slow = linear(8, seed=3), freeze(linear(8, seed=3))
        self.register_buffer("queue", torch.zeros(size, 4))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.keys: Any = None

    def inputs(self) -> Mapping[str, int]:
        return {"poor": 2}

    def student(self, modality: str) -> nn.Module:
        return self.fast

    def training_step(self, batch: Batch) -> Losses:
        q = F.normalize(self.fast(batch["poor"]), dim=1)
        with torch.no_grad():
            self.keys = F.normalize(self.slow(batch[view("poor", 1)]), dim=1)
        negatives = self.queue[: min(int(self.filled), len(self.queue))]
        logits = torch.cat([(q * self.keys).sum(1, keepdim=True), q @ negatives.T], dim=1) / 0.2
        return Losses({"nce": F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64)) + 0.01 * q.sum()})

    @torch.no_grad()
    def after_step(self) -> None:
        for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
            slow.lerp_(fast, 0.1)
        slots = (self.filled + torch.arange(len(self.keys))) % len(self.queue)
        self.queue[slots] = self.keys
        self.filled += len(self.keys)


def test_momentum_and_queue_follow_their_equations_and_survive_in_the_product(toy, tmp_path):
    data = toy.split("train")
    method = fit(MomentumQueue(), data, PLAIN, seed=0, folder=tmp_path, accelerator="cpu")
    weight, bias = (p.detach().clone() for p in MomentumQueue().fast.parameters())
    slow, keys = [weight.clone(), bias.clone()], []
    for batch in batches_of(data, {"poor": 2}):
        weight.requires_grad_(True), bias.requires_grad_(True)
        q = F.normalize(batch["poor"] @ weight.T + bias, dim=1)
        k = F.normalize(batch["poor#1"] @ slow[0].T + slow[1], dim=1)
        bank = torch.cat(keys)[-48:] if keys else torch.zeros(0, 4)
        loss = 0.01 * q.sum()
        for i in range(len(q)):  # -log softmax of the positive among itself and the bank, a row at a time
            logits = torch.cat([(q[i] @ k[i])[None], bank @ q[i]]) / 0.2
            loss = loss - (logits[0] - logits.logsumexp(0)) / len(q)
        grads = torch.autograd.grad(loss, [weight, bias])
        weight, bias = ((p - 0.1 * g).detach() for p, g in zip((weight, bias), grads, strict=True))
        slow = [0.9 * s + 0.1 * p for s, p in zip(slow, (weight, bias), strict=True)]
        keys.append(k)
    assert torch.allclose(method.fast.weight, weight, atol=1e-5)
    assert torch.allclose(method.slow.weight, slow[0], atol=1e-5)
    assert int(method.filled) == 320
    kept = {tuple(row) for row in method.queue.mul(1e3).round().int().tolist()}
    assert kept == {tuple(row) for row in torch.cat(keys)[-48:].mul(1e3).round().int().tolist()}
    again = load_product(MomentumQueue(), tmp_path)
    assert torch.equal(again.queue, method.queue)
    assert torch.equal(again.slow.weight, method.slow.weight)


class Continual(Method):
    """CMCL's: gradients leave the subspace of earlier data alone; the subspace grows at the stage's end."""

    facts: ClassVar[Facts] = Facts(name="continual", title="projection", paper="CMCL, our reconstruction")

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 4, bias=False)
        self.register_buffer("basis", torch.zeros(8, 0))

    def inputs(self) -> Mapping[str, int]:
        return {"rich": 1, "poor": 1}

    def student(self, modality: str) -> nn.Module:
        return self.net

    def training_step(self, batch: Batch) -> Losses:
        return Losses({"square": (self.net(batch["poor"]) - batch["rich"][:, :4]).square().mean()})

    def after_backward(self) -> None:
        self.net.weight.grad.sub_(self.net.weight.grad @ self.basis @ self.basis.T)

    def after_stage(self, data: Any) -> None:
        rows = torch.cat([batch["poor"] for batch in data.batches()])[:, :]
        top = torch.linalg.svd(rows, full_matrices=False).Vh[:3].T
        self.basis = torch.linalg.qr(torch.cat([self.basis, top], dim=1)).Q


def test_projected_gradients_never_touch_the_subspace_that_an_earlier_stage_left(toy, tmp_path):
    torch.manual_seed(0)
    first, second = toy.split("train").subset(range(0, 80)), toy.split("train").subset(range(80, 160))
    method = fit(Continual(), first, PLAIN, seed=0, folder=tmp_path, accelerator="cpu")
    assert method.basis.shape == (8, 3)
    learnt = method.net.weight.detach().clone()
    later = load_product(Continual(), tmp_path)
    assert torch.equal(later.basis, method.basis)  # its shape came from the data, not from the constructor
    fit(later, second, PLAIN, seed=0, accelerator="cpu")
    change = later.net.weight.detach() - learnt
    assert change.abs().max() > 1e-3
    assert (change @ method.basis).abs().max() < 1e-6
    assert later.basis.shape == (8, 6)


class TwoRates(Continual):
    def parameter_groups(self):
        return [{"params": [self.net.weight], "lr_scale": 0.0}, {"params": [self.scale]}]

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def training_step(self, batch: Batch) -> Losses:
        return Losses({"square": (self.scale * self.net(batch["poor"]) - batch["rich"][:, :4]).square().mean()})


def test_groups_scale_the_learning_rate(toy):
    torch.manual_seed(0)
    method = TwoRates()
    weight = method.net.weight.detach().clone()
    fit(method, toy.split("train"), PLAIN, seed=0, accelerator="cpu")
    assert torch.equal(method.net.weight, weight)
    assert not torch.equal(method.scale, torch.ones(4))


def test_losses_add_up_and_one_term_is_itself():
    one, two = torch.tensor(1.5), torch.tensor(2.0)
    assert Losses({"a": one}).total is one
    assert Losses({"a": one, "b": two}).total == 3.5


def test_names_of_views_and_positions_of_streams():
    assert [view("image", k) for k in range(3)] == ["image", "image#1", "image#2"]
    paired, streams = torch.arange(3), {"image": torch.arange(2)}
    assert index_of({"index": paired}, "image") is paired
    assert index_of({"index": streams}, "image") is streams["image"]


def test_a_method_without_a_step_says_which_one_to_define():
    class Nothing(Continual):
        training_step = Method.training_step

    with pytest.raises(NotImplementedError, match="Nothing must define training_step or training_steps"):
        list(Nothing().training_steps({}))


def test_teacher_outputs_are_the_stored_ones_else_live_ones_without_gradient():
    class Taught(Continual):
        def __init__(self):
            super().__init__()
            self.teacher = freeze(MLP((12,), hidden=(6,), dim=4))

        def teachers(self):
            return {"rich": self.teacher}

    method, x = Taught(), torch.randn(5, 12)
    live = method.teacher_outputs({"rich": x}, "rich")
    assert torch.equal(live.features, method.teacher(x))
    assert not live.features.requires_grad
    assert method.teacher_outputs({"rich": x, "stored": {"rich": "kept"}}, "rich") == "kept"
    with pytest.raises(DataError, match="lacks the modality 'rich'; it has: poor"):
        method.teacher_outputs({"poor": x}, "rich")
    assert method.train().training
    assert not any(part.training for part in method.teacher.modules())
