import math

import pytest
import torch
from torch import nn
from worlds import Distil, Pairs, Regression, Small

from crossdistill.errors import TrainingError
from crossdistill.methods.base import Losses
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
