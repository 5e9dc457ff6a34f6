"""A world of two views of six classes that MLA's and MIND's experiments share.

View A is its class's mean and noise. View V is its class's mean times a random sign, and noise: no linear function of
it says anything of the class, so whoever learns both at once leans on A.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from benchmarks.cmcd.protocol import drawn_from, samples
from torch import Tensor, nn

from crossdistill.data import Modality, PairedDataset
from crossdistill.methods import Supervised
from crossdistill.networks import MLP
from crossdistill.training import Settings, fit

CLASSES, WIDTH, TEST = 6, 20, 4000
VIEWS = ("A", "V")


class TwoViews:
    """The means of one seed, and draws of pairs from them.

    Args:
        noise: Standard deviation of the noise of each view.
        seed: Of the means and of all draws.
        pairs: How many train.
    """

    def __init__(self, noise: Mapping[str, float], seed: int, *, pairs: int) -> None:
        self.noise, self.random = noise, np.random.default_rng(seed)
        self.means = {view: self.random.normal(size=(CLASSES, WIDTH)) for view in VIEWS}
        self.test, self.train = self.draw(TEST), self.draw(pairs)

    def draw(self, n: int) -> PairedDataset:
        """Give n new pairs."""
        label = self.random.integers(0, CLASSES, n)
        sign = {"A": np.ones((n, 1)), "V": self.random.choice([-1.0, 1.0], (n, 1))}
        arrays = {
            view: (sign[view] * self.means[view][label] + self.noise[view] * self.random.normal(size=(n, WIDTH)))
            for view in VIEWS
        }
        modalities = {view: Modality(name=view, kind="vector", shape=(WIDTH,)) for view in VIEWS}
        return PairedDataset(
            {view: x.astype("float32") for view, x in arrays.items()}, modalities, name="two views", label=label
        )

    def inputs(self) -> dict[str, Tensor]:
        """Give the test samples of each view (n, 20)."""
        return {view: samples(self.test, view) for view in VIEWS}

    def broken(self) -> dict[str, Tensor]:
        """Give the test samples with V replaced by noise in a random half of them."""
        given, noise = self.inputs(), self.noise["V"] * self.random.normal(size=(TEST, WIDTH))
        half = torch.from_numpy(self.random.random((TEST, 1)) < 0.5)
        return given | {"V": torch.where(half, torch.from_numpy(noise.astype("float32")), given["V"])}


def encoders(seed: int, hidden: tuple[int, ...], dim: int) -> dict[str, nn.Module]:
    """Build both views' encoders, ReLU networks without norms, from the weights that the seed decides."""
    with drawn_from(seed):
        return {view: MLP((WIDTH,), hidden=hidden, dim=dim, norm=False) for view in VIEWS}


def supervised(net: nn.Module, data: PairedDataset, view: str, settings: Settings, *, seed: int) -> nn.Module:
    """Train one view's encoder and a head on labels; gives the network with the head."""
    with drawn_from(seed):
        method = Supervised(net, modality=view, classes=CLASSES)
    fit(method, data, settings, seed=seed, labels=True, accelerator="cpu")
    return method.as_teacher(view).eval()


def right(logits: Tensor, data: PairedDataset) -> float:
    """Accuracy of logits (n, c), %."""
    assert data.label is not None
    return 100 * float((logits.argmax(dim=1) == torch.from_numpy(data.label)).float().mean())
