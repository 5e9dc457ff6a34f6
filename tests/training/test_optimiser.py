import contextlib
import json
import math

import pytest
import torch
from torch import nn
from worlds import Alternating, Distil, Pairs, Regression, Small

from crossdistill.errors import Interrupted, TrainingError
from crossdistill.methods.base import Losses
from crossdistill.networks.blocks import channels_last
from crossdistill.training import Settings, fit
from crossdistill.training.optimiser import build, learning_rate, parameter_groups


def test_cosine_with_warmup_has_its_closed_form():
    settings = Settings(lr=0.5, warmup=0.2)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:20] == pytest.approx([0.5 * (k + 1) / 20 for k in range(20)])
    assert rates[20] == 0.5
    assert rates[60] == pytest.approx(0.25)
    assert rates[20:] == pytest.approx([0.25 * (1 + math.cos(math.pi * k / 80)) for k in range(80)])
    assert rates[-1] > 0


def test_constant_stays_after_the_warmup():
    settings = Settings(lr=0.1, schedule="constant", warmup=0.5)
    assert [learning_rate(step, 4, settings) for step in range(4)] == pytest.approx([0.05, 0.1, 0.1, 0.1])


def test_steps_multiply_at_each_milestone():
    settings = Settings(lr=0.5, schedule="steps", milestones=(0.29, 0.57), gamma=0.2, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    by_hand = [0.5 * 0.2 ** ((k >= 29) + (k >= 57)) * min(1, (k + 1) / 10) for k in range(100)]
    assert rates == pytest.approx(by_hand)
    early = Settings(lr=1.0, schedule="steps", milestones=(0.5,), warmup=0.8)
    assert [learning_rate(k, 10, early) for k in range(10)] == pytest.approx(
        [0.125, 0.25, 0.375, 0.5, 0.625, 0.075, 0.0875, 0.1, 0.1, 0.1]
    )


def test_the_rate_of_a_run_follows_its_milestones(tmp_path):
    settings = Settings(epochs=4, batch_size=16, lr=0.1, schedule="steps", milestones=[0.25, 0.5])
    fit(Regression(), Pairs(), settings, seed=0, folder=tmp_path, accelerator="cpu")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in lines] == pytest.approx([0.1, 0.01, 0.001, 0.001])
    fit(Regression(), Pairs(), settings, seed=0, folder=tmp_path, accelerator="cpu")  # a list in the record: the same


def test_what_has_fewer_than_two_axes_is_not_decayed():
    method = Regression()
    method.temperature = nn.Parameter(torch.tensor(1.0))
    method.norm = nn.BatchNorm1d(8)
    groups = parameter_groups(method, Settings(weight_decay=0.3))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.3) for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(method.parameters()))


class Scaled(Regression):
    def parameter_groups(self):
        return [
            {"params": list(self.net[0].parameters()), "lr_scale": 0.0},
            {"params": list(self.net[3].parameters()), "weight_decay": 0.0},
        ]


def test_a_group_may_scale_the_rate_and_set_its_own_decay():
    assert [g["weight_decay"] for g in parameter_groups(Scaled(), Settings()) if g["lr_scale"] == 1.0] == [0.0]
    method = fit(Scaled(), Pairs(), Settings(epochs=1, batch_size=16), seed=0, accelerator="cpu")
    assert torch.equal(method.net[0].weight, Scaled().net[0].weight)
    assert not torch.equal(method.net[3].weight, Scaled().net[3].weight)


def test_a_teacher_among_the_parameters_is_refused():
    class Wrong(Distil):
        def parameter_groups(self):
            return [{"params": list(self.teacher.parameters())}]

    method = Wrong()
    method.teacher.requires_grad_(True)
    with pytest.raises(TrainingError, match="frozen teacher of image"):
        parameter_groups(method, Settings())


def test_nothing_to_train_is_an_error():
    class Nothing(Small):
        def training_step(self, batch):
            return Losses({"zero": torch.zeros(())})

    method = Nothing()
    method.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        build(method, Settings())


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimiser_follows_its_reference(name):
    settings = Settings(epochs=2, batch_size=16, optimizer=name, lr=0.01, weight_decay=0.0, schedule="constant")
    data, method = Pairs(), Regression()
    trained = fit(Regression(), data, settings, seed=4, accelerator="cpu")
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = kind(method.parameters(), lr=0.01, weight_decay=0.0, **extra)
    loader = data.loader({"image": 1, "audio": 1}, batch_size=16, seed=4)
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            method.training_step(batch).total.backward()
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(trained.parameters(), method.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_parameters_may_get_their_first_gradients_in_different_steps(name):
    settings = Settings(epochs=2, batch_size=16, optimizer=name, lr=0.01, weight_decay=0.0, schedule="constant")
    data, method = Pairs(), Alternating()
    trained = fit(Alternating(), data, settings, seed=4, accelerator="cpu")
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
    extra = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = kind(method.parameters(), lr=0.01, weight_decay=0.0, fused=False, **extra)
    loader = data.loader(method.inputs(), batch_size=16, seed=4)
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            for losses in method.training_steps(batch):
                losses.total.backward()
                optimizer.step()
                optimizer.zero_grad()
    for ours, theirs in zip(trained.parameters(), method.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_alternation_with_momentum_resumes(tmp_path):
    """What each parameter has gathered is in the checkpoint, for those that have had no gradient too."""
    settings = Settings(epochs=2, batch_size=16, optimizer="sgd", lr=0.01, checkpoint_every=1)
    whole = fit(Alternating(), Pairs(), settings, seed=4, accelerator="cpu")
    for stop in (True, False):
        method = Alternating()
        with pytest.raises(Interrupted) if stop else contextlib.nullcontext():
            fit(method, Pairs(), settings, seed=4, accelerator="cpu", folder=tmp_path, stop=lambda stop=stop: stop)
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), whole.parameters(), strict=True))


class Pictures(Regression):
    """It convolves; weights have their channels last, and gradients too unless a hook puts others there."""

    def __init__(self, *, last=True, projected=False):
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 6, 3, padding=1), nn.Flatten())
        self.projected = projected
        if last:
            channels_last(self)

    def after_backward(self):
        for parameter in self.parameters() if self.projected else ():
            parameter.grad = parameter.grad.contiguous()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_layouts_in_memory_do_not_change_a_step(name, tmp_path):
    """Fused kernels go through memory in its order; a checkpoint, or a hook, may have another than the weights."""
    how = {"data": Pairs(), "settings": Settings(epochs=2, batch_size=16, optimizer=name, lr=0.01), "seed": 4}
    whole = fit(Pictures(last=False), **how, accelerator="cpu")
    asked = iter(range(1, 9))
    with pytest.raises(Interrupted):
        fit(Pictures(last=False), **how, accelerator="cpu", folder=tmp_path, stop=lambda: next(asked) == 3)
    resumed = fit(Pictures(), **how, accelerator="cpu", folder=tmp_path)
    hooked = fit(Pictures(projected=True), **how, accelerator="cpu")
    for found in (resumed, hooked):
        for one, other in zip(found.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
