"""MIND on two views; run it with `python -m benchmarks.fidelity.mind [--seeds 10]`.

300 pairs of six classes for the student (20-32-16, linear heads, Adam 2e-3, decay 1e-4, batches of 64, 60 epochs), and
2000 more samples of each view for its three teachers (two hidden layers of 64, 128 or 256, 25 epochs). Compared with
joint fusion by one head, whose missing view is zeros, and with many heads and no teacher. Then the same with five
labels, each true of three classes, and binary losses; macro AUROC. And, at twice the epochs, teachers that are trained
on the student's own pairs in the first half, of its width and wider, against many heads for as long.

References are of an implementation of another hand with other random numbers. Its last batch of an epoch was kept and
ours is dropped (4 batches an epoch, not 5), and its decay may have held biases too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from benchmarks.cmcd.protocol import drawn_from, samples
from benchmarks.fidelity.two_views import CLASSES, VIEWS, TwoViews, encoders, right, supervised
from benchmarks.record import Reference, at_least, difference, keep, row, run_seeds, seeds_from
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from crossdistill.data import PairedDataset
from crossdistill.evaluation import embed
from crossdistill.methods.mind import MIND
from crossdistill.training import Settings, UserData, fit

COMMON: dict[str, Any] = {"batch_size": 64, "optimizer": "adam", "lr": 2e-3, "schedule": "constant"}
STUDENT = Settings(epochs=60, **COMMON)
TEACHER = Settings(epochs=25, **COMMON)
OWN: Mapping[str, Mapping[str, Any]] = {
    "twice as long, many heads": {"teacher_weight": 0.0},
    "own teachers of its width": {"widths": (1, 1, 1)},
    "own teachers 2, 4, 8 times as wide": {"widths": (2, 4, 8)},
}
LABELS = 5
STUDENTS: Mapping[str, Mapping[str, float]] = {
    "single head": {"unimodal_weight": 0.0, "teacher_weight": 0.0},
    "many heads": {"teacher_weight": 0.0},
    "MIND": {},
    "MIND, fusion taught too": {"fused_teacher_weight": 1.0},
}
REFERENCE = {
    "single head": {"fused": 92.6, "A": 77.8, "V": 50.0, "probe of A": 83.9, "probe of V": 74.7},
    "many heads": {"fused": 93.7, "A": 84.4, "V": 82.6, "probe of A": 84.5, "probe of V": 83.9},
    "MIND": {"fused": 95.9, "A": 87.1, "V": 85.2, "probe of A": 86.1, "probe of V": 85.6},
    "MIND, fusion taught too": {"fused": 95.9, "A": 87.1, "V": 86.0, "probe of A": 86.3, "probe of V": 86.4},
    "small networks alone": {"A": 84.4, "V": 81.4},
    "teachers": {"fused": 97.6, "A": 86.6, "V": 88.5},
    "labels, single head": {"fused": 94.5, "A": 87.8, "V": 83.3},
    "labels, many heads": {"fused": 95.2, "A": 88.4, "V": 87.8},
    "labels, MIND": {"fused": 96.9, "A": 90.9, "V": 91.2},
    "labels, teachers": {"A": 90.3, "V": 93.9},
}


class Labelled(Dataset):
    """Pairs with five labels a row instead of a class."""

    def __init__(self, pairs: PairedDataset, members: np.ndarray) -> None:
        self.columns = {view: samples(pairs, view) for view in VIEWS}
        self.columns["label"] = torch.from_numpy(members[pairs.label])

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return {name: column[k] for name, column in self.columns.items()}


def loader(pairs: PairedDataset, members: np.ndarray) -> UserData:
    """Give batches with labels."""
    return UserData(DataLoader(Labelled(pairs, members), batch_size=64, shuffle=True, drop_last=True))


@torch.no_grad()
def logits_of(method: MIND, world: TwoViews, *, zeros: bool) -> dict[str, Tensor]:
    """Give the test's logits from both views and from each; with `zeros` the head for all gets a missing view's so."""
    net, x = method.network.eval(), world.inputs()
    found = {"fused": net.predict(x)}
    for view in VIEWS:
        z = {other: net.encoders[other](x[other]) * float(other == view) for other in VIEWS}
        found[view] = net.fusion(torch.cat(list(z.values()), dim=1)) if zeros else net.predict({view: x[view]})
    return found


def student(
    world: TwoViews,
    seed: int,
    data: Any,
    teachers: Mapping[str, Any] | None,
    *,
    settings: Settings = STUDENT,
    **how: Any,
) -> MIND:
    """Train a student of one start."""
    with drawn_from(seed):
        method = MIND(encoders(100 + seed, (32,), 16), teachers=teachers, **how)
    fit(method, data, settings, seed=seed, labels=True, accelerator="cpu")
    return method


def run_classes(seed: int) -> dict[str, float]:
    """Run the rows of one class a sample."""
    world = TwoViews({"A": 1.6, "V": 1.3}, seed, pairs=300)
    more = world.draw(2000)
    teachers: dict[str, list[nn.Module]] = {view: [] for view in VIEWS}
    for k, width in enumerate((64, 128, 256)):
        for view, net in encoders(200 + 10 * seed + k, (width,), width).items():
            big = nn.Sequential(net, nn.ReLU())
            big.dim = width
            teachers[view].append(supervised(big, more, view, TEACHER, seed=seed))
    found: dict[str, float] = {}
    for name, weights in STUDENTS.items():
        method = student(world, seed, world.train, teachers, classes=CLASSES, **weights)
        for what, logits in logits_of(method, world, zeros=name == "single head").items():
            found[f"{name}: {what}"] = right(logits, world.test)
        for view in VIEWS:
            z, t = (embed(method.student(view), data.samples(view)) for data in (world.train, world.test))
            probe = RidgeClassifier().fit(z, world.train.label).score(t, world.test.label)
            found[f"{name}: probe of {view}"] = 100 * float(probe)
    with torch.no_grad():
        for view, net in encoders(100 + seed, (32,), 16).items():
            with torch.enable_grad():
                net = supervised(net, world.train, view, STUDENT, seed=seed)
            found[f"small networks alone: {view}"] = right(net(world.inputs()[view]).logits, world.test)
        each = {view: method.ensembles[view](x).logits for view, x in world.inputs().items()}
    each["fused"] = each["A"] + each["V"]
    for name, how in OWN.items():
        twice = dataclasses.replace(STUDENT, epochs=2 * STUDENT.epochs)
        own = student(world, seed, world.train, None, settings=twice, classes=CLASSES, **how)
        with torch.no_grad():
            logits = logits_of(own, world, zeros=False)
        found |= {f"{name}: {what}": right(z, world.test) for what, z in logits.items()}
    return found | {f"teachers: {what}": right(logits, world.test) for what, logits in each.items()}


def run_labels(seed: int) -> dict[str, float]:
    """Run the rows of five labels a sample."""
    world = TwoViews({"A": 2.2, "V": 1.6}, 1000 + seed, pairs=300)
    members = np.stack([np.isin(np.arange(CLASSES), world.random.permutation(CLASSES)[:3]) for _ in range(LABELS)], 1)
    members = members.astype(np.int64)
    truth, more = members[world.test.label], loader(world.draw(2000), members)
    how: dict[str, Any] = {"classes": LABELS, "task": "multilabel"}

    def score(logits: Tensor) -> float:
        return 100 * float(roc_auc_score(truth, logits.numpy(), average="macro"))

    teachers: dict[str, list[nn.Module]] = {view: [] for view in VIEWS}
    for k, width in enumerate((64, 128, 256)):
        for view, net in encoders(200 + 10 * seed + k, (width,), width).items():
            big = nn.Sequential(net, nn.ReLU())
            big.dim = width
            with drawn_from(seed):  # of one view and no teacher it is plain training
                method = MIND({view: big}, teacher_weight=0.0, fused_weight=0.0, **how)
            fit(method, more, TEACHER, seed=seed, labels=True, accelerator="cpu")
            teachers[view].append(method.as_teacher(view).eval())
    found: dict[str, float] = {}
    for name in ("single head", "many heads", "MIND"):
        method = student(world, seed, loader(world.train, members), teachers, **STUDENTS[name], **how)
        for what, logits in logits_of(method, world, zeros=name == "single head").items():
            found[f"labels, {name}: {what}"] = score(logits)
    with torch.no_grad():
        for view, x in world.inputs().items():
            found[f"labels, teachers: {view}"] = score(method.ensembles[view](x).logits)
    return found


def run(seed: int) -> dict[str, float]:
    """Run all rows for one seed."""
    return run_classes(seed) | run_labels(seed)


def main() -> None:
    seeds = seeds_from(__doc__ or "", 10)
    found = run_seeds(run, seeds)
    reference = {f"{name}: {what}": Reference(value, seeds=5) for name, scores in REFERENCE.items()
                 for what, value in scores.items()}  # fmt: skip

    def above(first: str, second: str, what: str, bar: float, place: str = "") -> Any:
        values = difference(found, f"{place}{first}: {what}", f"{place}{second}: {what}")
        return at_least(f"{place}{first} above {second}, {what}", values, bar)

    checks = [
        above("many heads", "single head", "fused", 0.0),
        above("MIND", "single head", "fused", 1.5),
        above("MIND", "single head", "V", 20.0),
        above("MIND", "many heads", "fused", 0.5),
        *(above("MIND", "many heads", view, 0.0) for view in VIEWS),
        above("MIND", "many heads", "fused", 0.8, "labels, "),
        *(above("MIND", "many heads", view, 1.0, "labels, ") for view in VIEWS),
        above("many heads", "single head", "V", 2.0, "labels, "),
    ]
    rows = [row(name, values, reference.get(name)) for name, values in found.items()]
    keep("fidelity", "mind", "MIND on two views; accuracy, %, and with five labels macro AUROC, %", seeds, rows, checks)


if __name__ == "__main__":
    main()
