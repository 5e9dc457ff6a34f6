"""What the experiments of CMCD share: networks, training, evaluation; every number of the protocol stands here once.

    teacher   SimCLR on the source, tau 0.2, head 64-64-64; then frozen, in eval mode, on samples without augmentation
    student   MLP, 128-128-64 with batch norm, distilled from the teacher's 64 features on unlabelled pairs; no head
    score     logistic regression, C = 10, on features of unit length, fitted to a few labels; accuracy on the test, %,
              a mean over ten draws of the labels

All training is Adam at 1e-3, constant, without weight decay. Students of one seed start from the same weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill.data import PairedDataset, build_transforms
from crossdistill.evaluation import accuracy, embed, fine_tune, linear_probe
from crossdistill.methods import Distillation, SimCLR, Supervised
from crossdistill.networks import MLP
from crossdistill.objectives import Objective, kernel_distances, unit
from crossdistill.training import Settings, TeacherStore, fit

DRAWS = 10
"""Draws of the labelled samples that each score is a mean of: which samples have labels matters more than the loss."""

Draws = Sequence[PairedDataset]

GROUP = 64
"""Held-out pairs in a group: part of the definition of TV, with tau = 0.1."""


def settings(epochs: int, batch_size: int) -> Settings:
    """Adam at a constant 1e-3 without weight decay."""
    return Settings(
        epochs=epochs, batch_size=batch_size, optimizer="adam", lr=1e-3, schedule="constant", weight_decay=0.0
    )


@contextlib.contextmanager
def drawn_from(seed: int) -> Generator[None]:
    """Make weights that are drawn here depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def encoder(data: PairedDataset, modality: str, start: int) -> MLP:
    """Build the one encoder of these experiments, from the weights that `start` decides."""
    with drawn_from(start):
        return MLP(data.modality(modality).shape, hidden=(128, 128), dim=64, norm=True)


def augmented(data: PairedDataset, specs: Mapping[str, list[dict[str, Any]]]) -> PairedDataset:
    """Give a view whose loaders augment the modalities named."""
    return data.augmented({name: build_transforms(spec, data.modality(name)) for name, spec in specs.items()})


def self_supervised(
    net: nn.Module, data: PairedDataset, modality: str, *, epochs: int, batch_size: int, seed: int
) -> nn.Module:
    """Train an encoder by SimCLR on one modality, which the data augment."""
    with drawn_from(seed):  # its head is random
        method = SimCLR(net, modality=modality, tau=0.2, embedding=64)
    fit(method, data, settings(epochs, batch_size), seed=seed, accelerator="cpu")
    return method.student(modality)


def distilled(
    net: nn.Module,
    teacher: nn.Module,
    data: PairedDataset,
    objectives: Mapping[str, Objective],
    *,
    source: str,
    target: str,
    epochs: int,
    batch_size: int,
    seed: int,
    store: TeacherStore | None = None,
) -> nn.Module:
    """Distil a frozen teacher into an encoder of the target; data augment the target alone."""
    method = Distillation(net, teacher=teacher, objectives=objectives, source=source, target=target, projector="none")
    fit(method, data, settings(epochs, batch_size), seed=seed, store=store, accelerator="cpu")
    return method.student(target)


def samples(data: PairedDataset, modality: str) -> Tensor:
    """Give all samples of a modality, (n, *shape) float32."""
    return torch.cat(list(data.samples(modality)))


def features(net: nn.Module, data: PairedDataset, modality: str) -> np.ndarray:
    """Give an encoder's features (n, 64) of a data set."""
    return embed(net, data.samples(modality))


def labels(data: PairedDataset) -> np.ndarray:
    """Give the labels (n,), which all worlds have."""
    assert data.label is not None
    return data.label


