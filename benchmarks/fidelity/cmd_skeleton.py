"""Neighbours one way, the acceptance test of skeleton CMD; run it with `python -m benchmarks.fidelity.cmd_skeleton`.

Digits of 8 x 8 pixels (scikit-learn). The teacher sees the whole clean picture, was trained on the labels of 1280, and
is frozen; the student sees the left half with noise 0.3, and no label. 20 epochs, batches of 64, SGD at 0.05, queues of
512. Read-out on the student's hidden layer (128, our choice): 10 nearest of the 1280, and a linear probe on 50 labels,
both on noisy halves.

The reference does not say when its noise was drawn, and everything hangs on that:

    drawn once   each picture has one noise, so that MoCo's two views are equal
    drawn anew   for each view, as an augmentation

We first ran "anew" alone, as MoCo needs two views: both bars were missed, with a momentum of 0.99 and of 0.999 alike.
Looking for the cause we found that "once" gives the reference's figures for MoCo and for neighbours. So that world was
chosen after the fact; the bars are held against both, and where they are missed they are missed: over a MoCo that has
real views the gain is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from benchmarks.cmcd.protocol import drawn_from
from benchmarks.record import Reference, at_least, difference, keep, row, run_seeds, seeds_from
from sklearn.datasets import load_digits
from torch import Tensor, nn

from crossdistill.data import Modality, PairedDataset, build_transforms
from crossdistill.evaluation import accuracy, embed, knn_predict, linear_probe
from crossdistill.methods import Batch, Distillation, Losses, Method, Supervised, freeze
from crossdistill.methods.cmd_skeleton import CMDSkeleton
from crossdistill.networks import MLP
from crossdistill.objectives import Cosine, CrossModalContrastive, Objective
from crossdistill.objectives.neighbours import Neighbours
from crossdistill.registry import Facts
from crossdistill.training import Settings, fit

TRAIN, NOISE, QUEUE, LABELS = 1280, 0.3, 512, 5
SETTINGS = Settings(
    epochs=20, batch_size=64, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=0.0, schedule="constant"
)
ALONE, FASTER, ONE_WAY = "MoCo on the poor modality alone", "MoCo, momentum .99", "neighbours"
ANEW = (ALONE, FASTER, ONE_WAY, "both summed", "cross-modal InfoNCE", "squared distance")
"""Rows of the world whose noise is drawn anew."""
# 10-NN and probe, % with standard deviations, noise drawn once as far as we can tell
FIGURES = {
    "random weights": ((49.5, 1.5), (35.7, 1.5)),
    ALONE: ((56.9, 0.8), (39.7, 2.6)),
    ONE_WAY: ((64.6, 1.5), (54.5, 2.4)),
    FASTER: None,
    "both summed": ((61.1, 1.7), (46.0, 2.2)),
    "cross-modal InfoNCE": ((64.3, 1.2), (56.0, 2.2)),
    "squared distance": ((65.4, 2.0), (56.5, 3.5)),
    "neighbours, taus .1 .1": ((64.7, 0.1), (54.7, 4.6)),
    "neighbours, teacher's tau .002": ((63.1, 2.0), (54.2, 4.5)),
    "neighbours, taus .1 .05": ((64.3, 2.1), (54.5, 5.2)),
}


def objectives() -> dict[str, Objective]:
    """Give the losses between student and teacher, one a row."""
    return {
        ONE_WAY: Neighbours(QUEUE),
        "cross-modal InfoNCE": CrossModalContrastive(0.1, symmetric=False),
        "squared distance": Cosine(),
        "neighbours, taus .1 .1": Neighbours(QUEUE, tau_teacher=0.1),
        "neighbours, teacher's tau .002": Neighbours(QUEUE, tau_teacher=0.002),
        "neighbours, taus .1 .05": Neighbours(QUEUE, tau_teacher=0.1, tau_student=0.05),
    }


class Hidden(nn.Module):
    """A hidden layer of 128: the student's encoder, whose embedding of 32 is a linear layer on it."""

    dim = 128

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 128), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Encode (b, width)."""
        return self.layers(x)


class Both(Method):
    """Contrast within the poor modality, and neighbours from the teacher, summed."""

    facts: ClassVar[Facts] = Facts(name="both", title="contrast and neighbours", paper="ours")

    def __init__(self, encoder: Hidden, teacher: nn.Module) -> None:
        super().__init__()
        self.contrast = moco(encoder)
        self.teacher, self.near, self.projector = freeze(teacher), Neighbours(QUEUE), nn.Linear(128, 32)

    def inputs(self) -> Mapping[str, int]:
        """One clean picture, two noisy halves."""
        return {"rich": 1, "poor": 2}

    def student(self, modality: str) -> nn.Module:
        """Give the encoder."""
        return self.contrast.student(modality)

    def teachers(self) -> Mapping[str, nn.Module]:
        """The frozen one."""
        return {"rich": self.teacher}

    def training_step(self, batch: Batch) -> Losses:
        """Add both losses."""
        z = self.projector(self.student("poor")(batch["poor"]))
        near = self.near(z, self.teacher_outputs(batch, "rich").features)
        return Losses({**self.contrast.training_step(batch).terms, "neighbours": near})

    def after_step(self) -> None:
        """Let the key encoder follow."""
        self.contrast.after_step()


def moco(encoder: nn.Module, momentum: float = 0.999) -> CMDSkeleton:
    """Give skeleton CMD with one modality, which is MoCo."""
    return CMDSkeleton({"poor": encoder}, queue_size=QUEUE, embedding=32, momentum=momentum)


def world(seed: int) -> tuple[PairedDataset, PairedDataset, PairedDataset]:
    """Give training pairs with noise drawn anew by the loader, the same with noise drawn once, and test pairs so."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    x, y = (x[order] / 16).astype("float32"), y[order]
    half = x.reshape(-1, 8, 8)[:, :, :4].reshape(-1, 32)
    noisy = half + NOISE * rng.normal(size=half.shape).astype("float32")

    def pairs(poor: np.ndarray, rows: slice) -> PairedDataset:
        modalities = {m: Modality(name=m, kind="vector", shape=(d,)) for m, d in (("rich", 64), ("poor", 32))}
        return PairedDataset({"rich": x[rows], "poor": poor[rows]}, modalities, name="digits", label=y[rows])

    train = pairs(half, slice(TRAIN))
    noise = build_transforms([{"noise": {"std": NOISE}}], train.modality("poor"))
    return train.augmented({"poor": noise}), pairs(noisy, slice(TRAIN)), pairs(noisy, slice(TRAIN, None))


