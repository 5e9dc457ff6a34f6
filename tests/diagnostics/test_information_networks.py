"""Towers on two sides of pairs: written-out gradients and steps against those of torch."""

import numpy as np
import pytest
import torch
from torch import nn

from crossdistill.diagnostics import information_contrast, information_latent
from crossdistill.diagnostics.information_networks import DECAY, HIDDEN, RATE, SLOPE, AdamW, Tower, as_inputs


class TorchTower(nn.Module):
    """What a tower computes, by torch's modules."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear, self.last = nn.Linear(inputs, outputs), nn.Linear(HIDDEN, outputs)
        self.hidden = nn.Linear(inputs, HIDDEN)

    def forward(self, x):
        return self.linear(x) + self.last(nn.functional.leaky_relu(self.hidden(x), SLOPE))

    def as_matrices(self, gradient=False):
        """Weights, or gradients, as a tower holds them: biases below, the linear map left of the hidden units."""
        linear, last, hidden = (
            torch.cat([(m.weight.grad if gradient else m.weight).T, (m.bias.grad if gradient else m.bias)[None]])
            for m in (self.linear, self.last, self.hidden)
        )
        return torch.cat([linear, hidden], dim=1).detach().numpy(), last.detach().numpy()


def correlation_loss(f, g):
    f, g, freedom = f - f.mean(dim=0), g - g.mean(dim=0), len(f) - 1
    return ((f.T @ f / freedom) * (g.T @ g / freedom)).sum() / 2 - (f * g).sum() / freedom


def contrast_loss(f, g):
    scores = f[:, :-1] @ g[:, :-1].T + g[:, -1]
    return nn.functional.cross_entropy(scores, torch.arange(len(f))) - np.log(len(f))


LOSSES = [(information_latent._loss, correlation_loss), (information_contrast._loss, contrast_loss)]


@pytest.mark.parametrize(("loss", "by_torch"), LOSSES)
def test_losses_and_gradients_are_those_of_torch(loss, by_torch):
    torch.manual_seed(0)
    rng, outputs, ours, theirs, found, expected = np.random.default_rng(0), 4, [], [], [], []
    for inputs in (5, 3):
        weights, gradient = np.empty((2, Tower.size(np.zeros((inputs, outputs)))), dtype=np.float32)
        tower, reference = Tower(np.zeros((inputs, outputs)), weights, gradient), TorchTower(inputs, outputs)
        tower.first[:], tower.last[:] = reference.as_matrices()  # no map is zero, so that every gradient counts
        x = rng.normal(size=(50, inputs))
        ours.append((tower, *tower.trace(as_inputs(x))))
        theirs.append((reference, reference(torch.from_numpy(x).float())))
    known = by_torch(*(output for _, output in theirs))
    known.backward()
    value, gradients = loss(*(output for _, output, _ in ours))
    assert value == pytest.approx(known.item(), rel=1e-4)
    for (tower, output, backward), (reference, by_modules), of_output in zip(ours, theirs, gradients(), strict=True):
        backward(of_output)
        np.testing.assert_allclose(output, by_modules.detach().numpy(), atol=1e-5)
        found += [tower.gradient_of_first, tower.gradient_of_last]
        expected += reference.as_matrices(gradient=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6, rtol=1e-3)


def test_steps_are_those_of_torch():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=30).astype(np.float32)
    other = nn.Parameter(torch.from_numpy(weights.copy()))
    mine, theirs = AdamW(weights), torch.optim.AdamW([other], lr=RATE, weight_decay=DECAY)
    for _ in range(50):
        gradient = rng.normal(size=30).astype(np.float32)
        mine.step(gradient)
        other.grad = torch.from_numpy(gradient)
        theirs.step()
    np.testing.assert_allclose(weights, other.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_tower_begins_at_its_linear_map_and_reads_cut_inputs():
    start = np.random.default_rng(0).normal(size=(3, 2))
    weights, gradient = np.full((2, Tower.size(start)), np.nan, dtype=np.float32)
    tower = Tower(start, weights, gradient)
    x = np.array([[1.0, 2.0, -3.0], [50.0, 0.0, -50.0]])
    np.testing.assert_allclose(tower(as_inputs(x)), np.clip(x, -10, 10) @ start, rtol=1e-5)
    assert np.isfinite(weights).all()
    assert tower.first[:, 2:].std() > 0.1  # the hidden units differ, or they would stay alike
