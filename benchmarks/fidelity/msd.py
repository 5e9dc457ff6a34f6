"""MSD: a student of 12 units with 200 labels; run it with `python -m benchmarks.fidelity.msd [--seeds 8]`.

Two modalities of 16 numbers each, four classes that depend on both and on their product. A teacher of two layers of 256
learns from 6000 labelled samples, with modality dropout and without; students of two layers of 12 from 200, for 60
epochs. Both are early fusion (the samples side by side), so blank features are blank inputs. The matrices' scale is our
guess (entries of variance 1/16): the sheet does not say it, and all levels hang on it. Reference figures are those of
an earlier prototype of ours, not of the paper, whose tables were not available to us.
"""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.record import Check, Reference, at_least, difference, keep, mean, row, run_seeds, seeds_from

from crossdistill.data import Modality, PairedDataset
from crossdistill.methods.msd import MSD
from crossdistill.networks.late_fusion import LateFusion, Raw, logits_of
from crossdistill.training import Settings, fit

A, T = "accuracy with", "accuracy without"
STUDENTS = {
    "CE": {"kd_weight": 0.0, "aux_weight": 0.0},
    "KD": {"aux_weight": 0.0},
    "MSD uniform": {},
    "MSD saliency": {"weighting": "saliency"},
    "MSD teacher loss": {"weighting": "teacher_loss"},
    "control: true labels": {"auxiliary": "labels"},
}
REFERENCE = {
    "dropout": dict(zip(STUDENTS, (54.4, 57.7, 62.4, 62.3, 62.4, 57.0), strict=True)) | {"teacher": 81.0},
    "plain": dict(zip(STUDENTS, (54.4, 55.4, 63.0, 61.8, 61.6, 55.3), strict=True)) | {"teacher": 83.1},
}
SPREAD = {"CE": 2.7, "KD": 3.5}
# over KD on the same seed, of 8: mean, and standard error where kept
GAINS = {
    "dropout": {"MSD uniform": (4.7, 0.4), "MSD saliency": (4.6, None), "MSD teacher loss": (4.7, None),
                "control: true labels": (-0.7, None)},
    "plain": {"MSD uniform": (7.6, 0.9), "MSD saliency": (6.5, None), "MSD teacher loss": (6.3, None),
              "control: true labels": (-0.1, None)},
}  # fmt: skip
NOTE = (
    "Levels differ, by 10 to 14 points for students: the scale of the world's matrices was not kept with our "
    "prototype's figures, and how hard the task is hangs on it. What the method is about, the gain over KD on the same "
    "seed, is compared by rows of its own."
)
ALONE = {
    "teacher": (54.5, 41.0),
    "CE": (49.2, 36.0),
    "KD": (50.6, 38.2),
    "MSD uniform": (53.6, 41.0),
}
MANY = {"CE": 78.5, "KD": 78.7, "MSD uniform": 77.8}
STEPS = Settings(epochs=60, batch_size=64, optimizer="adam", lr=2e-3, weight_decay=0.0, schedule="constant")
TEACHER = Settings(epochs=15, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def world(seed: int) -> PairedDataset:
    """Draw 6000 samples to train with and 4000 to test on."""
    rng = np.random.default_rng(seed)
    n = 10000
    a, b = rng.normal(size=(n, 16)), rng.normal(size=(n, 16))
    wa, wb, u, v = (rng.normal(size=(16, 4)) / 4 for _ in range(4))
    logits = 1.2 * a @ wa + 0.8 * b @ wb + 0.5 * (a @ u) * (b @ v) + 0.3 * rng.normal(size=(n, 4))
    arrays = {"a": a.astype("float32"), "b": b.astype("float32")}
    modalities = {name: Modality(name=name, kind="vector", shape=(16,)) for name in arrays}
    split = np.repeat([0, 2], [6000, 4000])
    return PairedDataset(arrays, modalities, name="msd", label=logits.argmax(axis=1), split=split)


def raw() -> dict[str, Raw]:
    """Give no encoders: early fusion."""
    return {"a": Raw(16), "b": Raw(16)}


def trained_teacher(data: PairedDataset, seed: int, dropout: float) -> LateFusion:
    """Train the teacher: the method's own first phase, and a single step after it."""
    torch.manual_seed(seed)
    method = MSD(raw(), classes=4, teacher_hidden=(256, 256), teacher_share=0.9999, modality_dropout=dropout)
    fit(method, data, TEACHER, seed=seed, labels=True, accelerator="cpu")
    assert isinstance(method.teacher, LateFusion)
    return method.teacher


def student(data: PairedDataset, teacher: LateFusion, seed: int, settings: Settings, **how: object) -> LateFusion:
    """Train a student of two layers of 12, from the same weights each time."""
    torch.manual_seed(seed + 100)
    method = MSD(raw(), classes=4, teacher=teacher, hidden=(12, 12), **how)  # pyright: ignore[reportArgumentType]
    fit(method, data, settings, seed=seed, labels=True, accelerator="cpu")
    return method.fused


@torch.no_grad()
def scores(network: LateFusion, data: PairedDataset) -> list[float]:
    """Give the accuracies, %, with both modalities, with a alone and with b alone."""
    inputs = {name: torch.cat(list(data.samples(name))) for name in ("a", "b")}
    label = torch.from_numpy(data.label)
    found = logits_of(network.eval(), inputs, [("a", "b"), ("a",), ("b",)])
    return [100 * (logits.argmax(dim=1) == label).float().mean().item() for logits in found]


def run(seed: int) -> dict[str, float]:
    """Run all rows for one seed."""
    data = world(seed)
    train, test = data.split("train"), data.split("test")
    few = train.subset(np.random.default_rng(seed + 1).choice(len(train), 200, replace=False))
    found: dict[str, float] = {}
    for kind, dropout in (("dropout", 0.2), ("plain", 0.0)):
        teacher = trained_teacher(train, seed, dropout)
        networks = {"teacher": teacher}
        networks |= {name: student(few, teacher, seed, STEPS, **how) for name, how in STUDENTS.items()}
        for name, network in networks.items():
            both, a, b = scores(network, test)
            found[f"{kind}: {name}"] = both
            if kind == "dropout" and name in ALONE:
                found |= {f"a alone: {name}": a, f"b alone: {name}": b}
        if kind == "dropout" and seed < 2:
            many = Settings(epochs=10, batch_size=64, optimizer="adam", lr=2e-3, weight_decay=0, schedule="constant")
            for name in MANY:
                net = student(train, teacher, seed, many, **STUDENTS[name])
                found[f"6000 labels: {name}"] = scores(net, test)[0]
    return found


def main() -> None:
    seeds = seeds_from(__doc__ or "", 8)
    found = run_seeds(run, seeds)
    reference = {
        f"{kind}: {name}": Reference(value, SPREAD.get(name) if kind == "dropout" else None, seeds=8)
        for kind, values in REFERENCE.items()
        for name, value in values.items()
    }
    reference |= {f"{m} alone: {name}": Reference(v, seeds=3) for name, pair in ALONE.items()
                  for m, v in zip("ab", pair, strict=True)}  # fmt: skip
    reference |= {f"6000 labels: {name}": Reference(value, seeds=2) for name, value in MANY.items()}
    for kind, gains in GAINS.items():
        for name, (gain, error) in gains.items():
            found[f"{kind}: {name} less KD"] = list(difference(found, f"{kind}: {name}", f"{kind}: KD"))
            reference[f"{kind}: {name} less KD"] = Reference(gain, error and error * 8**0.5, seeds=8)
    checks: list[Check] = []
    for kind in REFERENCE:
        gain = difference(found, f"{kind}: MSD uniform", f"{kind}: KD")
        checks.append(
            Check(f"{kind}: MSD uniform above KD on every seed", f"{min(gain):.1f} at least", bool(min(gain) > 0))
        )
        checks.append(Check(f"{kind}: by 3 to 9 points in the mean", f"{mean(gain):.2f}", 3 <= mean(gain) <= 9))
        control = mean(difference(found, f"{kind}: control: true labels", f"{kind}: KD"))
        checks.append(Check(f"{kind}: the control gives nothing (below 1.5)", f"{control:.2f}", control < 1.5))
        extra = mean(difference(found, f"{kind}: MSD saliency", f"{kind}: MSD uniform"))
        checks.append(Check(f"{kind}: saliency is within 2 points of uniform", f"{extra:.2f}", abs(extra) < 2))
    for m in "ab":
        behind = difference(found, f"{m} alone: MSD uniform", f"{m} alone: teacher")
        checks.append(at_least(f"{m} alone: MSD uniform - teacher", behind, -2))
    many = mean(difference(found, "6000 labels: MSD uniform", "6000 labels: KD"))
    checks.append(Check("6000 labels: MSD uniform is no better than KD", f"{many:.2f}", many <= 0))
    rows = [row(name, values, reference.get(name)) for name, values in found.items()]
    title = "MSD: 200 labels for the student unless said, teacher with modality dropout or plain; test accuracy, %"
    keep("fidelity", "msd", title, seeds, rows, checks, note=NOTE)


if __name__ == "__main__":
    main()
