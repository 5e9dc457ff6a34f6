"""Compiled networks train to the weights of plain ones, and are plain again afterwards."""

import pytest
import torch
from torch import nn
from worlds import Pairs, Teacher

from crossdistill.errors import ConfigError, TrainingError
from crossdistill.methods import Distillation
from crossdistill.networks import MLP, Network, Projector
from crossdistill.objectives import SimilarityDistillation
from crossdistill.training import Settings, fit

SHORT = {"epochs": 2, "batch_size": 8, "clip": 1.0}


class Bent(nn.Module):
    dim = 5

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return torch.relu(self.linear(x))


def distillation(encoder=None):
    torch.manual_seed(3)
    student = encoder or Network(MLP((4,), hidden=(8,), dim=5), projector=Projector(5))
    objectives = {"similarity": SimilarityDistillation()}
    return Distillation(student, teacher=Teacher(), objectives=objectives, source="image", target="audio")


def train(method, **settings):
    return fit(method, Pairs(), Settings(**SHORT, **settings), seed=1, accelerator="cpu")


def test_compiled_networks_train_to_the_same_weights(monkeypatch):
    seen = []
    own = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: (seen.append(type(self)), own(self, **how))[0])
    plain, other = train(distillation()), train(distillation(), compile="aot_eager")
    assert seen == [Teacher, Network]
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert all(part._compiled_call_impl is None for part in other.modules())


def test_a_backend_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"received 'inductr'.*inductor"):
        Settings(compile="inductr")
    with pytest.raises(ConfigError, match="leave one of them out"):
        Settings(compile="inductor", shard=True)


def test_what_cannot_be_compiled_is_said_with_the_cure():
    method = distillation(Bent())
    with pytest.raises(TrainingError, match=r"epoch 1, step 1.*relu_compile_error.*leave compile out"):
        train(method, compile="relu_compile_error_TESTING_ONLY")
    assert all(part._compiled_call_impl is None for part in method.modules())