def probed(net: nn.Module, draws: Draws, test: PairedDataset, modality: str) -> float:
    """Linear evaluation: the accuracy of the probe on the encoder's features, %, a mean over draws of labels."""
    x, y = features(net, test, modality), labels(test)
    probes = [linear_probe(features(net, labelled, modality), labels(labelled)) for labelled in draws]
    return 100 * float(np.mean([accuracy(y, probe.predict(x)) for probe in probes]))


def raw(draws: Draws, test: PairedDataset, modality: str) -> float:
    """The same logistic regression on the numbers themselves, which are not scaled to unit length."""
    x, y = samples(test, modality).flatten(1), labels(test)
    probes = [linear_probe(samples(d, modality).flatten(1), labels(d), normalise=False) for d in draws]
    return 100 * float(np.mean([accuracy(y, probe.predict(x)) for probe in probes]))


def tuned(net: nn.Module, draws: Draws, test: PairedDataset, modality: str, *, seed: int) -> float:
    """Fine-tuning as one first tries it: 60 steps at 1e-3 on all labels at once, a random head, batch norms moving."""
    found: list[float] = []
    for labelled in draws:
        with drawn_from(seed):
            head = nn.Linear(64, 10)
        both = fine_tune(
            net,
            head,
            samples(labelled, modality),
            labels(labelled),
            steps=60,
            lr=1e-3,
            head_lr=1e-3,
            seed=seed,
            frozen_norm=False,
        )
        found.append(_judged(nn.Sequential(*both), test, modality))
    return float(np.mean(found))


def from_scratch(net: nn.Module, draws: Draws, test: PairedDataset, modality: str, *, steps: int, seed: int) -> float:
    """Supervised training on the labels alone, all of them in each step."""
    found: list[float] = []
    for labelled in draws:
        with drawn_from(seed):
            method = Supervised(copy.deepcopy(net), modality=modality, classes=10)
        fit(method, labelled, settings(steps, len(labelled)), seed=seed, labels=True, accelerator="cpu")
        assert method.network.head is not None
        found.append(_judged(nn.Sequential(method.student(modality), method.network.head), test, modality))
    return float(np.mean(found))


def _judged(classifier: nn.Module, test: PairedDataset, modality: str) -> float:
    return 100 * accuracy(labels(test), embed(classifier, test.samples(modality)).argmax(axis=1))


def fill_norms(net: nn.Module, data: PairedDataset, modality: str, batch_size: int) -> nn.Module:
    """Fill an untrained network's batch-norm statistics: one pass over clean samples, in order, in training mode.

    With torch's momentum of 0.1 and k batches the statistics are then 1 - 0.9^k of the way from (0, 1): 47 % for six.
    """
    net.train()
    with torch.no_grad():
        for batch in data.samples(modality, batch_size):
            net(batch)
    return net.eval()


def groups(*features: np.ndarray) -> Iterator[tuple[Tensor, ...]]:
    """Cut arrays (n, d) of the same pairs into groups of `GROUP`; what does not fill one is left out."""
    for start in range(0, len(features[0]) - GROUP + 1, GROUP):
        yield tuple(torch.from_numpy(array[start : start + GROUP]) for array in features)


def total_variation(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over groups of the total variation of the two similarity kernels at tau = 0.1, in [0, 1]."""
    return float(np.mean([float(kernel_distances(s, t, tau=0.1)["tv"]) for s, t in groups(student, teacher)]))


def vote_errors(net_features: np.ndarray, label: np.ndarray) -> list[float]:
    """Error of the kernel's vote in each group: the mass that a sample's kernel (tau = 0.1) gives to other classes."""
    errors: list[float] = []
    for (z,), start in zip(groups(net_features), range(0, len(label), GROUP), strict=False):
        y = torch.from_numpy(label[start : start + GROUP])
        logits = unit(z.double()) @ unit(z.double()).T / 0.1
        kernel = logits.fill_diagonal_(-torch.inf).softmax(dim=1)
        errors.append(float((kernel * (y[:, None] != y[None, :])).sum(dim=1).mean()))
    return errors
