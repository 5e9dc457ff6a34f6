"""Losses between feature maps on halves of digits; run it with `python -m benchmarks.fidelity.maps [--seeds 3]`.

Scikit-learn's 8 x 8 digits teach their left halves under noise; the right halves are blank, so that places correspond.
900 pairs, 641 tests. Teacher and student are CNNs of one architecture. The teacher learns from the labels of all source
pictures; the student sees unlabelled pairs alone, then a probe on its features is fitted to 3 labels a class. The
target is augmented by noise and nothing that moves places, as these losses compare them. Map losses do not train the
layer behind the maps, which stays as it was drawn; "l2 + ..." trains it too.

No published figure exists for this protocol, so nothing is expected: what is measured is reported as it is.
"""

from __future__ import annotations

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

from crossdistill.data import Modality, PairedDataset, digits_views
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
from crossdistill.objectives.vid import VariationalInformation
from crossdistill.training import TeacherStore, fit

DRAWS = 10
"""Draws of the labelled samples that each score is a mean of."""

EPOCHS, BATCH = 40, 100

NOISE = [{"noise": {"std": 0.1}}]
MOVED = [
    {"affine": {"rotation": 10.0, "shift": 0.1, "scale": 0.1}},
    {"noise": {"std": 0.3}},
    {"erase": {"probability": 0.5, "size": 0.4}},
]
"""Augmentation of the target for self-supervision without a teacher, which may move places."""


def halves(seed: int) -> PairedDataset:
    """Give digits as pictures, and their left halves under noise of standard deviation 0.3."""
    data = digits_views(n_pairs=900, n_validation=256, seed=seed)
    image = data.raw("image", np.arange(len(data)))
    half = image + 0.3 * np.random.default_rng(seed).standard_normal(image.shape).astype(np.float32)
    half[..., 4:] = 0
    kinds = {name: Modality(name=name, kind="image", shape=(1, 8, 8), channels=("grey",)) for name in ("image", "half")}
    arrays = {"image": image, "half": half}
    return PairedDataset(arrays, kinds, name="halves", label=data.label, split=data.columns.split)


def objectives() -> dict[str, dict[str, Objective]]:
    """Give the losses that are compared: on the deepest maps, 4 x 4 with 16 channels, or on those of both blocks."""
    blocks = (("stages.0.0", "stages.0.0"), ("stages.0.1", "stages.0.1"))
    return {
        "l2": {"l2": L2()},
        "socket": {"socket": Socket()},
        "nst": {"nst": NeuronSelectivity()},
        "at": {"at": Attention()},
        "fsp": {"fsp": Flow(blocks)},
        "ft": {"ft": FactorTransfer()},
        "ft, places": {"ft": FactorTransfer(form="places")},
        "ab": {"ab": ActivationBoundaries()},
        "ab, connector": {"ab": ActivationBoundaries(connector="always")},
        "vid": {"vid": VariationalInformation("maps")},
        "nst, both blocks": {"nst": NeuronSelectivity(layers=blocks)},
        "at, both blocks": {"at": Attention(blocks)},
        "ab, both blocks": {"ab": ActivationBoundaries(layers=blocks)},
        "vid, both blocks": {"vid": VariationalInformation("maps", layers=blocks)},
        "l2 + nst": {"l2": L2(), "nst": NeuronSelectivity()},
        "l2 + at": {"l2": L2(), "at": Attention()},
    }


def encoder(start: int) -> nn.Module:
    """Build the one architecture, from the weights that `start` decides."""
    with drawn_from(start):
        return CNN((1, 8, 8), width=16, blocks=(2,), dim=64)


def taught(train: PairedDataset, seed: int) -> nn.Module:
    """Train the teacher on the labels of the source."""
    with drawn_from(seed):
        method = Supervised(encoder(1000 * seed + 77), modality="image", classes=10)
    noisy = augmented(train, {"image": NOISE})
    fit(method, noisy, settings(EPOCHS, BATCH), seed=seed, labels=True, accelerator="cpu")
    return method.student("image")


def run(seed: int) -> dict[str, float]:
    """Give the linear evaluation of every student for one seed, %."""
    data = halves(seed)
    train, test = data.split("train"), data.split("test")
    noisy = augmented(train, {"half": NOISE})
    draws = [train.subset(few_labels(labels(train), 3, DRAWS * seed + k)) for k in range(DRAWS)]
    teacher, store = taught(train, seed), TeacherStore()
    start, how = 1000 * seed + 1, {"epochs": EPOCHS, "batch_size": BATCH, "seed": seed}
    alone = self_supervised(encoder(start), augmented(train, {"half": MOVED}), "half", **how)
    found = {
        "raw numbers": raw(draws, test, "half"),
        "untrained": probed(fill_norms(encoder(start), train, "half", BATCH), draws, test, "half"),
        "from scratch": from_scratch(encoder(start), draws, test, "half", steps=60, seed=seed),
        "SSL on target": probed(alone, draws, test, "half"),
    }
    for name, losses in objectives().items():
        net = distilled(encoder(start), teacher, noisy, losses, source="image", target="half", **how, store=store)
        found[name] = probed(net, draws, test, "half")
    return found | {"teacher on source": probed(teacher, draws, test, "image")}


def main() -> None:
    seeds = seeds_from(__doc__ or "", 3)
    found = run_seeds(run, seeds)
    title = "Losses between feature maps, halves of digits; accuracy, %; no published reference, reported as it is"
    keep("fidelity", "maps", title, seeds, [row(name, values, None) for name, values in found.items()], [],
         about=["nst", "at", "fsp", "ft", "ab", "socket", "vid"])  # fmt: skip


if __name__ == "__main__":
    main()
