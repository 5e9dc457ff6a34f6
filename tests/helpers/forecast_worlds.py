"""Worlds for the forecast: a share of a latent, encoders trained by SimCLR, and the gain that came true.

Numbers are those of the first study: 1500 pairs, MLP 64-128-128-64, 400 steps of SimCLR, 300 of distillation.
"""

from dataclasses import dataclass

import numpy as np
import torch

from crossdistill.data.synthetic import shared_latent
from crossdistill.diagnostics.forecast import forecast_gain
from crossdistill.diagnostics.pilot import pilot_student
from crossdistill.diagnostics.ridge import standardised
from crossdistill.evaluation import balanced_accuracy, linear_probe
from crossdistill.networks import MLP
from crossdistill.objectives.ntxent import nt_xent

DRAWS = 6
"""Draws of the labels that a realised gain is a mean of."""


def self_supervised(x, pairs, *, steps=400, batch=250, noise=0.5, drop=0.2, tau=0.2, seed=0):
    """Train an MLP by SimCLR on the first `pairs` rows of (n, d); noise and dropout of features; embed all rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, head = MLP((x.shape[1],)), torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        head.append(torch.nn.Linear(64, 64))
        optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=1e-3, fused=True)
        rows = torch.from_numpy(np.asarray(x, dtype=np.float32))
        for _ in range(steps):
            chosen = rows[torch.randperm(pairs)[:batch]]
            views = [(chosen + noise * torch.randn_like(chosen)) * (torch.rand_like(chosen) > drop) for _ in range(2)]
            loss = nt_xent(*(head(net(view)) for view in views), tau=tau)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    net.eval()
    with torch.no_grad():
        return net(rows).double().numpy()


@dataclass
class Pairs:
    """Standardised target features, teacher and target-SSL embeddings of all rows; the first `pairs` are unlabelled."""

    x: np.ndarray
    teacher: np.ndarray
    ssl: np.ndarray
    label: np.ndarray
    pairs: int

    def draw(self, k, seed):
        """Draw k labelled pairs a class."""
        rng = np.random.default_rng(seed)
        classes = np.unique(self.label)
        rows = self.label[: self.pairs]
        return np.concatenate([rng.permutation(np.flatnonzero(rows == c))[:k] for c in classes])

    def known(self, k, seed):
        """Give what the forecast takes: target, teacher, labels, index."""
        index = self.draw(k, seed)
        return self.x[: self.pairs], self.teacher[: self.pairs], self.label[index], index

    def forecast(self, k, draw, proxy):
        """Forecast from one draw of labels."""
        return forecast_gain(*self.known(k, draw), ssl=self.ssl[: self.pairs], proxy=proxy)

    def realised(self, k, *, seed=0, draws=DRAWS, steps=300):
        """Train a student and give its gain on the test rows, a mean over draws of the labels."""
        rest = np.arange(self.pairs, len(self.x))
        student = pilot_student(self.x, self.teacher, leave_out=rest, steps=steps, seed=100 + seed)
        raw, ssl, found = (
            np.mean([self.score(rows, k, 1000 + draw) for draw in range(draws)]) for rows in (self.x, self.ssl, student)
        )
        return found - max(raw, ssl)

    def score(self, rows, k, seed):
        """Probe an embedding with k labels a class: balanced accuracy on the test rows."""
        index = self.draw(k, seed)
        answers = linear_probe(rows[index], self.label[index]).predict(rows[self.pairs :])
        return balanced_accuracy(self.label[self.pairs :], answers)


def shared(rho, *, seed=0, n_pairs=1500, n_test=1000, steps=400, teacher=None):
    """Give a world of `shared_latent`; its teacher depends on the seed alone, and may be handed over."""
    world = shared_latent(rho=rho, n_pairs=n_pairs, n_test=n_test, n_validation=0, seed=seed)
    a, b = (standardised(np.asarray(world.columns.arrays[name], dtype=np.float64)) for name in ("a", "b"))
    teacher = self_supervised(a, n_pairs, steps=steps, seed=seed) if teacher is None else teacher
    return Pairs(b, teacher, self_supervised(b, n_pairs, steps=steps, seed=seed + 50), np.asarray(world.label), n_pairs)
