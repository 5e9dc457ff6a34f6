"""Pairs of small pictures and two small CNNs, for objectives that read feature maps."""

import numpy as np
import pytest
import torch
from torch import nn

from crossdistill.data import Modality, PairedDataset
from crossdistill.errors import Interrupted
from crossdistill.methods import Distillation
from crossdistill.networks import CNN, Network
from crossdistill.training import Settings, fit

SETTINGS = Settings(epochs=2, batch_size=16, lr=0.01, checkpoint_every=1)  # 3 steps an epoch, 6 in all


def pairs(n=48, side=8):
    """Colour pictures, and their noisy grey ones: places correspond."""
    rng = np.random.default_rng(0)
    rich = rng.normal(size=(n, 3, side, side)).cumsum(axis=2).astype("float32")
    poor = (rich.mean(axis=1, keepdims=True) + 0.3 * rng.normal(size=(n, 1, side, side))).astype("float32")
    modalities = {
        name: Modality(name=name, kind="image", shape=x.shape[1:]) for name, x in (("rich", rich), ("poor", poor))
    }
    return PairedDataset({"rich": rich, "poor": poor}, modalities, name="pictures")


def pictures(objectives, *, blocks=(1, 1), width=4, **how):
    """A student of 4 channels and more, a teacher of `width` and more whose batch norms have seen data."""
    torch.manual_seed(3)
    learner = CNN((1, 8, 8), width=4, blocks=blocks, stem_stride=1, dim=6)
    body = CNN((3, 8, 8), width=width, blocks=blocks, stem_stride=1, dim=6)
    with torch.no_grad():
        body(torch.randn(16, 3, 8, 8))
    teacher = Network(body, projector=nn.Linear(6, 5), head=nn.Linear(6, 4))
    return Distillation(learner, teacher=teacher, objectives=objectives, source="rich", target="poor", **how)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def train(method, folder=None, settings=SETTINGS, **how):
    return fit(method, pairs(), settings, seed=5, folder=folder, accelerator="cpu", held_out=pairs(20), **how)


def check_stopped_and_resumed(build, folder, settings=SETTINGS):
    """Train whole, and stopped after each of some steps and resumed: the same bits, in a teacher that stays."""
    whole = build()
    teacher, start = state(whole.teacher), state(whole.network)
    train(whole, folder / "whole", settings)
    assert same(state(whole.teacher), teacher)
    assert not same(state(whole.network), start)
    for step in (1, 4):
        calls = []
        with pytest.raises(Interrupted):
            train(
                build(),
                folder / f"{step}",
                settings,
                stop=lambda calls=calls, step=step: calls.append(0) or len(calls) == step,
            )
        assert same(state(train(build(), folder / f"{step}", settings)), state(whole))
    return whole