def scores(encoder: nn.Module, gallery: PairedDataset, test: PairedDataset, seed: int) -> tuple[float, float]:
    """Give 10-NN and probe, %."""
    known, x = embed(encoder, gallery.samples("poor")), embed(encoder, test.samples("poor"))
    label, y = gallery.label, test.label
    assert label is not None
    assert y is not None
    rng = np.random.default_rng(seed)
    few = np.concatenate([rng.choice(np.flatnonzero(label == c), LABELS, replace=False) for c in range(10)])
    near = accuracy(y, knn_predict(known, label, x, k=10))
    return 100 * near, 100 * accuracy(y, linear_probe(known[few], label[few]).predict(x))


def built(name: str, encoder: Hidden, teacher: nn.Module) -> Method | None:
    """Give the method of a row; none for random weights."""
    if name == "random weights":
        return None
    if name in (ALONE, FASTER):
        return moco(encoder, 0.999 if name == ALONE else 0.99)
    if name == "both summed":
        return Both(encoder, teacher)
    return Distillation(
        encoder,
        teacher=teacher,
        objectives={"o": objectives()[name]},
        weights={"o": 2.0 if name == "squared distance" else 1.0},  # |u - v|^2 = 2 (1 - cos) of unit rows
        source="rich",
        target="poor",
        projector="linear",
    )


def run(seed: int) -> dict[str, float]:
    """Run all rows for one seed; all students start from the same weights."""
    train, gallery, test = world(seed)
    with drawn_from(seed):
        expert = Supervised(MLP((64,), hidden=(128,), dim=32), modality="rich", classes=10)
    fit(expert, train, SETTINGS, seed=seed, labels=True, accelerator="cpu")
    found: dict[str, float] = {}
    for when, data, names in (("once", gallery, FIGURES), ("anew", train, ANEW)):
        for name in names:
            with drawn_from(seed):
                encoder = Hidden()
                method = built(name, encoder, expert.student("rich"))
            if method is not None:
                fit(method, data, SETTINGS, seed=seed, accelerator="cpu")
            near, probe = scores(encoder.eval(), gallery, test, seed)
            found |= {f"{when}, 10-NN: {name}": near, f"{when}, probe: {name}": probe}
    return found


def main() -> None:
    seeds = seeds_from(__doc__ or "", 5)
    torch.set_num_threads(1)
    found = run_seeds(run, seeds)
    reference = {
        f"once, {way}: {name}": Reference(*figures[place])
        for name, figures in FIGURES.items()
        if figures is not None
        for place, way in enumerate(("10-NN", "probe"))
    }
    checks = [
        at_least(
            f"noise {when}, {way}: neighbours over MoCo",
            difference(found, f"{when}, {way}: {ONE_WAY}", f"{when}, {way}: {ALONE}"),
            bar,
        )
        for when in ("once", "anew")
        for way, bar in (("10-NN", 5), ("probe", 10))
    ]
    rows = [row(name, values, reference.get(name)) for name, values in found.items()]
    title = "Neighbours one way (skeleton CMD): digits, whole picture to noisy left half, accuracy, %"
    keep("fidelity", "cmd_skeleton", title, seeds, rows, checks, about=["neighbours"])


if __name__ == "__main__":
    main()
