"""Losses between feature maps on pictures whose places correspond; run it with `python -m benchmarks.fidelity.maps`.

    digits   8 x 8 pictures teach their left halves under noise (the right halves are blank); 900 pairs, 641 tests
    emoji    colour drawings teach line drawings of the same symbols, 64 x 64; 567 pairs, 163 tests; it is left out
             where CROSSDISTILL_DATA does not hold the set

Teacher and student are CNNs of one architecture. The teacher learns from the labels of all source pictures; the student
sees unlabelled pairs alone, then a probe on its features is fitted to a few labels a class. The target is augmented by
noise and nothing that moves places, as these losses compare them. Map losses do not train the layer behind the maps,
which stays as it was drawn; "l2 + ..." trains it too.

No published figure exists for this protocol, so nothing is expected: what is measured is reported as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.cmcd.protocol import (
    augmented,
    distilled,
    drawn_from,
    fill_norms,
    from_scratch,
    labels,
    probed,
    raw,
    self_supervised,
    settings,
)
from benchmarks.record import keep, row, run_seeds, seeds_from
from torch import nn

from crossdistill.data import Modality, PairedDataset, digits_views, load
from crossdistill.evaluation import few_labels
from crossdistill.methods import Supervised
from crossdistill.networks import CNN
from crossdistill.objectives import L2, Objective
from crossdistill.objectives.ab import ActivationBoundaries
from crossdistill.objectives.at import Attention
from crossdistill.objectives.fsp import Flow
from crossdistill.objectives.ft import FactorTransfer
from crossdistill.objectives.nst import NeuronSelectivity
from crossdistill.objectives.socket import Socket
from crossdistill.training import TeacherStore, fit

DRAWS = 10
"""Draws of the labelled samples that each score is a mean of."""

MOVED = [
    {"affine": {"rotation": 10.0, "shift": 0.1, "scale": 0.1}},
    {"noise": {"std": 0.3}},
    {"erase": {"probability": 0.5, "size": 0.4}},
]
"""Augmentation of the target for self-supervision without a teacher, which may move places."""


@dataclass(frozen=True)
class Kind:
    """A data set and the sizes that suit it."""

    read: Callable[[int], PairedDataset]
    source: str
    target: str
    width: int
    blocks: tuple[int, ...]
    epochs: int
    batch_size: int
    per_class: int


def halves(seed: int) -> PairedDataset:
    """Give digits as pictures, and their left halves under noise of standard deviation 0.3."""
    data = digits_views(n_pairs=900, n_validation=256, seed=seed)
    image = data.raw("image", np.arange(len(data)))
    half = image + 0.3 * np.random.default_rng(seed).standard_normal(image.shape).astype(np.float32)
    half[..., 4:] = 0
    kinds = {name: Modality(name=name, kind="image", shape=(1, 8, 8), channels=("grey",)) for name in ("image", "half")}
    arrays = {"image": image, "half": half}
    return PairedDataset(arrays, kinds, name="halves", label=data.label, split=data.columns.split)


KINDS = {
    "digits": Kind(halves, "image", "half", width=16, blocks=(2,), epochs=40, batch_size=100, per_class=3),
    "emoji": Kind(
        lambda _: load("emoji"), "colour", "line", width=8, blocks=(1, 1, 2), epochs=15, batch_size=63, per_class=5
    ),
}


def objectives(last: int) -> dict[str, dict[str, Objective]]:
    """Give the losses that are compared; `last` is the last stage's number, inside which fsp's two layers are."""
    inside = tuple((f"stages.{last}.{block}",) * 2 for block in (0, 1))
    return {
        "l2": {"l2": L2()},
        "socket": {"socket": Socket()},
        "nst": {"nst": NeuronSelectivity()},
        "at": {"at": Attention()},
        "fsp": {"fsp": Flow(inside)},
        "ft": {"ft": FactorTransfer()},
        "ab": {"ab": ActivationBoundaries()},
        "l2 + nst": {"l2": L2(), "nst": NeuronSelectivity()},
        "l2 + at": {"l2": L2(), "at": Attention()},
    }


def encoder(kind: Kind, data: PairedDataset, modality: str, start: int) -> nn.Module:
    """Build the one architecture, from the weights that `start` decides."""
    with drawn_from(start):
        return CNN(data.modality(modality).shape, width=kind.width, blocks=kind.blocks, dim=64)


def taught(kind: Kind, data: PairedDataset, seed: int) -> nn.Module:
    """Train the teacher on the labels of the source."""
    net = encoder(kind, data, kind.source, 1000 * seed + 77)
    with drawn_from(seed):
        method = Supervised(net, modality=kind.source, classes=data.classes)
    noisy = augmented(data, {kind.source: [{"noise": {"std": 0.1}}]})
    fit(method, noisy, settings(kind.epochs, kind.batch_size), seed=seed, labels=True, accelerator="cpu")
    return method.student(kind.source)


def rows(kind: Kind, seed: int) -> dict[str, float]:
    """Give the linear evaluation of every student on one kind of data, %."""
    data = kind.read(seed)
    train, test = data.split("train"), data.split("test")
    noisy = augmented(train, {kind.target: [{"noise": {"std": 0.1}}]})
    draws = [train.subset(few_labels(labels(train), kind.per_class, DRAWS * seed + k)) for k in range(DRAWS)]
    teacher, store = taught(kind, train, seed), TeacherStore()
    how = {"epochs": kind.epochs, "batch_size": kind.batch_size, "seed": seed}

    def start() -> nn.Module:
        return encoder(kind, data, kind.target, 1000 * seed + 1)

    alone = self_supervised(start(), augmented(train, {kind.target: MOVED}), kind.target, **how)
    found = {
        "raw numbers": raw(draws, test, kind.target),
        "untrained": probed(fill_norms(start(), train, kind.target, kind.batch_size), draws, test, kind.target),
        "from scratch": from_scratch(start(), draws, test, kind.target, steps=60, seed=seed),
        "SSL on target": probed(alone, draws, test, kind.target),
    }
    ends = {"source": kind.source, "target": kind.target}
    for name, losses in objectives(len(kind.blocks) - 1).items():
        net = distilled(start(), teacher, noisy, losses, **ends, **how, store=store)
        found[name] = probed(net, draws, test, kind.target)
    return found | {"teacher on source": probed(teacher, draws, test, kind.source)}


def available() -> Mapping[str, Kind]:
    """Leave emoji out where the set is not there."""
    root = os.environ.get("CROSSDISTILL_DATA", "")
    there = bool(root) and (Path(root) / "emoji" / "emoji.npz").is_file()
    return {name: kind for name, kind in KINDS.items() if name != "emoji" or there}


def run(seed: int) -> dict[str, float]:
    """Run all kinds of data for one seed; names to accuracies in %."""
    return {f"{name}: {what}": value for name, kind in available().items() for what, value in rows(kind, seed).items()}


def main() -> None:
    seeds = seeds_from(__doc__ or "", 3)
    found = run_seeds(run, seeds)
    title = "Losses between feature maps; linear evaluation of the student with few labels, %, no published reference"
    kept = [row(name, values, None) for name, values in found.items()]
    keep("fidelity", "maps", title, seeds, kept, [], data=sorted(available()))


if __name__ == "__main__":
    main()
